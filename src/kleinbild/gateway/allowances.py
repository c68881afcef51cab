"""The budgets of keys that were made here, and any budget as it is shown: the API and the command line have it from here."""

from __future__ import annotations

from decimal import Decimal
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator
from sqlalchemy.ext.asyncio import AsyncConnection

from kleinbild.core.errors import RequestError
from kleinbild.core.money import written
from kleinbild.storage import budgets
from kleinbild.storage.budgets import Budget, Standing

MADE = "key:"
"""Begins the ids of budgets that are given to keys here, unlike those of the configuration."""
Dollars = Annotated[str, Field(pattern=r"^[0-9]{1,9}(\.[0-9]{1,9})?$", description="US dollars, such as 5.00")]
Window = Annotated[str, Field(pattern=r"^([1-9][0-9]{0,3}[hd]|month)$", description="such as 12h, 30d, month")]


class WantedBudget(BaseModel):
    """So many dollars in each `window`; null is for good."""

    model_config = ConfigDict(extra="forbid")

    amount: Dollars
    window: Window | None = None

    @model_validator(mode="after")
    def _is_one(self) -> WantedBudget:
        try:
            self.of("")
        except RequestError as error:
            raise ValueError(f"{error.message}; {error.hint}") from error
        return self

    def of(self, key_id: str) -> Budget:
        """The budget of that key. Raises RequestError."""
        return Budget(MADE + key_id, Decimal(self.amount), self.window, key=key_id)


class StandingObject(BaseModel):
    """A budget in its window of now, in US dollars; `resets_at` is null if it is for good."""

    amount: str
    window: str | None
    spent: str
    reserved: str
    remaining: str
    resets_at: int | None


class BudgetObject(StandingObject):
    """`subject` is what the `scope` names, such as a key's id; with several, they are joined by +."""

    id: str
    object: Literal["budget"]
    scope: str
    subject: str | None


async def give(connection: AsyncConnection, key_id: str, wanted: WantedBudget | None) -> None:
    """Gives the key that budget, None takes it away. What was spent of the one before counts on in the same window."""
    if wanted is None:
        await budgets.remove(connection, MADE + key_id)
    else:
        await budgets.put(connection, wanted.of(key_id))


async def standings(connection: AsyncConnection, now: float) -> dict[str, Standing]:
    """Of the keys that were given a budget here, by their ids."""
    made = [each for each in await budgets.listed(connection) if each.id.startswith(MADE)]
    found = await budgets.standing(connection, made, now)
    return {each.budget.id.removeprefix(MADE): each for each in found}


async def standing_of(connection: AsyncConnection, key_id: str, now: float) -> Standing | None:
    budget = await budgets.find(connection, MADE + key_id)
    return None if budget is None else (await budgets.standing(connection, [budget], now))[0]


def standing_object(standing: Standing) -> dict[str, Any]:
    return {
        "amount": written(standing.budget.amount),
        "window": standing.budget.window,
        "spent": written(standing.spent),
        "reserved": written(standing.reserved),
        "remaining": written(standing.remaining),
        "resets_at": None if standing.resets_at is None else int(standing.resets_at),
    }


def budget_object(standing: Standing) -> dict[str, Any]:
    budget = standing.budget
    subjects = [each for each in (budget.key, budget.project, budget.model) if each is not None]
    return {
        "id": budget.id,
        "object": "budget",
        "scope": budget.scope,
        "subject": "+".join(subjects) or None,
        **standing_object(standing),
    }
