"""What has outlived its time goes."""

from __future__ import annotations

from sqlalchemy import delete, exists, update
from sqlalchemy.ext.asyncio import AsyncConnection

from kleinbild.core.jobs import FINAL
from kleinbild.storage import servers
from kleinbild.storage.blobs import Blobs
from kleinbild.storage.database import Database
from kleinbild.storage.jobs import pictures_of_unfinished
from kleinbild.storage.schema import (
    attempts,
    budget_windows,
    decisions,
    deliveries,
    files,
    idempotency,
    jobs,
    open_attempts,
)
from kleinbild.storage.schema import blobs as blobs_table

SWEEP_TURN = 1
NEEDED_SECONDS = 3600.0  # that a picture past its time is kept for a job that waits: until the next sweep and more
MONEY_SECONDS = 400 * 24 * 3600.0  # a year, and time to compare it with the one before


async def sweep(
    database: Database, blobs: Blobs, now: float, kept_seconds: float, money_seconds: float = MONEY_SECONDS
) -> bool:
    """Removes what has expired: files, keys of idempotency, jobs that ended `kept_seconds` ago with their events and
    deliveries, and last the bytes, which nothing refers to any more then. Pictures of jobs that have yet to end stay.

    Attempts that have ended, windows of budgets and decisions go `money_seconds` after they began. False: another server
    is at it.
    """
    ended = jobs.c.completed_at <= now - kept_seconds
    async with database.write() as connection:
        if not await servers.turn(connection, SWEEP_TURN, wait=False):
            return False
        needed = await pictures_of_unfinished(connection)
        await connection.execute(
            update(blobs_table)
            .where(blobs_table.c.sha256.in_(needed), blobs_table.c.expires_at <= now)
            .values(expires_at=now + NEEDED_SECONDS)
        )
        await connection.execute(delete(files).where(files.c.expires_at <= now))
        await connection.execute(delete(idempotency).where(idempotency.c.expires_at <= now))
        await connection.execute(delete(deliveries).where(deliveries.c.created_at <= now - kept_seconds))
        await connection.execute(delete(jobs).where(ended, jobs.c.status.in_(FINAL)))  # their events go with them
        await _sweep_money(connection, now - money_seconds)
    await blobs.collect(now)
    return True


async def _sweep_money(connection: AsyncConnection, before: float) -> None:
    is_open = exists().where(open_attempts.c.attempt_id == attempts.c.id)
    await connection.execute(delete(attempts).where(attempts.c.created_at <= before, ~is_open))  # states go with them
    ended = budget_windows.c.window_start <= before
    unreserved = budget_windows.c.reserved_nanos == 0
    endless = budget_windows.c.window_start == 0
    await connection.execute(delete(budget_windows).where(ended, unreserved, ~endless))
    await connection.execute(delete(decisions).where(decisions.c.at <= before))
