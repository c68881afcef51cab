"""The servers that use one PostgreSQL database: who lives, and what one that died has left to the others.

Each has a number, and while it lives an advisory lock of that number, held by a session that does nothing else: it ends
with the session, however the server ends. Jobs, attempts and deliveries say whose they are; whoever removes the row of a
dead server takes them over in the same transaction, so that each gets one heir.

(A SQLite database is in a data folder, which has a lock of its own: its one server is number 0, and its own heir.)
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import asdict, dataclass

from sqlalchemy import ColumnElement, Table, delete, func, select, text, update
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine
from sqlalchemy.pool import NullPool

from kleinbild.core.errors import DatabaseError
from kleinbild.core.jobs import FINAL
from kleinbild.storage import tunings
from kleinbild.storage.database import Database
from kleinbild.storage.dialects import insert_into
from kleinbild.storage.schema import deliveries, fine_tuning_jobs, jobs, open_attempts, servers

ALONE = 0
NUM_SLOTS = 64  # servers at once; the id of an event tells by its rest which of them kept it
UNSHARED = int.from_bytes(b"kleinbil")  # the lock of versions that want a database to themselves
NUMBERS, SLOTS, TURNS = (int.from_bytes(name) for name in (b"kbn", b"kbs", b"kbt"))  # kinds of locks
WAIT_SECONDS = 3.0  # for a server that was killed just now, whose session PostgreSQL has yet to end
CHECK_SECONDS = 1.0
KEEPALIVES = (
    "idle = 10",
    "interval = 5",
    "count = 3",
)  # seconds; else a machine that vanished keeps its lock for hours
_HELD = """
SELECT FROM pg_locks WHERE locktype = 'advisory' AND objsubid = 2 AND granted AND classid = :numbers
AND database = (SELECT oid FROM pg_database WHERE datname = current_database()) AND objid = servers.number::bigint::oid
"""
_DEAD = text(f"SELECT number FROM servers WHERE NOT EXISTS ({_HELD}) ORDER BY number")  # noqa: S608
_LIVING = text(f"SELECT number, secret, blobs FROM servers WHERE EXISTS ({_HELD}) ORDER BY number")  # noqa: S608


@dataclass(frozen=True, slots=True)
class Member:
    """A server and what it must have in common with the others: `secret`, a digest of its own, and the place of `blobs`."""

    number: int
    secret: str
    blobs: str | None


@dataclass(frozen=True, slots=True)
class Left:
    """The ids of what a server has not ended."""

    jobs: tuple[str, ...] = ()
    attempts: tuple[str, ...] = ()
    deliveries: tuple[str, ...] = ()
    tunings: tuple[str, ...] = ()


@dataclass(slots=True, eq=False)
class Life:
    """This server's. `number` is its own alone among those that live."""

    number: int
    _database: Database
    _member: Member | None = None
    _session: AsyncConnection | None = None  # has the lock; None while there is none

    @property
    def slot(self) -> int:
        return self.number % NUM_SLOTS

    async def join(self, secret: str, blobs: str | None) -> list[Member]:
        """From now on what it begins is its own, and others know of it. Those who live, but for itself."""
        if self.number == ALONE:
            return []
        self._member = Member(self.number, secret, blobs)
        async with self._database.write() as connection:
            await self._enter(connection)
        async with self._database.read() as connection:
            return [each for each in await living(connection) if each.number != self.number]

    async def hold(self, engine: AsyncEngine) -> None:
        """For ever. A session that PostgreSQL ended, as when it starts again, is followed by another."""
        while True:
            await asyncio.sleep(CHECK_SECONDS)
            try:
                if self._session is None:
                    self._session = await self._again(engine)
                else:
                    await self._session.execute(select(1))
            except DBAPIError:
                await self.end()

    async def end(self) -> None:
        session, self._session = self._session, None
        if session is not None:
            await session.close()

    async def _again(self, engine: AsyncEngine) -> AsyncConnection | None:
        """None while PostgreSQL has yet to notice that the session before is gone."""
        connection = await _connected(engine)
        try:
            if await _locked(connection, NUMBERS, self.number):
                await connection.execute(select(func.pg_try_advisory_lock_shared(UNSHARED)))
                await _locked(connection, SLOTS, self.slot)
                await self._enter(connection)
                return connection
        except BaseException:
            await connection.close()
            raise
        await connection.close()
        return None

    async def _enter(self, connection: AsyncConnection) -> None:
        """Its row; there may be none any more, if it was taken for dead."""
        if self._member is not None:
            row = {**asdict(self._member), "started_at": time.time()}
            await connection.execute(insert_into(connection, servers).values(row).on_conflict_do_nothing())


@asynccontextmanager
async def live(database: Database) -> AsyncIterator[Life]:
    """Raises DatabaseError where there are too many servers, or one that wants the database to itself."""
    if database.writer.dialect.name != "postgresql":
        yield Life(ALONE, database)
        return
    engine = create_async_engine(database.writer.url, poolclass=NullPool, isolation_level="AUTOCOMMIT")
    try:
        life = await _begun(engine, database)
        holding = asyncio.create_task(life.hold(engine))
        try:
            yield life
        finally:
            holding.cancel()
            with suppress(asyncio.CancelledError):
                await holding
            await life.end()
    finally:
        await engine.dispose()


async def living(connection: AsyncConnection) -> list[Member]:
    if connection.dialect.name != "postgresql":
        return []
    return [Member(*row) for row in await connection.execute(_LIVING, {"numbers": NUMBERS})]


async def without_lock(connection: AsyncConnection) -> list[int]:
    """Those that have died, or whose session has ended a moment ago and is followed by another.

    A server takes its lock before it writes its row, and locks are looked at after rows: none is missed.
    """
    return list(await connection.scalars(_DEAD, {"numbers": NUMBERS}))


async def take_over(connection: AsyncConnection, dead: int, by: int) -> Left:
    """All that `dead` has left is `by`'s from now on; nothing if another was quicker, for whom this waits."""
    await connection.execute(delete(servers).where(servers.c.number == dead))
    return await handed_over(connection, dead, by)


async def handed_over(connection: AsyncConnection, before: int, by: int) -> Left:
    """What `before` has not ended, which is `by`'s from now on."""
    unsent = deliveries.c.delivered_at.is_(None) & deliveries.c.given_up_at.is_(None)

    async def given(table: Table, key: str, *which: ColumnElement[bool]) -> tuple[str, ...]:
        change = update(table).where(table.c.server == before, *which).values(server=by).returning(table.c[key])
        return tuple(sorted(await connection.scalars(change)))

    return Left(
        await given(jobs, "id", jobs.c.status.not_in(FINAL)),
        await given(open_attempts, "attempt_id"),
        await given(deliveries, "id", unsent),
        await given(fine_tuning_jobs, "id", fine_tuning_jobs.c.status.not_in(tunings.FINAL)),
    )


async def turn(connection: AsyncConnection, of: int, *, wait: bool) -> bool:
    """Until the transaction's end no other server has the turn `of` this; with `wait` once another's is over."""
    if connection.dialect.name != "postgresql":  # one writer has it anyway
        return True
    if not wait:
        return bool(await connection.scalar(select(func.pg_try_advisory_xact_lock(TURNS, of))))
    await connection.execute(select(func.pg_advisory_xact_lock(TURNS, of)))
    return True


async def _connected(engine: AsyncEngine) -> AsyncConnection:
    connection = await engine.connect()
    try:
        for setting in KEEPALIVES:
            await connection.execute(text(f"SET tcp_keepalives_{setting}"))
    except BaseException:
        await connection.close()
        raise
    return connection


async def _begun(engine: AsyncEngine, database: Database) -> Life:
    connection = await _connected(engine)
    try:
        await _share(connection)
        return Life(await _first(connection), database, _session=connection)
    except BaseException:
        await connection.close()
        raise


async def _first(connection: AsyncConnection) -> int:
    """A number that nobody had, in a slot that nobody has."""
    for slot in random.sample(range(NUM_SLOTS), NUM_SLOTS):
        if not await _locked(connection, SLOTS, slot):
            continue
        while not await _locked(connection, NUMBERS, number := _drawn(slot)):
            pass
        return number
    raise DatabaseError(
        f"{NUM_SLOTS} servers are running on the database {_where(connection)}", "more cannot share one"
    )


def _drawn(slot: int) -> int:
    return random.randrange(1, 2**31 // NUM_SLOTS) * NUM_SLOTS + slot


async def _share(connection: AsyncConnection) -> None:
    loop = asyncio.get_running_loop()
    until = loop.time() + WAIT_SECONDS
    while not await connection.scalar(select(func.pg_try_advisory_lock_shared(UNSHARED))):
        if loop.time() > until:
            raise DatabaseError(
                f"a server of an older version is running on the database {_where(connection)}, and shares it with none",
                "stop it first",
            )
        await asyncio.sleep(WAIT_SECONDS / 10)


async def _locked(connection: AsyncConnection, kind: int, number: int) -> bool:
    return bool(await connection.scalar(select(func.pg_try_advisory_lock(kind, number))))


def _where(connection: AsyncConnection) -> str:
    return connection.engine.url.set(drivername="postgresql").render_as_string()
