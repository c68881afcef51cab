"""Attempts and budgets to try the ledger with."""

from __future__ import annotations

from dataclasses import dataclass
from decimal import Decimal

from kleinbild.storage import budgets
from kleinbild.storage.budgets import Budget, Standing
from kleinbild.storage.database import Database
from kleinbild.storage.ledger import Attempt

NOON = 1_800_014_400.0  # of 2027-01-15, in UTC


@dataclass
class Clock:
    now: float = NOON

    def __call__(self) -> float:
        return self.now


def an_attempt(id: str = "att_1", reserved: str = "0.04", **changed) -> Attempt:  # noqa: A002
    values = {
        "id": id,
        "job_id": "job_1",
        "part": 0,
        "number": 1,
        "deployment": "klein-fal",
        "provider": "fal",
        "kind": "fal",
        "model": "flux-2-klein",
        "provider_model": "fal-ai/flux-2/klein",
        "task": "image.generate",
        "caller": "key_1",
        "project": "p",
        "first": 0,
        "count": 1,
        "reserved": Decimal(reserved),
        "quoted": Decimal("0.03"),
        "price_version": "2026-11",
        "hedged": False,
        "megapixels": Decimal("1.048576"),
        "created_at": NOON,
    }
    return Attempt(**{**values, **changed})


def a_budget(id: str = "bud_1", amount: str = "1", **changed) -> Budget:  # noqa: A002
    return Budget(id, Decimal(amount), **changed)


async def put(database: Database, *wanted: Budget) -> tuple[Budget, ...]:
    async with database.write() as connection:
        for budget in wanted:
            await budgets.put(connection, budget)
    return wanted


async def standing(database: Database, budget: Budget, now: float = NOON) -> Standing:
    async with database.read() as connection:
        return (await budgets.standing(connection, [budget], now))[0]


async def left(database: Database, budget: Budget, now: float = NOON) -> tuple[Decimal, Decimal]:
    """Spent and reserved."""
    found = await standing(database, budget, now)
    return found.spent, found.reserved
