"""The tables. Times are seconds since 1970; ids are text with a prefix that says of what; no pixels and no secrets.

Money is whole nanodollars. Nothing of it refers to jobs, which go long before.
"""

from __future__ import annotations

from sqlalchemy import (
    JSON,
    BigInteger,
    Boolean,
    Column,
    Double,
    ForeignKey,
    Index,
    Integer,
    MetaData,
    String,
    Table,
    Text,
    text,
)

metadata = MetaData(
    naming_convention={
        "ix": "ix_%(column_0_label)s",
        "uq": "uq_%(table_name)s_%(column_0_name)s",
        "fk": "fk_%(table_name)s_%(column_0_name)s",
        "pk": "pk_%(table_name)s",
    }
)


def _made_by() -> Column[int]:
    """The number of the server that sees to the row until it has ended."""
    return Column("server", Integer, nullable=False, server_default="0")


servers = Table(
    "servers",  # that use a PostgreSQL database; one whose lock nobody holds (storage.servers) has died
    metadata,
    Column("number", Integer, primary_key=True, autoincrement=False),
    Column("secret", String(64), nullable=False),  # a digest of it, to be compared
    Column("blobs", Text),  # where its pictures are; None is a folder of its own
    Column("started_at", Double, nullable=False),
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
    _made_by(),
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
    Column("policy", String(128)),  # by which its requests are routed; None is the server's
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
    _made_by(),
    Column("attempted_at", Double),  # the last time
)

attempts = Table(
    "attempts",  # of a provider to make pictures: facts, which never change
    metadata,
    Column("id", String(64), primary_key=True),
    Column("job_id", String(64), nullable=False, index=True),
    Column("part", Integer, nullable=False),
    Column("number", Integer, nullable=False),
    Column("deployment", String(128), nullable=False),
    Column("provider", String(128), nullable=False),
    Column("kind", String(32), nullable=False),
    Column("model", String(128), nullable=False),
    Column("provider_model", String(256), nullable=False),
    Column("task", String(32), nullable=False),
    Column("caller", String(64), nullable=False),
    Column("project", String(128), nullable=False),
    Column("first", Integer, nullable=False),
    Column("count", Integer, nullable=False),
    Column("reserved_nanos", BigInteger, nullable=False),
    Column("quoted_nanos", BigInteger),
    Column("price_version", String(128), nullable=False),
    Column("hedged", Boolean, nullable=False),
    Column("pixels", BigInteger, nullable=False),  # of one picture
    Column("day", String(10), nullable=False),  # of created_at, in UTC
    Column("created_at", Double, nullable=False),
    Column("adapters", Text, nullable=False, server_default=text("''")),  # names, with commas between
    Index("ix_attempts_created_at", "created_at"),
    Index("ix_attempts_project_created_at", "project", "created_at"),
)

_ENDED = text("state IN ('done', 'failed_unbilled', 'failed_billed')")  # storage.ledger.TERMINAL

attempt_states = Table(
    "attempt_states",  # rows are added and never changed; the last is how it stands
    metadata,
    Column("attempt_id", String(64), ForeignKey("attempts.id", ondelete="CASCADE"), primary_key=True),
    Column("ordinal", Integer, primary_key=True, autoincrement=False),
    Column("state", String(16), nullable=False),
    Column("at", Double, nullable=False),
    Column("handle", JSON(none_as_null=True)),
    Column("cost_nanos", BigInteger),  # once it has ended
    Column("reported_nanos", BigInteger),  # what the provider said
    Column("request_id", String(256)),
    Column("seconds", Double),
    Column("detail", Text, nullable=False),
    Index("uq_attempt_states_ended", "attempt_id", unique=True, sqlite_where=_ENDED, postgresql_where=_ENDED),
    Index(
        "ix_attempt_states_request_id",
        "request_id",
        sqlite_where=text("request_id IS NOT NULL"),
        postgresql_where=text("request_id IS NOT NULL"),
    ),
)

open_attempts = Table(
    "open_attempts",  # those that have yet to end; whoever adds a state locks its row here, whoever ends it deletes it
    metadata,
    Column("attempt_id", String(64), ForeignKey("attempts.id", ondelete="CASCADE"), primary_key=True),
    Column("ordinal", Integer, nullable=False),  # of its last state
    _made_by(),
)

budgets = Table(
    "budgets",  # of all that matches what is given of key, project and model
    metadata,
    Column("id", String(64), primary_key=True),
    Column("key_id", String(64)),
    Column("project", String(128)),
    Column("model", String(128)),
    Column("amount_nanos", BigInteger, nullable=False),
    Column("period", String(16)),  # 30d, 1h, month; None is for good
    Column("alerts", String(128), nullable=False),  # fractions of the amount, with spaces between
)

budget_windows = Table(
    "budget_windows",
    metadata,
    Column("budget_id", String(64), ForeignKey("budgets.id", ondelete="CASCADE"), primary_key=True),
    Column("window_start", BigInteger, primary_key=True, autoincrement=False),  # seconds since 1970
    Column("spent_nanos", BigInteger, nullable=False),
    Column("reserved_nanos", BigInteger, nullable=False),
)

reservations = Table(
    "reservations",  # of attempts that have yet to end
    metadata,
    Column("attempt_id", String(64), primary_key=True),
    Column("budget_id", String(64), primary_key=True),
    Column("window_start", BigInteger, nullable=False),
    Column("nanos", BigInteger, nullable=False),
)

adjustments = Table(
    "adjustments",  # what a provider's statement says beyond an attempt's cost; rows are added and never changed
    metadata,
    Column("id", String(64), primary_key=True),
    Column("attempt_id", String(64), ForeignKey("attempts.id", ondelete="CASCADE"), nullable=False, index=True),
    Column("at", Double, nullable=False, index=True),
    Column("nanos", BigInteger, nullable=False),  # less than 0 where the provider took less
    Column("detail", Text, nullable=False),
)

decisions = Table(
    "decisions",  # where a request was sent, and why
    metadata,
    Column("id", String(64), primary_key=True),
    Column("job_id", String(64), index=True),
    Column("caller", String(64), nullable=False),
    Column("project", String(128), nullable=False),
    Column("at", Double, nullable=False, index=True),
    Column("body", JSON, nullable=False),
    Index("ix_decisions_project_at", "project", "at"),
)

fine_tuning_jobs = Table(
    "fine_tuning_jobs",  # rows stay: they say whose an adapter is
    metadata,
    Column("id", String(64), primary_key=True),
    Column("caller", String(64), nullable=False),
    Column("project", String(128), nullable=False),
    Column("model", String(128), nullable=False),  # what it is served on; what it is trained on follows
    Column("adapter", String(64), nullable=False, unique=True),  # the name that it will be registered under
    Column("status", String(32), nullable=False),
    Column("wanted", JSON, nullable=False),  # storage.tunings.Wanted
    Column("result", JSON(none_as_null=True)),  # storage.tunings.Result, once it has ended
    Column("created_at", Double, nullable=False),
    Column("started_at", Double),
    Column("finished_at", Double),
    Column("estimated_finish", Double),
    Column("heard_until", Double, nullable=False),  # the time of the worker's last event that is kept
    _made_by(),
    Index("ix_fine_tuning_jobs_project_created_at", "project", "created_at"),
    Index("ix_fine_tuning_jobs_status", "status"),
)

fine_tuning_events = Table(
    "fine_tuning_events",
    metadata,
    Column("job_id", String(64), ForeignKey("fine_tuning_jobs.id", ondelete="CASCADE"), primary_key=True),
    Column("number", Integer, primary_key=True, autoincrement=False),
    Column("level", String(8), nullable=False),
    Column("message", Text, nullable=False),
    Column("type", String(8), nullable=False),
    Column("data", JSON(none_as_null=True)),
    Column("created_at", Double, nullable=False),
)

fine_tuning_checkpoints = Table(
    "fine_tuning_checkpoints",
    metadata,
    Column("job_id", String(64), ForeignKey("fine_tuning_jobs.id", ondelete="CASCADE"), primary_key=True),
    Column("step", Integer, primary_key=True, autoincrement=False),
    Column("path", Text, nullable=False),  # in the run's folder
    Column("metrics", JSON, nullable=False),
    Column("created_at", Double, nullable=False),
)
