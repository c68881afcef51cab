"""One server at a time on a PostgreSQL database: two would each make every job that was left unfinished.

The lock is an advisory one of a session that does nothing else. It ends with the session, however the server ends. (A
SQLite database is in a data folder, which has a lock of its own.)
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

from sqlalchemy import func, select, text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine
from sqlalchemy.pool import NullPool

from kleinbild.core.errors import DatabaseError
from kleinbild.storage.database import Database

LOCK = int.from_bytes(b"kleinbil")  # its number, within the database
WAIT_SECONDS = 3.0  # for a server that was killed just now, whose session PostgreSQL has yet to end
CHECK_SECONDS = 5.0
KEEPALIVES = (
    "idle = 10",
    "interval = 5",
    "count = 3",
)  # seconds; else a machine that vanished keeps its lock for hours
log = logging.getLogger(__name__)


@asynccontextmanager
async def owned(database: Database) -> AsyncIterator[None]:
    """Raises DatabaseError if another server has the database, now or for the next few seconds."""
    if database.writer.dialect.name != "postgresql":
        yield
        return
    engine = create_async_engine(database.writer.url, poolclass=NullPool, isolation_level="AUTOCOMMIT")
    try:
        holding = asyncio.create_task(_hold(engine, await _wait_for(engine)))
        try:
            yield
        finally:
            holding.cancel()
            with suppress(asyncio.CancelledError):
                await holding
    finally:
        await engine.dispose()


async def _wait_for(engine: AsyncEngine) -> AsyncConnection:
    loop = asyncio.get_running_loop()
    until = loop.time() + WAIT_SECONDS
    while (connection := await _take(engine)) is None:
        if loop.time() > until:
            where = engine.url.set(drivername="postgresql").render_as_string()
            raise DatabaseError(
                f"another server is running on the database {where}",
                "stop it, or choose another database with storage.database_url",
            )
        await asyncio.sleep(WAIT_SECONDS / 10)
    return connection


async def _take(engine: AsyncEngine) -> AsyncConnection | None:
    """The session that has the lock, None if another has it."""
    connection = await engine.connect()
    try:
        for setting in KEEPALIVES:
            await connection.execute(text(f"SET tcp_keepalives_{setting}"))
        if await connection.scalar(select(func.pg_try_advisory_lock(LOCK))):
            return connection
    except BaseException:
        await connection.close()
        raise
    await connection.close()
    return None


async def _hold(engine: AsyncEngine, connection: AsyncConnection) -> None:
    """For ever. A session that PostgreSQL ended, as when it starts again, is followed by another."""
    held: AsyncConnection | None = connection
    try:
        while True:
            await asyncio.sleep(CHECK_SECONDS)
            try:
                if held is None:
                    held = await _take(engine)
                    if held is None:
                        log.error("another server has taken the database over: stop one of the two")
                else:
                    await held.execute(select(1))
            except DBAPIError:
                if held is not None:
                    await held.close()
                held = None
    finally:
        if held is not None:
            await held.close()
