"""The one database: SQLite in a file (the default) or PostgreSQL, by its URL.

async with database.write() as connection: ...   # a transaction; SQLite has one writer at a time
async with database.read() as connection: ...
"""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from sqlalchemy import URL, Connection, event
from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError, DBAPIError, InterfaceError, InternalError, OperationalError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine

from kleinbild.core.errors import DatabaseError, RequestError
from kleinbild.storage import migrations

T = TypeVar("T")
NUM_READERS = 4
BUSY_MS = 30_000
PRAGMAS = (f"busy_timeout={BUSY_MS}", "journal_mode=WAL", "foreign_keys=ON")
DRIVERS = {"sqlite": "aiosqlite", "postgresql": "psycopg"}
FORM = "postgresql://user:password@host/database"
OUTAGE = (OperationalError, InterfaceError, InternalError)
"""What a database that is not there, or on its way, raises; other errors of its driver are faults of ours."""


class Straight:
    """A SQLite connection in a thread of its own, for what is done there in one go: without SQLAlchemy, which takes a fifth
    of a small transaction's time to lend a connection and to take it back."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._thread = ThreadPoolExecutor(1, "commits")
        self._connection: sqlite3.Connection | None = None

    async def run(self, work: Callable[[sqlite3.Connection], T]) -> T:
        """Nobody else may be writing: `Database.turn` sees to it."""
        return await asyncio.get_running_loop().run_in_executor(self._thread, self._do, work)

    def close(self) -> None:
        self._thread.shutdown()
        if self._connection is not None:
            self._connection.close()

    def _do(self, work: Callable[[sqlite3.Connection], T]) -> T:
        if self._connection is None:
            self._connection = sqlite3.connect(self._path, isolation_level=None, check_same_thread=False)
            for pragma in PRAGMAS:
                self._connection.execute(f"PRAGMA {pragma}")
        return work(self._connection)


@dataclass(frozen=True, slots=True)
class Database:
    """`writer` and `reader` are one and the same on PostgreSQL, and `straight` is of SQLite alone. `turn` is held by who
    writes to SQLite: whoever waits for its own lock asks again and again, and may never be lucky."""

    writer: AsyncEngine
    reader: AsyncEngine
    straight: Straight | None = None
    turn: asyncio.Lock = field(default_factory=asyncio.Lock)

    @asynccontextmanager
    async def write(self) -> AsyncIterator[AsyncConnection]:
        async with self.turn if self.straight else nullcontext(), self.writer.begin() as connection:
            yield connection

    @asynccontextmanager
    async def read(self) -> AsyncIterator[AsyncConnection]:
        async with self.reader.connect() as connection:
            yield connection

    async def close(self) -> None:
        await self.writer.dispose()
        await self.reader.dispose()
        if self.straight is not None:
            await asyncio.to_thread(self.straight.close)


def sqlite_url(path: Path) -> str:
    return f"sqlite:///{path}"


def read_url(text: str) -> URL:
    """The URL, with the one driver that we use. Raises RequestError."""
    try:
        url = make_url(text)
    except ArgumentError as error:
        raise RequestError("the database's URL is none", f"write {FORM}") from error  # it may hold a password
    name, _, driver = url.drivername.partition("+")
    if name not in DRIVERS or driver not in ("", DRIVERS[name]):
        raise RequestError(f"the database's URL starts with {url.drivername}, which is not supported", f"write {FORM}")
    return url.set(drivername=f"{name}+{DRIVERS[name]}")


async def open_database(text: str) -> Database:
    """Opens the database at that URL, with its tables as this version needs them. Raises DatabaseError, RequestError."""
    url = read_url(text)
    database = _connect(url)
    try:
        async with database.read() as connection:
            is_current = await connection.run_sync(migrations.revision_of) == migrations.HEAD
        if not is_current:
            async with database.write() as connection:
                await connection.run_sync(migrations.upgrade)
    except BaseException as error:
        await database.close()
        if isinstance(error, DBAPIError):
            raise _unusable(url, error) from error
        raise
    return database


def _connect(url: URL) -> Database:
    if url.get_backend_name() != "sqlite":
        try:
            engine = create_async_engine(url, pool_pre_ping=True)
        except ImportError as error:
            raise RequestError(
                "PostgreSQL needs psycopg, which is not installed or does not work here",
                "pip install 'kleinbild[postgres]'",
            ) from error
        return Database(engine, engine)
    # Whoever has the writer ends what he began himself; a rollback at each return would be one more wait for its thread.
    writer = create_async_engine(
        url, pool_size=1, max_overflow=0, pool_timeout=BUSY_MS / 1000, pool_reset_on_return=None
    )
    reader = create_async_engine(url, pool_size=NUM_READERS, max_overflow=0, pool_timeout=BUSY_MS / 1000)
    for engine, begin in ((writer, "BEGIN IMMEDIATE"), (reader, "BEGIN")):
        _prepare_sqlite(engine, begin)
    return Database(writer, reader, Straight(str(url.database)))


def _unusable(url: URL, error: DBAPIError) -> DatabaseError:
    """What the driver says, in one line, about a database that is named without its password."""
    said = " ".join(str(error.orig).split())
    if url.get_backend_name() == "sqlite":
        return DatabaseError(f"{url.database} cannot be used as a database: {said}", "check what it is, and whose")
    where = url.set(drivername=url.get_backend_name()).render_as_string()
    return DatabaseError(
        f"the database {where} cannot be used: {said}",
        "check storage.database_url, that PostgreSQL runs there, and that it lets this user in",
    )


def _prepare_sqlite(engine: AsyncEngine, begin: str) -> None:
    """Write-ahead log, foreign keys, and transactions that begin when SQLAlchemy says so rather than Python's driver.

    A writer takes its lock at once: one that reads first and then writes could find that somebody else has written.
    """

    @event.listens_for(engine.sync_engine, "connect")
    def connect(connection: Any, _: Any) -> None:
        connection.isolation_level = None
        cursor = connection.cursor()
        for pragma in PRAGMAS:
            cursor.execute(f"PRAGMA {pragma}")
        cursor.close()

    @event.listens_for(engine.sync_engine, "begin")
    def start(connection: Connection) -> None:
        connection.exec_driver_sql(begin)
