"""Small changes that many tasks make at the same time: on SQLite in one transaction, on PostgreSQL in one each.

SQLite has one writer, and what a commit costs is the wait for the disk. So whoever comes while one transaction is under
way waits for the next, which is of all who wait. If a change fails, all of them are made once more, each in a savepoint of its
own: it leaves no trace, and the others be. They are told once it is committed. All of a transaction runs in one thread, in one go.
"""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any, Protocol, TypeVar

from sqlalchemy import Connection, TextClause, text

from kleinbild.storage.database import Database

T = TypeVar("T")
MAX_TOGETHER = 256
LATER_SECONDS = 0.05
Parameters = Mapping[str, Any]


class Found(Protocol):
    """`rowcount` is of what was changed, and of no use where rows are returned."""

    @property
    def rowcount(self) -> int: ...

    def fetchall(self) -> Sequence[Any]: ...


Run = Callable[[str, Parameters], Found]
"""Runs one statement, in the words that both databases know, with parameters as `:name`."""
Change = Callable[[Run], T]
"""Made in the database alone, as it may be made twice."""
After = Callable[[T], object]


class Commits:
    """`make` runs to its end even if the task that waits for it is cancelled. One event loop alone uses it."""

    def __init__(self, database: Database, *, together: bool = True) -> None:
        self._database = database
        self.dialect = database.writer.dialect.name
        self._straight = database.straight if together else None
        self._waiting: list[_Asked] = []
        self._tasks: set[asyncio.Task[Any]] = set()
        self._committing = False
        self._later: asyncio.TimerHandle | None = None

    @property
    def in_order(self) -> bool:
        """Whether what is begun first is committed first, or together: on SQLite."""
        return self._straight is not None

    async def make(self, change: Change[T], *, durable: bool = True, after: After[T] | None = None) -> T:
        """What `change` gives, once it is committed, or raises, and then nothing of it is kept. `after` is done with it right
        after that, in a thread; what that raises is raised, too."""
        return await asyncio.shield(self.begin(change, durable=durable, after=after))

    def begin(
        self, change: Change[T], *, durable: bool = True, alone: bool = True, after: After[T] | None = None
    ) -> asyncio.Future[T]:
        """`make` for whoever wants to know what came of it, even if he is cancelled. On SQLite, what is begun
        first is committed first, or together.

        Unless it is `durable`, a commit survives the death of this process at once, and that of the machine a little later:
        SQLite does not wait for the disk. (PostgreSQL waits, as it is set up to.) With `alone` False it waits for the next
        that is begun, or for `flush`, to be committed with it; not for long.
        """
        if self._straight is None:
            return self.start(self._alone(change, after))
        future: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        self._waiting.append(_Asked(change, future, durable, after))
        if alone:
            self.flush()
        elif self._later is None:
            self._later = asyncio.get_running_loop().call_later(LATER_SECONDS, self.flush)
        return future

    def flush(self) -> None:
        """Commits what waits."""
        if self._later is not None:
            self._later.cancel()
            self._later = None
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

    async def _alone(self, change: Change[T], after: After[T] | None) -> T:
        async with self._database.write() as connection:
            outcome = await connection.run_sync(lambda synchronous: change(_running(synchronous)))
        if after is not None:
            await asyncio.to_thread(after, outcome)
        return outcome

    async def _commit_all(self) -> None:
        try:
            while self._waiting:
                await self._commit()
        finally:
            self._committing = False

    async def _commit(self) -> None:
        assert self._straight is not None
        taken: list[_Asked] = []
        try:
            async with self._database.turn:
                taken, self._waiting = self._waiting[:MAX_TOGETHER], self._waiting[MAX_TOGETHER:]
                outcomes = await self._straight.run(partial(_made, taken))
        except BaseException as error:
            if not taken:  # there was no turn to be had
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
    after: After[Any] | None


def _made(asked: Sequence[_Asked], connection: sqlite3.Connection) -> list[Any]:
    """What each gives, of one transaction; in place of what failed, the error."""
    durable = any(each.durable for each in asked)
    connection.execute(f"PRAGMA synchronous={'FULL' if durable else 'NORMAL'}")
    try:
        outcomes = _committed(connection, lambda: [each.change(connection.execute) for each in asked])
    except Exception:
        if len(asked) == 1:
            raise
        outcomes = _committed(connection, lambda: [_kept(connection, each.change) for each in asked])
    return [_followed(each, outcome) for each, outcome in zip(asked, outcomes, strict=True)]


def _committed(connection: sqlite3.Connection, work: Callable[[], T]) -> T:
    connection.execute("BEGIN IMMEDIATE")
    try:
        outcome = work()
        connection.execute("COMMIT")
    except BaseException:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        raise
    return outcome


def _followed(asked: _Asked, outcome: Any) -> Any:
    if asked.after is None or isinstance(outcome, Exception):
        return outcome
    try:
        asked.after(outcome)
    except Exception as error:  # noqa: BLE001  # whatever it is, it is the asker's
        return error
    return outcome


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
