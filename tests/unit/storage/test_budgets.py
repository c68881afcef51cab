"""Budgets: which of them count a request, and how they stand in the windows they are of."""

from __future__ import annotations

from decimal import Decimal

import pytest

from kleinbild.core.errors import RequestError
from kleinbild.storage import budgets
from kleinbild.storage.budgets import REMEMBERED_S, Budgets, window_end, window_start
from kleinbild.storage.database import Database
from kleinbild.storage.ledger import Ledger
from tests.unit.storage.money import NOON, Clock, a_budget, an_attempt, put, standing

pytestmark = pytest.mark.anyio
DAY = 24 * 3600


async def test_a_budget_comes_back_as_it_was(database: Database) -> None:
    given = a_budget("bud_1", "0.000000001", window="30d", key="k", project="p", model="m", alerts=(Decimal("0.25"),))
    other = a_budget("bud_2", "1000000000", alerts=())
    await put(database, other, given)
    async with database.read() as connection:
        assert await budgets.listed(connection) == [given, other]
        assert await budgets.find(connection, "bud_1") == given
        assert await budgets.find(connection, "bud_3") is None
    assert (given.scope, other.scope) == ("key+project+model", "all")


async def test_those_count_a_request_that_match_it_in_all_they_say(database: Database) -> None:
    await put(
        database,
        a_budget("all"),
        a_budget("mine", key="key_2"),
        a_budget("above", key="key_1"),
        a_budget("others", key="key_3"),
        a_budget("project", project="p"),
        a_budget("other project", project="q"),
        a_budget("model", model="m"),
        a_budget("mine, model", key="key_2", model="m"),
        a_budget("mine, other model", key="key_2", model="n"),
        a_budget("project, model", project="p", model="m"),
        a_budget("other project, model", project="q", model="m"),
        a_budget("everything", key="key_1", project="p", model="m"),
    )
    found = await Budgets(database).for_call(("key_2", "key_1"), "p", "m")
    assert {budget.id for budget in found} == {
        "all",
        "mine",
        "above",
        "project",
        "model",
        "mine, model",
        "project, model",
        "everything",
    }
    assert len(found) == 8


async def test_a_new_budget_holds_within_seconds_and_at_once_where_it_was_made(database: Database) -> None:
    clock = Clock()
    known = Budgets(database, clock)
    assert await known.for_call(("key_1",), "p", "m") == ()
    (budget,) = await put(database, a_budget())
    assert await known.for_call(("key_1",), "p", "m") == ()
    clock.now += REMEMBERED_S
    assert await known.for_call(("key_1",), "p", "m") == (budget,)
    (cut,) = await put(database, a_budget(amount="0.5"))
    known.forget()
    assert await known.for_call(("key_1",), "p", "m") == (cut,)


async def test_how_a_budget_stands_is_of_its_window_of_now(database: Database) -> None:
    (budget,) = await put(database, a_budget(amount="1", window="1h"))
    ledger = Ledger(database, Clock())
    for number in (1, 2):
        await ledger.reserve(an_attempt(f"att_{number}", "0.04"), (budget,))
    await ledger.settle("att_1", "done", Decimal("0.03"))
    now = await standing(database, budget, NOON + 3599)
    assert (now.spent, now.reserved, now.remaining) == (Decimal("0.03"), Decimal("0.04"), Decimal("0.93"))
    assert now.resets_at == NOON + 3600
    later = await standing(database, budget, NOON + 3600)
    assert (later.spent, later.remaining, later.resets_at) == (Decimal(0), Decimal(1), NOON + 7200)


async def test_what_was_spent_of_a_removed_budget_is_forgotten(database: Database) -> None:
    (budget,) = await put(database, a_budget())
    ledger = Ledger(database, Clock())
    await ledger.reserve(an_attempt(), (budget,))
    async with database.write() as connection:
        assert await budgets.remove(connection, budget.id)
        assert not await budgets.remove(connection, budget.id)
    await put(database, budget)
    await ledger.settle("att_1", "done", Decimal("0.03"))
    assert (await standing(database, budget)).spent == 0


@pytest.mark.parametrize(
    ("window", "start", "end"),
    [
        (None, 0, None),
        ("1h", NOON, NOON + 3600),
        ("1d", NOON - DAY / 2, NOON + DAY / 2),
        ("month", NOON - 14.5 * DAY, NOON + 16.5 * DAY),
    ],
)
def test_windows_follow_the_clock_in_utc(window: str | None, start: float, end: float | None) -> None:
    assert window_start(window, NOON + 1800.5) == start
    assert window_end(window, int(start)) == end
    if end is not None:
        assert window_start(window, end) == end
        assert window_start(window, end - 0.001) == start


def test_a_month_ends_with_the_year() -> None:
    december = 1_796_083_200  # 2026-12-01
    assert window_start("month", december + 30.5 * DAY) == december
    assert window_end("month", december) == december + 31 * DAY


@pytest.mark.parametrize("window", ["", "0d", "1w", "30", "d", "1.5h", "367d", "9999h", "30d ", "Month"])
def test_a_window_that_is_none_is_refused(window: str) -> None:
    with pytest.raises(RequestError, match="window"):
        a_budget(window=window)


@pytest.mark.parametrize("window", ["1h", "999h", "366d", "month"])
def test_windows_up_to_a_year_are_taken(window: str) -> None:
    assert a_budget(window=window).window == window


def test_a_budget_below_nothing_and_alerts_of_nothing_are_refused() -> None:
    with pytest.raises(RequestError, match="-1 dollars"):
        a_budget(amount="-1")
    for alerts in ((Decimal(0),), (Decimal(11),), tuple(Decimal(n) / 1000 for n in range(1, 100))):
        with pytest.raises(RequestError, match="alerts"):
            a_budget(alerts=alerts)
