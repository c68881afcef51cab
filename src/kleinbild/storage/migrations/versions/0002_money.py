"""What was spent and may be spent: attempts, budgets, decisions; the policy of a key."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"

ENDED = sa.text("state IN ('done', 'failed_unbilled', 'failed_billed')")
TOLD = sa.text("request_id IS NOT NULL")


def upgrade() -> None:
    op.add_column("keys", sa.Column("policy", sa.String(128)))
    op.create_table(
        "attempts",
        sa.Column("id", sa.String(64), nullable=False),
        sa.Column("job_id", sa.String(64), nullable=False),
        sa.Column("part", sa.Integer(), nullable=False),
        sa.Column("number", sa.Integer(), nullable=False),
        sa.Column("deployment", sa.String(128), nullable=False),
        sa.Column("provider", sa.String(128), nullable=False),
        sa.Column("kind", sa.String(32), nullable=False),
        sa.Column("model", sa.String(128), nullable=False),
        sa.Column("provider_model", sa.String(256), nullable=False),
        sa.Column("task", sa.String(32), nullable=False),
        sa.Column("caller", sa.String(64), nullable=False),
        sa.Column("project", sa.String(128), nullable=False),
        sa.Column("first", sa.Integer(), nullable=False),
        sa.Column("count", sa.Integer(), nullable=False),
        sa.Column("reserved_nanos", sa.BigInteger(), nullable=False),
        sa.Column("quoted_nanos", sa.BigInteger()),
        sa.Column("price_version", sa.String(128), nullable=False),
        sa.Column("hedged", sa.Boolean(), nullable=False),
        sa.Column("pixels", sa.BigInteger(), nullable=False),
        sa.Column("day", sa.String(10), nullable=False),
        sa.Column("created_at", sa.Double(), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_attempts"),
    )
    op.create_index("ix_attempts_created_at", "attempts", ["created_at"])
    op.create_index("ix_attempts_job_id", "attempts", ["job_id"])
    op.create_index("ix_attempts_project_created_at", "attempts", ["project", "created_at"])
    op.create_table(
        "attempt_states",
        sa.Column("attempt_id", sa.String(64), nullable=False),
        sa.Column("ordinal", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("state", sa.String(16), nullable=False),
        sa.Column("at", sa.Double(), nullable=False),
        sa.Column("handle", sa.JSON(none_as_null=True)),
        sa.Column("cost_nanos", sa.BigInteger()),
        sa.Column("reported_nanos", sa.BigInteger()),
        sa.Column("request_id", sa.String(256)),
        sa.Column("seconds", sa.Double()),
        sa.Column("detail", sa.Text(), nullable=False),
        sa.ForeignKeyConstraint(
            ["attempt_id"], ["attempts.id"], name="fk_attempt_states_attempt_id", ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("attempt_id", "ordinal", name="pk_attempt_states"),
    )
    op.create_index(
        "uq_attempt_states_ended",
        "attempt_states",
        ["attempt_id"],
        unique=True,
        sqlite_where=ENDED,
        postgresql_where=ENDED,
    )
    op.create_index(
        "ix_attempt_states_request_id", "attempt_states", ["request_id"], sqlite_where=TOLD, postgresql_where=TOLD
    )
    op.create_table(
        "open_attempts",
        sa.Column("attempt_id", sa.String(64), nullable=False),
        sa.Column("ordinal", sa.Integer(), nullable=False),
        sa.ForeignKeyConstraint(
            ["attempt_id"], ["attempts.id"], name="fk_open_attempts_attempt_id", ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("attempt_id", name="pk_open_attempts"),
    )
    op.create_table(
        "budgets",
        sa.Column("id", sa.String(64), nullable=False),
        sa.Column("key_id", sa.String(64)),
        sa.Column("project", sa.String(128)),
        sa.Column("model", sa.String(128)),
        sa.Column("amount_nanos", sa.BigInteger(), nullable=False),
        sa.Column("period", sa.String(16)),
        sa.Column("alerts", sa.String(128), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_budgets"),
    )
    op.create_table(
        "budget_windows",
        sa.Column("budget_id", sa.String(64), nullable=False),
        sa.Column("window_start", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("spent_nanos", sa.BigInteger(), nullable=False),
        sa.Column("reserved_nanos", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(["budget_id"], ["budgets.id"], name="fk_budget_windows_budget_id", ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("budget_id", "window_start", name="pk_budget_windows"),
    )
    op.create_table(
        "reservations",
        sa.Column("attempt_id", sa.String(64), nullable=False),
        sa.Column("budget_id", sa.String(64), nullable=False),
        sa.Column("window_start", sa.BigInteger(), nullable=False),
        sa.Column("nanos", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("attempt_id", "budget_id", name="pk_reservations"),
    )
    op.create_table(
        "adjustments",
        sa.Column("id", sa.String(64), nullable=False),
        sa.Column("attempt_id", sa.String(64), nullable=False),
        sa.Column("at", sa.Double(), nullable=False),
        sa.Column("nanos", sa.BigInteger(), nullable=False),
        sa.Column("detail", sa.Text(), nullable=False),
        sa.ForeignKeyConstraint(["attempt_id"], ["attempts.id"], name="fk_adjustments_attempt_id", ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("id", name="pk_adjustments"),
    )
    op.create_index("ix_adjustments_at", "adjustments", ["at"])
    op.create_index("ix_adjustments_attempt_id", "adjustments", ["attempt_id"])
    op.create_table(
        "decisions",
        sa.Column("id", sa.String(64), nullable=False),
        sa.Column("job_id", sa.String(64)),
        sa.Column("caller", sa.String(64), nullable=False),
        sa.Column("project", sa.String(128), nullable=False),
        sa.Column("at", sa.Double(), nullable=False),
        sa.Column("body", sa.JSON(), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_decisions"),
    )
    op.create_index("ix_decisions_at", "decisions", ["at"])
    op.create_index("ix_decisions_job_id", "decisions", ["job_id"])
    op.create_index("ix_decisions_project_at", "decisions", ["project", "at"])
