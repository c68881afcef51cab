"""The one database: SQLite in a file (the default) or PostgreSQL, by its URL.

async with database.write() as connection: ...   # a transaction; SQLite has one writer at a time
async with database.read() as connection: ...
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, event
from sqlalchemy.engine import make_url
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine

from kleinbild.storage import migrations

NUM_READERS = 4
BUSY_MS = 30_000


@dataclass(frozen=True, slots=True)
class Database:
    """`writer` and `reader` are one and the same on PostgreSQL."""

    writer: AsyncEngine
    reader: AsyncEngine

    @asynccontextmanager
    async def write(self) -> AsyncIterator[AsyncConnection]:
        async with self.writer.begin() as connection:
            yield connection

    @asynccontextmanager
    async def read(self) -> AsyncIterator[AsyncConnection]:
        async with self.reader.connect() as connection:
            yield connection

    async def close(self) -> None:
        await self.writer.dispose()
        await self.reader.dispose()


def sqlite_url(path: Path) -> str:
    return f"sqlite+aiosqlite:///{path}"


async def open_database(url: str) -> Database:
    """Opens the database at `url`, with its tables as this version needs them. Raises DatabaseError."""
    database = _connect(url)
    try:
        async with database.read() as connection:
            is_current = await connection.run_sync(migrations.revision_of) == migrations.HEAD
        if not is_current:
            async with database.write() as connection:
                await connection.run_sync(migrations.upgrade)
    except BaseException:
        await database.close()
        raise
    return database


def _connect(url: str) -> Database:
    if make_url(url).get_backend_name() != "sqlite":
        engine = create_async_engine(url, pool_pre_ping=True)
        return Database(engine, engine)
    writer = create_async_engine(url, pool_size=1, max_overflow=0, pool_timeout=BUSY_MS / 1000)
    reader = create_async_engine(url, pool_size=NUM_READERS, max_overflow=0, pool_timeout=BUSY_MS / 1000)
    for engine, begin in ((writer, "BEGIN IMMEDIATE"), (reader, "BEGIN")):
        _prepare_sqlite(engine, begin)
    return Database(writer, reader)


def _prepare_sqlite(engine: AsyncEngine, begin: str) -> None:
    """Write-ahead log, foreign keys, and transactions that begin when SQLAlchemy says so rather than Python's driver.

    A writer takes its lock at once: one that reads first and then writes could find that somebody else has written.
    """

    @event.listens_for(engine.sync_engine, "connect")
    def connect(connection: Any, _: Any) -> None:
        connection.isolation_level = None
        cursor = connection.cursor()
        for pragma in (f"busy_timeout={BUSY_MS}", "journal_mode=WAL", "foreign_keys=ON"):
            cursor.execute(f"PRAGMA {pragma}")
        cursor.close()

    @event.listens_for(engine.sync_engine, "begin")
    def start(connection: Connection) -> None:
        connection.exec_driver_sql(begin)
