"""Budgets: what may be spent, by whom and on what, in which time. They are kept to in `storage.ledger`."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import Decimal
from itertools import product
from typing import Any

from sqlalchemy import Row, and_, delete, select
from sqlalchemy.ext.asyncio import AsyncConnection

from kleinbild.core.errors import RequestError
from kleinbild.core.money import nanos, of_nanos
from kleinbild.storage.database import Database
from kleinbild.storage.dialects import insert_into
from kleinbild.storage.schema import budget_windows, budgets, reservations

REMEMBERED_S = 5.0
ALERTS = (Decimal("0.5"), Decimal("0.8"), Decimal(1))
_LENGTHS = {"h": 3600, "d": 24 * 3600}
_WINDOW = re.compile(r"([1-9][0-9]{0,3})([hd])")


@dataclass(frozen=True, slots=True)
class Budget:
    """`amount` dollars for all requests that match what is given of `key` (an id; keys below it count), `project` and
    `model`; with none given, for all.

    `window` is after how much time it is there anew: "1h", "30d" (whole hours or days, counted from 1970, in UTC),
    "month" (of the calendar, in UTC), None for never. `alerts` are the fractions of it that are told of once spent.
    Raises RequestError.
    """

    id: str
    amount: Decimal
    window: str | None = None
    key: str | None = None
    project: str | None = None
    model: str | None = None
    alerts: tuple[Decimal, ...] = ALERTS

    def __post_init__(self) -> None:
        if self.amount < 0:
            raise RequestError(f"a budget of {self.amount} dollars is none", "give 0 or more")
        if not (self.window in (None, "month") or _WINDOW.fullmatch(self.window)) or _is_long(self.window):
            raise RequestError(
                f"a budget's window cannot be {self.window!r}", "write 1h, 30d, month, a year at most, or nothing"
            )
        if not all(0 < alert <= 10 for alert in self.alerts) or len(alerts_text(self.alerts)) > 128:
            raise RequestError("a budget's alerts must be a few fractions of it", "write such as 0.5, 0.8, 1")

    @property
    def scope(self) -> str:
        """Of what it is: "key", "project+model", …; "all"."""
        return "+".join(name for name in ("key", "project", "model") if getattr(self, name) is not None) or "all"


@dataclass(frozen=True, slots=True)
class Standing:
    """A budget in its window of now. `remaining` is less than 0 where it was cut after it was spent."""

    budget: Budget
    spent: Decimal
    reserved: Decimal
    resets_at: float | None

    @property
    def remaining(self) -> Decimal:
        return self.budget.amount - self.spent - self.reserved


class Budgets:
    """All of them, remembered for a few seconds: a new one holds at once in this process, in others within those.

    What is left of them is never remembered.
    """

    def __init__(self, database: Database, clock: Callable[[], float] = time.time) -> None:
        self._database, self._clock = database, clock
        self._found: dict[tuple[str | None, str | None, str | None], list[Budget]] = {}
        self._until = 0.0
        self._reading = asyncio.Lock()

    async def for_call(self, keys: Iterable[str], project: str, model: str) -> tuple[Budget, ...]:
        """Those that count a request of `keys` (the caller's own and those above it) for `model`."""
        if self._clock() >= self._until:
            async with self._reading:
                if self._clock() >= self._until:
                    await self._read()
        if not self._found:
            return ()
        asked = product((None, *dict.fromkeys(keys)), (None, project), (None, model))
        return tuple(budget for subject in asked for budget in self._found.get(subject, ()))

    def forget(self) -> None:
        """After a change of budgets."""
        self._until = 0.0

    async def _read(self) -> None:
        until = self._clock() + REMEMBERED_S
        async with self._database.read() as connection:
            everything = await listed(connection)
        self._found = {}
        for budget in everything:
            self._found.setdefault((budget.key, budget.project, budget.model), []).append(budget)
        self._until = until


async def put(connection: AsyncConnection, budget: Budget) -> None:
    """Adds it, or changes the one of that id; what was spent of it stays spent."""
    values = {
        "key_id": budget.key,
        "project": budget.project,
        "model": budget.model,
        "amount_nanos": nanos(budget.amount),
        "period": budget.window,
        "alerts": alerts_text(budget.alerts),
    }
    new = insert_into(connection, budgets).values(id=budget.id, **values)
    await connection.execute(new.on_conflict_do_update(index_elements=["id"], set_=values))


async def remove(connection: AsyncConnection, budget_id: str) -> bool:
    """Whether there was one. What is reserved of it is free, and what was spent forgotten; attempts stay."""
    await connection.execute(delete(reservations).where(reservations.c.budget_id == budget_id))
    await connection.execute(delete(budget_windows).where(budget_windows.c.budget_id == budget_id))
    return (await connection.execute(delete(budgets).where(budgets.c.id == budget_id))).rowcount > 0


async def find(connection: AsyncConnection, budget_id: str) -> Budget | None:
    row = (await connection.execute(select(budgets).where(budgets.c.id == budget_id))).first()
    return None if row is None else _budget(row)


async def listed(connection: AsyncConnection) -> list[Budget]:
    return [_budget(row) for row in await connection.execute(select(budgets).order_by(budgets.c.id))]


async def standing(connection: AsyncConnection, wanted: Sequence[Budget], now: float) -> list[Standing]:
    """How each of `wanted` stands now, in their order."""
    return [await _standing(connection, budget, now) for budget in wanted]


def window_start(window: str | None, now: float) -> int:
    """When the window that `now` is in began; 0 if it never ends."""
    if window is None:
        return 0
    if window == "month":
        day = datetime.fromtimestamp(now, UTC)
        return int(datetime(day.year, day.month, 1, tzinfo=UTC).timestamp())
    return int(now // _seconds(window)) * _seconds(window)


def window_end(window: str | None, start: int) -> float | None:
    """When it will be there anew; None for never."""
    if window is None:
        return None
    if window == "month":
        day = datetime.fromtimestamp(start, UTC)
        return datetime(day.year + day.month // 12, day.month % 12 + 1, 1, tzinfo=UTC).timestamp()
    return float(start + _seconds(window))


def alerts_text(alerts: Sequence[Decimal]) -> str:
    return " ".join(f"{alert:f}" for alert in alerts)


def alerts_of(text: str) -> tuple[Decimal, ...]:
    return tuple(Decimal(alert) for alert in text.split())


async def _standing(connection: AsyncConnection, budget: Budget, now: float) -> Standing:
    start = window_start(budget.window, now)
    same = and_(budget_windows.c.budget_id == budget.id, budget_windows.c.window_start == start)
    row = (await connection.execute(select(budget_windows).where(same))).first()
    spent, reserved = (0, 0) if row is None else (row.spent_nanos, row.reserved_nanos)
    return Standing(budget, of_nanos(spent), of_nanos(reserved), window_end(budget.window, start))


def _is_long(window: str | None) -> bool:
    """Longer than its sums are kept for sure."""
    return window not in (None, "month") and _seconds(window) > 366 * _LENGTHS["d"]


def _seconds(window: str) -> int:
    return int(window[:-1]) * _LENGTHS[window[-1]]


def _budget(row: Row[Any]) -> Budget:
    return Budget(
        row.id, of_nanos(row.amount_nanos), row.period, row.key_id, row.project, row.model, alerts_of(row.alerts)
    )
