"""What has outlived its time goes."""

from __future__ import annotations

from sqlalchemy import delete, update

from kleinbild.core.jobs import FINAL
from kleinbild.storage.blobs import Blobs
from kleinbild.storage.database import Database
from kleinbild.storage.jobs import pictures_of_unfinished
from kleinbild.storage.schema import blobs as blobs_table
from kleinbild.storage.schema import deliveries, files, idempotency, jobs

NEEDED_SECONDS = 3600.0  # that a picture past its time is kept for a job that waits: until the next sweep and more


async def sweep(database: Database, blobs: Blobs, now: float, kept_seconds: float) -> None:
    """Removes what has expired: files, keys of idempotency, jobs that ended `kept_seconds` ago with their events and
    deliveries, and last the bytes, which nothing refers to any more then. Pictures of jobs that have yet to end stay."""
    ended = jobs.c.completed_at <= now - kept_seconds
    async with database.write() as connection:
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
    await blobs.collect(now)
