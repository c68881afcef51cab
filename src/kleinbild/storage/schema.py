"""The tables. Times are seconds since 1970; ids are text with a prefix that says of what; no pixels and no secrets."""

from __future__ import annotations

from sqlalchemy import JSON, BigInteger, Column, Double, ForeignKey, Index, Integer, MetaData, String, Table, Text

metadata = MetaData(
    naming_convention={
        "ix": "ix_%(column_0_label)s",
        "uq": "uq_%(table_name)s_%(column_0_name)s",
        "fk": "fk_%(table_name)s_%(column_0_name)s",
        "pk": "pk_%(table_name)s",
    }
)

jobs = Table(
    "jobs",
    metadata,
    Column("id", String(64), primary_key=True),
    Column("caller", String(64), nullable=False),
    Column("project", String(128), nullable=False),
    Column("task", String(32), nullable=False),
    Column("model", String(128), nullable=False),
    Column("status", String(16), nullable=False),
    Column("work", JSON, nullable=False),  # core.jobs.ImageWork
    Column("outcome", JSON(none_as_null=True)),  # core.jobs.Outcome, once it has ended
    Column("warnings", JSON, nullable=False),
    Column("metadata", JSON, nullable=False),
    Column("webhook", String(64)),
    Column("created_at", Double, nullable=False),
    Column("started_at", Double),
    Column("completed_at", Double),
    Index("ix_jobs_project_created_at", "project", "created_at"),
    Index("ix_jobs_status", "status"),
)

events = Table(
    "events",
    metadata,
    Column("id", BigInteger, primary_key=True, autoincrement=False),  # increases with time, across restarts, too
    Column("job_id", String(64), ForeignKey("jobs.id", ondelete="CASCADE"), nullable=False, index=True),
    Column("project", String(128), nullable=False),
    Column("type", String(32), nullable=False),
    Column("data", JSON, nullable=False),
    Index("ix_events_project_id", "project", "id"),
)

idempotency = Table(
    "idempotency",
    metadata,
    Column("caller", String(64), primary_key=True),
    Column("key", String(255), primary_key=True),
    Column("fingerprint", String(64), nullable=False),  # of route and body
    Column("job_id", String(64), ForeignKey("jobs.id", ondelete="CASCADE"), nullable=False, index=True),
    Column("expires_at", Double, nullable=False, index=True),
)

keys = Table(
    "keys",
    metadata,
    Column("id", String(64), primary_key=True),
    Column("digest", String(64), nullable=False, unique=True),  # keyed HMAC-SHA256 of the key, in hex
    Column("prefix", String(16), nullable=False),  # its first characters, to know it by
    Column("name", String(128), nullable=False),
    Column("owner", String(128), nullable=False),
    Column("project", String(128), nullable=False),
    Column("role", String(16), nullable=False),
    Column("parent", String(64), ForeignKey("keys.id")),
    Column("models", JSON(none_as_null=True)),
    Column("routes", JSON(none_as_null=True)),
    Column("limits", JSON, nullable=False),  # core.callers.Limits
    Column("created_at", Double, nullable=False),
    Column("expires_at", Double),
    Column("revoked_at", Double),
    Column("last_used_at", Double),
)

audit = Table(
    "audit",
    metadata,
    Column("id", Integer, primary_key=True, autoincrement=True),
    Column("at", Double, nullable=False),
    Column("actor", String(64), nullable=False),
    Column("action", String(64), nullable=False),
    Column("target", String(128), nullable=False),
    Column("details", JSON, nullable=False),
    Column("request_id", String(64), nullable=False),
)

files = Table(
    "files",
    metadata,
    Column("id", String(64), primary_key=True),
    Column("project", String(128), nullable=False, index=True),
    Column("filename", Text, nullable=False),
    Column("purpose", String(32), nullable=False),
    Column("sha256", String(64), nullable=False, index=True),
    Column("bytes", BigInteger, nullable=False),
    Column("created_at", Double, nullable=False),
    Column("expires_at", Double),
)

blobs = Table(
    "blobs",
    metadata,
    Column("sha256", String(64), primary_key=True),
    Column("bytes", BigInteger, nullable=False),
    Column("media_type", String(64), nullable=False),
    Column("created_at", Double, nullable=False),
    Column("expires_at", Double, index=True),  # the latest of all that use it; None keeps it
)

webhooks = Table(
    "webhooks",
    metadata,
    Column("id", String(64), primary_key=True),
    Column("project", String(128), nullable=False, index=True),
    Column("url", Text, nullable=False),
    Column("events", JSON(none_as_null=True)),  # types of events; None is all
    Column("secret", Text, nullable=False),  # encrypted
    Column("previous_secret", Text),  # encrypted; signs beside the new one until …
    Column("previous_until", Double),
    Column("created_at", Double, nullable=False),
    Column("disabled_at", Double),
)

bfl_webhooks = Table(
    "bfl_webhooks",  # of jobs whose end is told as BFL tells it
    metadata,
    Column("job_id", String(64), ForeignKey("jobs.id", ondelete="CASCADE"), primary_key=True),
    Column("secret", Text),  # encrypted; the client's own, None if it gave none
)

deliveries = Table(
    "deliveries",
    metadata,
    Column("id", String(64), primary_key=True),  # webhook-id: the same for every attempt
    Column("webhook_id", String(64), ForeignKey("webhooks.id", ondelete="CASCADE"), nullable=False, index=True),
    Column("job_id", String(64), nullable=False),
    Column("type", String(32), nullable=False),
    Column("attempts", Integer, nullable=False, default=0),
    Column("last_status", Integer),
    Column("created_at", Double, nullable=False),
    Column("delivered_at", Double),
    Column("given_up_at", Double),
)
