"""Which server makes what, where several use the database. What is there is of number 0, which no lock is held for."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    op.create_table(
        "servers",
        sa.Column("number", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("secret", sa.String(64), nullable=False),
        sa.Column("blobs", sa.Text()),
        sa.Column("started_at", sa.Double(), nullable=False),
        sa.PrimaryKeyConstraint("number", name="pk_servers"),
    )
    op.execute("INSERT INTO servers (number, secret, started_at) VALUES (0, '', 0)")
    for table in ("jobs", "deliveries", "open_attempts"):
        op.add_column(table, sa.Column("server", sa.Integer(), nullable=False, server_default="0"))
    op.add_column("deliveries", sa.Column("attempted_at", sa.Double()))
