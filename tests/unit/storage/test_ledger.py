"""The ledger: nothing is spent beyond a budget, and every attempt ends once, on SQLite and PostgreSQL alike."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from dataclasses import replace
from decimal import Decimal
from pathlib import Path

import pytest
from sqlalchemy import text
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import create_async_engine

from kleinbild.storage import budgets
from kleinbild.storage.blobs import open_blobs
from kleinbild.storage.commits import MAX_TOGETHER
from kleinbild.storage.database import Database, Straight, open_database, sqlite_url
from kleinbild.storage.ledger import Alert, AttemptError, BudgetError, Entry, Ledger
from kleinbild.storage.retention import MONEY_SECONDS, sweep
from tests.unit.storage.money import NOON, Clock, a_budget, an_attempt, left, put, standing

pytestmark = pytest.mark.anyio
DAY = 24 * 3600.0


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def alerts() -> list[Alert]:
    return []


@pytest.fixture
def ledger(database: Database, clock: Clock, alerts: list[Alert]) -> Ledger:
    return Ledger(database, clock, alerts.append)


async def test_an_attempt_goes_through_its_states_and_keeps_what_it_learned(ledger: Ledger, clock: Clock) -> None:
    attempt = an_attempt(reserved="0.040000001", hedged=True, quoted=None)
    await ledger.reserve(attempt, ())
    assert await ledger.of_job("job_1") == [Entry(attempt, "sending")]
    await ledger.accepted(attempt.id, {"url": "https://q/1", "n": 2}, reported=Decimal("0.03"), request_id="r-1")
    await ledger.unknown(attempt.id, "the connection was cut")
    unknown = Entry(
        attempt,
        "unknown",
        {"url": "https://q/1", "n": 2},
        reported=Decimal("0.03"),
        detail="the connection was cut",
        request_id="r-1",
    )
    assert await ledger.unsettled() == [unknown]
    clock.now += 7
    assert await ledger.settle(attempt.id, "done", Decimal("0.031"), seconds=6.5)
    done = replace(unknown, state="done", cost=Decimal("0.031"), seconds=6.5, ended_at=NOON + 7)
    assert await ledger.of_job("job_1") == [done]
    assert await ledger.find(attempt.id) == done
    assert await ledger.unsettled() == []


async def test_what_is_set_aside_is_spent_or_free_again_in_all_of_its_budgets(
    ledger: Ledger, database: Database
) -> None:
    both = await put(database, a_budget("bud_1", "1"), a_budget("bud_2", "0.1", window="30d", project="p"))
    await ledger.reserve(an_attempt("att_1", "0.04"), both)
    await ledger.reserve(an_attempt("att_2", "0.04"), both)
    for budget in both:
        assert await left(database, budget) == (Decimal(0), Decimal("0.08"))
    await ledger.settle("att_1", "done", Decimal("0.03"))
    await ledger.settle("att_2", "failed_unbilled", Decimal(0))
    for budget in both:
        assert await left(database, budget) == (Decimal("0.03"), Decimal(0))


async def test_what_does_not_fit_leaves_nothing_behind(ledger: Ledger, database: Database) -> None:
    wide, narrow = await put(database, a_budget("bud_1", "1"), a_budget("bud_2", "0.05", window="1h"))
    await ledger.reserve(an_attempt("att_1", "0.04"), (narrow, wide))
    with pytest.raises(BudgetError) as refused:
        await ledger.reserve(an_attempt("att_2", "0.04"), (wide, narrow))
    told = refused.value
    assert (told.budget, told.remaining, told.wanted) == (narrow, Decimal("0.01"), Decimal("0.04"))
    assert told.resets_at == NOON + 3600
    assert "$0.04" in told.message
    assert "$0.01" in told.message
    assert await left(database, wide) == await left(database, narrow) == (Decimal(0), Decimal("0.04"))
    assert await ledger.find("att_2") is None
    await ledger.reserve(an_attempt("att_2", "0.01"), (wide, narrow))  # to the last cent


async def test_what_is_set_aside_is_rounded_up(ledger: Ledger, database: Database) -> None:
    (budget,) = await put(database, a_budget(amount="0.000000002"))
    await ledger.reserve(an_attempt("att_1", "0.0000000011"), (budget,))
    assert await left(database, budget) == (Decimal(0), Decimal("0.000000002"))


async def test_settling_twice_is_settling_once(ledger: Ledger, database: Database) -> None:
    (budget,) = await put(database, a_budget())
    await ledger.reserve(an_attempt(), (budget,))
    assert await ledger.settle("att_1", "done", Decimal("0.03"))
    assert not await ledger.settle("att_1", "failed_billed", Decimal("0.04"))
    await ledger.accepted("att_1", {"late": True})
    await ledger.unknown("att_1", "late")
    (entry,) = await ledger.of_job("job_1")
    assert (entry.state, entry.cost, entry.handle) == ("done", Decimal("0.03"), None)
    assert await left(database, budget) == (Decimal("0.03"), Decimal(0))


async def test_the_tables_themselves_allow_one_end(ledger: Ledger, database: Database) -> None:
    await ledger.reserve(an_attempt(), ())
    await ledger.settle("att_1", "done", Decimal("0.03"))
    with pytest.raises(IntegrityError):
        async with database.write() as connection:
            await connection.execute(
                text(
                    "INSERT INTO attempt_states (attempt_id, ordinal, state, at, cost_nanos, detail) "
                    "VALUES ('att_1', 2, 'failed_billed', 0, 1, '')"
                )
            )


async def test_more_than_was_set_aside_is_booked_as_it_is(ledger: Ledger, database: Database) -> None:
    (budget,) = await put(database, a_budget(amount="0.05"))
    await ledger.reserve(an_attempt(reserved="0.04"), (budget,))
    await ledger.settle("att_1", "done", Decimal("0.07"), reported=Decimal("0.07"))
    found = await standing(database, budget)
    assert (found.spent, found.reserved, found.remaining) == (Decimal("0.07"), Decimal(0), Decimal("-0.02"))
    (entry,) = await ledger.of_job("job_1")
    assert (entry.attempt.quoted, entry.reported) == (Decimal("0.03"), Decimal("0.07"))
    with pytest.raises(BudgetError):
        await ledger.reserve(an_attempt("att_2", "0"), (budget,))


async def test_all_attempts_of_a_job_stay_within_what_it_may_cost(ledger: Ledger) -> None:
    most = ("job_1", Decimal("0.10"))
    await ledger.reserve(an_attempt("att_1", "0.04"), (), within=most)
    await ledger.reserve(an_attempt("att_2", "0.04"), (), within=most)
    with pytest.raises(BudgetError) as refused:
        await ledger.reserve(an_attempt("att_3", "0.04"), (), within=most)
    assert (refused.value.budget, refused.value.remaining) == (None, Decimal("0.02"))
    await ledger.settle("att_1", "failed_billed", Decimal("0.01"))
    await ledger.reserve(an_attempt("att_3", "0.04"), (), within=most)
    await ledger.settle("att_2", "failed_unbilled", Decimal(0))
    await ledger.reserve(an_attempt("att_4", "0.05"), (), within=most)
    await ledger.reserve(an_attempt("att_5", "9", job_id="job_2"), (), within=("job_2", Decimal(9)))


async def test_a_window_that_has_rolled_over_is_settled_where_it_was_reserved(
    ledger: Ledger, database: Database, clock: Clock
) -> None:
    (budget,) = await put(database, a_budget(amount="0.05", window="1d"))
    await ledger.reserve(an_attempt("att_1", "0.04"), (budget,))
    clock.now += DAY
    await ledger.reserve(an_attempt("att_2", "0.05"), (budget,))  # there is all of it again
    await ledger.settle("att_1", "done", Decimal("0.03"))
    assert await left(database, budget, NOON) == (Decimal("0.03"), Decimal(0))
    assert await left(database, budget, NOON + DAY) == (Decimal(0), Decimal("0.05"))


async def test_a_budget_that_was_cut_or_removed_holds_as_it_is_now(ledger: Ledger, database: Database) -> None:
    old, gone = await put(database, a_budget("bud_1", "1"), a_budget("bud_2", "0"))
    await put(database, a_budget("bud_1", "0.01"))
    async with database.write() as connection:
        assert await budgets.remove(connection, "bud_2")
    with pytest.raises(BudgetError) as refused:
        await ledger.reserve(an_attempt(reserved="0.02"), (old, gone))
    assert refused.value.remaining == Decimal("0.01")
    await ledger.reserve(an_attempt(reserved="0.01"), (old, gone))
    async with database.write() as connection:
        await budgets.remove(connection, "bud_1")
    assert await ledger.settle("att_1", "done", Decimal("0.01"))


async def test_alerts_come_once_for_each_fraction(ledger: Ledger, database: Database, alerts: list[Alert]) -> None:
    (budget,) = await put(database, a_budget(amount="0.1", alerts=(Decimal("0.5"), Decimal("0.8"), Decimal(1))))
    for number, cost in enumerate(("0.04", "0.045", "0.01", "0.005")):
        await ledger.reserve(an_attempt(f"att_{number}", "0"), (budget,))
        await ledger.settle(f"att_{number}", "done", Decimal(cost))
    assert [(alert.budget_id, alert.fraction, alert.spent) for alert in alerts] == [
        ("bud_1", Decimal("0.5"), Decimal("0.085")),
        ("bud_1", Decimal("0.8"), Decimal("0.085")),
        ("bud_1", Decimal(1), Decimal("0.1")),
    ]


async def test_an_attempt_is_reserved_once_and_before_anything_else(ledger: Ledger) -> None:
    await ledger.reserve(an_attempt(), ())
    with pytest.raises(AttemptError, match="already"):
        await ledger.reserve(an_attempt(), ())
    with pytest.raises(AttemptError, match="no attempt att_2"):
        await ledger.settle("att_2", "done", Decimal(1))
    with pytest.raises(AttemptError, match="no attempt att_2"):
        await ledger.accepted("att_2", {})


async def test_what_is_free_has_no_cost(ledger: Ledger) -> None:
    await ledger.reserve(an_attempt(), ())
    for state, cost in (("failed_unbilled", "0.01"), ("done", "-0.01")):
        with pytest.raises(ValueError, match="cannot cost"):
            await ledger.settle("att_1", state, Decimal(cost))


async def test_of_many_at_once_as_many_get_through_as_there_is_money_for(ledger: Ledger, database: Database) -> None:
    both = await put(database, a_budget("bud_1", "0.10"), a_budget("bud_2", "1"))

    async def one(number: int) -> bool:
        try:
            await ledger.reserve(an_attempt(f"att_{number:02}", "0.01"), both if number % 2 else both[::-1])
        except BudgetError:
            return False
        return await ledger.settle(f"att_{number:02}", "done", Decimal("0.01"))

    assert sum(await asyncio.gather(*(one(number) for number in range(40)))) == 10
    for budget in both:
        assert await left(database, budget) == (Decimal("0.10"), Decimal(0))


async def test_a_job_attempted_twice_at_once_stays_within_what_it_may_cost(database: Database) -> None:
    """By two ledgers, as two processes have them."""
    ledgers = (Ledger(database), Ledger(database))
    attempts = [an_attempt(f"att_{number}", "0.04") for number in range(8)]
    asked = [
        ledgers[number % 2].reserve(one, (), within=("job_1", Decimal("0.1"))) for number, one in enumerate(attempts)
    ]
    outcomes = await asyncio.gather(*asked, return_exceptions=True)
    assert outcomes.count(None) == 2
    assert sum(isinstance(outcome, BudgetError) for outcome in outcomes) == 6


async def test_an_attempt_that_two_settle_ends_once(database: Database) -> None:
    (budget,) = await put(database, a_budget())
    ledgers = (Ledger(database), Ledger(database))
    await ledgers[0].reserve(an_attempt(), (budget,))
    ended = await asyncio.gather(*(ledger.settle("att_1", "done", Decimal("0.03")) for ledger in ledgers * 4))
    assert ended.count(True) == 1
    assert (await standing(database, budget, Clock()())).budget == budget
    async with database.read() as connection:
        assert (await connection.execute(text("SELECT spent_nanos, reserved_nanos FROM budget_windows"))).all() == [
            (30_000_000, 0)
        ]


async def test_one_that_is_cancelled_while_it_reserves_leaves_nothing_aside(ledger: Ledger, database: Database) -> None:
    (budget,) = await put(database, a_budget())
    for number, turns in enumerate((0, 1, 2, 3, 5, 8, 13, 21)):
        task = asyncio.create_task(ledger.reserve(an_attempt(f"att_{number}"), (budget,)))
        for _ in range(turns):
            await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    await ledger.drain()
    assert await ledger.unsettled() == []
    assert await left(database, budget) == (Decimal(0), Decimal(0))


async def test_what_was_settled_is_settled_whoever_is_cancelled(
    ledger: Ledger, database: Database, alerts: list[Alert]
) -> None:
    (budget,) = await put(database, a_budget(amount="0.03"))
    await ledger.reserve(an_attempt(reserved="0.03"), (budget,))
    task = asyncio.create_task(ledger.settle("att_1", "done", Decimal("0.03")))
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await ledger.drain()
    assert await left(database, budget) == (Decimal("0.03"), Decimal(0))
    assert [alert.fraction for alert in alerts] == [Decimal("0.5"), Decimal("0.8"), Decimal(1)]


async def test_an_error_of_the_database_is_everybodys_and_not_for_long(tmp_path: Path) -> None:
    database = await open_database(sqlite_url(tmp_path / "kleinbild.db"))
    ledger = Ledger(database)
    async with database.write() as connection:
        await connection.execute(text("ALTER TABLE open_attempts RENAME TO elsewhere"))
    asked = [ledger.reserve(an_attempt(f"att_{number}"), ()) for number in range(5)]
    outcomes = await asyncio.gather(*asked, return_exceptions=True)
    assert ["no such table" in str(outcome) for outcome in outcomes] == [True] * 5
    await ledger.drain()
    async with database.write() as connection:
        await connection.execute(text("ALTER TABLE elsewhere RENAME TO open_attempts"))
    await ledger.reserve(an_attempt(), ())
    assert len(await ledger.unsettled()) == 1
    await database.close()


async def test_all_who_wait_for_a_database_that_cannot_be_opened_are_told(tmp_path: Path) -> None:
    path = f"{tmp_path}/nowhere/kleinbild.db"
    engine = create_async_engine(f"sqlite+aiosqlite:///{path}")
    database = Database(engine, engine, Straight(path))
    ledger = Ledger(database)
    asked = [ledger.reserve(an_attempt(f"att_{number}"), ()) for number in range(3)]
    outcomes = await asyncio.wait_for(asyncio.gather(*asked, return_exceptions=True), 5)
    assert ["unable to open" in str(outcome) for outcome in outcomes] == [True] * 3
    await ledger.drain()
    await database.close()


async def test_more_than_go_into_one_transaction_go_into_several(tmp_path: Path) -> None:
    database = await open_database(sqlite_url(tmp_path / "kleinbild.db"))
    ledger = Ledger(database)
    many = 2 * MAX_TOGETHER + 1
    asked = [ledger.reserve(an_attempt(f"att_{number:03}"), ()) for number in range(many)]
    await asyncio.wait_for(asyncio.gather(*asked), 20)
    assert len(await ledger.unsettled()) == many
    await database.close()


async def test_one_that_the_database_refuses_does_not_fail_those_beside_it(tmp_path: Path) -> None:
    database = await open_database(sqlite_url(tmp_path / "kleinbild.db"))
    ledger = Ledger(database)
    asked = [
        ledger.reserve(an_attempt(f"att_{number}", caller=None if number == 2 else "k"), ()) for number in range(5)
    ]
    outcomes = await asyncio.gather(*asked, return_exceptions=True)
    assert [outcome is None for outcome in outcomes] == [True, True, False, True, True]
    await ledger.drain()
    assert len(await ledger.unsettled()) == 4
    await database.close()


CRASH = """
import asyncio, os, sys
from decimal import Decimal
from kleinbild.storage.database import open_database
from kleinbild.storage.ledger import Ledger
from tests.unit.storage.money import a_budget, an_attempt

async def main():
    ledger = Ledger(await open_database(sys.argv[1]))
    await ledger.reserve(an_attempt("att_1", "0.04"), [a_budget()])
    await ledger.accepted("att_1", {"at": "q/1"})
    os._exit(9)

asyncio.run(main())
"""


async def test_what_a_killed_process_had_set_aside_stays_until_somebody_settles_it(
    url: str, database: Database
) -> None:
    (budget,) = await put(database, a_budget())
    process = await asyncio.create_subprocess_exec(sys.executable, "-c", CRASH, url)
    assert await process.wait() == 9
    ledger = Ledger(database)
    (found,) = await ledger.unsettled()
    assert (found.state, found.handle) == ("accepted", {"at": "q/1"})
    assert await left(database, budget) == (Decimal(0), Decimal("0.04"))
    await ledger.settle("att_1", "done", Decimal("0.03"))
    assert await left(database, budget) == (Decimal("0.03"), Decimal(0))


SPEND = """
import asyncio, sys
from decimal import Decimal
from kleinbild.storage.database import open_database
from kleinbild.storage.ledger import BudgetError, Ledger
from tests.unit.storage.money import Clock, a_budget, an_attempt

async def main(url, name):
    ledger = Ledger(await open_database(url), Clock())
    both = [a_budget("bud_1", "0.5"), a_budget("bud_2", "9")]
    print("ready", flush=True)
    input()

    async def one(number):
        attempt = an_attempt(f"att_{name}_{number}", "0.01")
        try:
            await ledger.reserve(attempt, both)
        except BudgetError:
            return 0
        return await ledger.settle(attempt.id, "done", Decimal("0.01"))

    print(sum(await asyncio.gather(*(one(number) for number in range(40)))))

asyncio.run(main(*sys.argv[1:]))
"""


def spending(url: str, name: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", SPEND, url, name]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


async def test_processes_that_spend_one_budget_at_once_do_not_overspend_it(url: str, database: Database) -> None:
    both = await put(database, a_budget("bud_1", "0.5"), a_budget("bud_2", "9"))
    processes = [spending(url, name) for name in "ab"]
    for process in processes:
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()
    told = [int(process.communicate(timeout=60)[0]) for process in processes]
    assert sum(told) == 50
    assert min(told) > 0
    for budget in both:
        assert await left(database, budget) == (Decimal("0.5"), Decimal(0))


async def test_a_statement_settles_what_nobody_knew_and_tells_of_differences_once(
    ledger: Ledger, database: Database
) -> None:
    (budget,) = await put(database, a_budget())
    for number in range(1, 7):
        await ledger.reserve(an_attempt(f"att_{number}"), (budget,))
    await ledger.unknown("att_1", "cut off")
    await ledger.unknown("att_2", "cut off")
    await ledger.settle("att_3", "done", Decimal("0.03"), request_id="r-3")
    await ledger.settle("att_4", "done", Decimal("0.03"), request_id="r-4")
    await ledger.settle("att_5", "done", Decimal("0.03"), request_id="r-4")  # the provider's mistake: whose is it?
    lines = [
        ("att_1", Decimal("0.02")),
        ("att_2", Decimal(0)),
        ("r-3", Decimal("0.015")),
        ("att_3", Decimal("0.02")),
        ("att_5", Decimal("0.03")),
        ("att_6", Decimal("0.03")),
        ("r-4", Decimal("0.03")),
        ("r-9", Decimal("0.03")),
    ]
    found = await ledger.reconcile("fal", lines)
    assert (found.settled, found.under_way, found.unmatched) == (("att_1", "att_2"), ("att_6",), ("r-4", "r-9"))
    (difference,) = found.corrected
    assert (difference.attempt_id, difference.booked, difference.stated) == (
        "att_3",
        Decimal("0.03"),
        Decimal("0.035"),
    )
    one, two = [await ledger.find(f"att_{number}") for number in (1, 2)]
    assert one is not None
    assert two is not None
    assert (one.state, one.cost, one.reported) == ("failed_billed", Decimal("0.02"), Decimal("0.02"))
    assert (two.state, two.cost) == ("failed_unbilled", Decimal(0))
    assert await left(database, budget) == (Decimal("0.11"), Decimal("0.04"))
    again = await ledger.reconcile("fal", lines)
    assert (again.settled, again.corrected) == ((), ())
    assert (await ledger.reconcile("bfl", lines)).unmatched == tuple(dict(lines))


async def test_money_is_kept_for_longer_than_pictures_and_what_is_open_for_good(
    ledger: Ledger, database: Database, tmp_path: Path
) -> None:
    (budget,) = await put(database, a_budget(window="1d"))
    for number in (1, 2):
        await ledger.reserve(an_attempt(f"att_{number}"), (budget,))
    await ledger.settle("att_1", "done", Decimal("0.03"))
    blobs = open_blobs(database, tmp_path / "blobs")
    await sweep(database, blobs, NOON + MONEY_SECONDS - 1, 60.0)
    assert len(await ledger.of_job("job_1")) == 2
    await sweep(database, blobs, NOON + MONEY_SECONDS, 60.0)
    assert [entry.attempt.id for entry in await ledger.of_job("job_1")] == ["att_2"]
    await ledger.settle("att_2", "done", Decimal("0.01"))
    assert await left(database, budget) == (Decimal("0.04"), Decimal(0))
    await sweep(database, blobs, NOON + MONEY_SECONDS, 60.0)
    assert await ledger.of_job("job_1") == []
    assert await left(database, budget) == (Decimal(0), Decimal(0))
