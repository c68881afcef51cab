"""What has outlived its time goes."""

from __future__ import annotations

from sqlalchemy import delete

from kleinbild.core.jobs import FINAL
from kleinbild.storage.blobs import Blobs
from kleinbild.storage.database import Database
from kleinbild.storage.schema import deliveries, files, idempotency, jobs


async def sweep(database: Database, blobs: Blobs, now: float, kept_seconds: float) -> None:
    """Removes what has expired: files, keys of idempotency, jobs that ended `kept_seconds` ago with their events and
    deliveries, and last the bytes, which nothing refers to any more then."""
    ended = jobs.c.completed_at <= now - kept_seconds
    async with database.write() as connection:
        await connection.execute(delete(files).where(files.c.expires_at <= now))
        await connection.execute(delete(idempotency).where(idempotency.c.expires_at <= now))
        await connection.execute(delete(deliveries).where(deliveries.c.created_at <= now - kept_seconds))
        await connection.execute(delete(jobs).where(ended, jobs.c.status.in_(FINAL)))  # their events go with them
    await blobs.collect(now)
