"""Small changes that many tasks make at the same time: on SQLite in one transaction, on PostgreSQL in one each.

SQLite has one writer, and what a commit costs is the wait for the disk. So whoever comes while one transaction is under
way waits for the next, which is of all who wait: each change in a savepoint of its own, so that one that fails leaves no
trace and the others be. They are told once it is committed. All of a transaction runs in the driver's thread, in one go.
"""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Protocol, TypeVar

from sqlalchemy import Connection, TextClause, text

from kleinbild.storage.database import Database

T = TypeVar("T")
MAX_TOGETHER = 256
Parameters = Mapping[str, Any]


class Found(Protocol):
    """`rowcount` is of what was changed, and of no use where rows are returned."""

    @property
    def rowcount(self) -> int: ...

    def fetchall(self) -> Sequence[Any]: ...


Run = Callable[[str, Parameters], Found]
"""Runs one statement, in the words that both databases know, with parameters as `:name`."""
Change = Callable[[Run], T]


class Commits:
    """`make` runs to its end even if the task that waits for it is cancelled. One event loop alone uses it."""

    def __init__(self, database: Database, *, together: bool = True) -> None:
        self._database = database
        self.dialect = database.writer.dialect.name
        self._together = together and self.dialect == "sqlite"
        self._waiting: list[_Asked] = []
        self._tasks: set[asyncio.Task[Any]] = set()
        self._committing = False

    async def make(self, change: Change[T], *, durable: bool = True) -> T:
        """What `change` gives, once it is committed, or raises, and then nothing of it is kept."""
        return await asyncio.shield(self.begin(change, durable=durable))

    def begin(self, change: Change[T], *, durable: bool = True, alone: bool = True) -> asyncio.Future[T]:
        """`make` for whoever wants to know what came of it, even if he is cancelled. What is begun first is committed first,
        or together.

        Unless it is `durable`, a commit survives the death of this process at once, and that of the machine a little later:
        SQLite does not wait for the disk. (PostgreSQL waits, as it is set up to.) With `alone` False it waits for the next
        that is begun, or for `flush`, to be committed with it.
        """
        if not self._together:
            return self.start(self._alone(change))
        future: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        self._waiting.append(_Asked(change, future, durable))
        if alone:
            self.flush()
        return future

    def flush(self) -> None:
        """Commits what waits."""
        if self._waiting and not self._committing:
            self._committing = True
            self.start(self._commit_all())

    def start(self, coroutine: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        """A task that `drain` waits for."""
        task = asyncio.create_task(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def drain(self) -> None:
        """Waits for all that is under way."""
        self.flush()
        while self._tasks:
            await asyncio.wait(set(self._tasks))

    async def _alone(self, change: Change[T]) -> T:
        async with self._database.write() as connection:
            return await connection.run_sync(lambda synchronous: change(_running(synchronous)))

    async def _commit_all(self) -> None:
        try:
            while self._waiting:
                await self._commit()
        finally:
            self._committing = False

    async def _commit(self) -> None:
        taken: list[_Asked] = []
        try:
            async with self._database.writer.connect() as connection:
                taken, self._waiting = self._waiting[:MAX_TOGETHER], self._waiting[MAX_TOGETHER:]
                driver = (await connection.get_raw_connection()).driver_connection
                changes = [each.change for each in taken]
                durable = any(each.durable for each in taken)
                # aiosqlite has no public way to have a function run in its thread.
                outcomes = await driver._execute(lambda: _made(driver._conn, changes, durable=durable))  # type: ignore[union-attr]  # noqa: SLF001
        except BaseException as error:
            if not taken:  # there was no transaction to be had
                taken, self._waiting = self._waiting, []
            _tell(taken, [error] * len(taken))
            if not isinstance(error, Exception):
                raise
        else:
            _tell(taken, outcomes)


@dataclass(frozen=True, slots=True)
class _Asked:
    change: Change[Any]
    future: asyncio.Future[Any]
    durable: bool


def _made(connection: sqlite3.Connection, changes: Sequence[Change[Any]], *, durable: bool) -> list[Any]:
    """What each gives, of one transaction; in place of what failed, the error."""
    if not durable:
        connection.execute("PRAGMA synchronous=NORMAL")
    try:
        connection.execute("BEGIN IMMEDIATE")
        try:
            outcomes = [_kept(connection, change) for change in changes]
            connection.execute("COMMIT")
        except BaseException:
            if connection.in_transaction:
                connection.execute("ROLLBACK")
            raise
    finally:
        if not durable:
            connection.execute("PRAGMA synchronous=FULL")
    return outcomes


def _kept(connection: sqlite3.Connection, change: Change[Any]) -> Any:
    connection.execute("SAVEPOINT change")
    try:
        outcome = change(connection.execute)
    except Exception as error:  # noqa: BLE001  # whatever it is, it is the asker's
        connection.execute("ROLLBACK TO change")
        outcome = error
    connection.execute("RELEASE change")
    return outcome


def _tell(taken: Sequence[_Asked], outcomes: Sequence[Any]) -> None:
    for asked, outcome in zip(taken, outcomes, strict=True):
        if asked.future.done():
            continue
        if isinstance(outcome, BaseException):
            asked.future.set_exception(outcome)
        else:
            asked.future.set_result(outcome)


def _running(connection: Connection) -> Run:
    return lambda statement, parameters: connection.execute(_clause(statement), parameters)


@lru_cache(maxsize=256)
def _clause(statement: str) -> TextClause:
    return text(statement)
