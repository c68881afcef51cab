"""Sums over the ledger, pages of it, and decisions: the same on SQLite and PostgreSQL."""

from __future__ import annotations

from dataclasses import replace
from decimal import Decimal

import pytest

from kleinbild.storage import decisions, usage
from kleinbild.storage.database import Database
from kleinbild.storage.decisions import Decision
from kleinbild.storage.ledger import Ledger
from kleinbild.storage.usage import Usage
from tests.unit.storage.money import NOON, Clock, an_attempt

pytestmark = pytest.mark.anyio
DAY = 24 * 3600


@pytest.fixture
async def kept(database: Database) -> Database:
    """Six attempts of four requests, in two projects, on two days; the last is corrected a day later."""
    clock = Clock()
    ledger = Ledger(database, clock)
    given = (
        (an_attempt("att_1", "0.04"), "failed_unbilled", "0"),
        (an_attempt("att_2", "0.04", number=2, deployment="klein-bfl", provider="bfl"), "done", "0.03"),
        (an_attempt("att_3", "0.08", job_id="job_2", count=2, caller="key_2"), "failed_billed", "0.01"),
        (an_attempt("att_4", "0.05", job_id="job_3", created_at=NOON + DAY), None, "0"),
        (an_attempt("att_5", "0.02", job_id="job_3", part=1, created_at=NOON + DAY, model="max"), "done", "0.02"),
        (an_attempt("att_6", "0.40", job_id="job_4", project="q", count=4, created_at=NOON + DAY), "done", "0.3"),
    )
    for attempt, state, cost in given:
        await ledger.reserve(attempt, ())
        if state is not None:
            await ledger.settle(attempt.id, state, Decimal(cost))  # type: ignore[arg-type]
    clock.now += 2 * DAY
    await ledger.reconcile("fal", [("att_6", Decimal("0.28"))])
    await ledger.reconcile("fal", [("att_6", Decimal("0.29"))])
    return database


async def sums(database: Database, **given) -> list[Usage]:
    async with database.read() as connection:
        return await usage.usage(connection, **{"start": NOON, "end": NOON + 2 * DAY, **given})


async def test_all_of_it_is_one_sum(kept: Database) -> None:
    assert await sums(kept) == [
        Usage(
            groups=(),
            requests=4,
            attempts=6,
            images=6,
            megapixels=6 * Decimal("1.048576"),
            cost=Decimal("0.36"),
            corrections=Decimal("-0.01"),
            reserved=Decimal("0.05"),
        )
    ]


async def test_it_is_grouped_by_whatever_is_wanted(kept: Database) -> None:
    def short(rows: list[Usage]) -> list[tuple[tuple[str, ...], int, Decimal]]:
        return [(row.groups, row.attempts, row.cost) for row in rows]

    assert short(await sums(kept, group_by=("provider", "day"))) == [
        (("bfl", "2027-01-15"), 1, Decimal("0.03")),
        (("fal", "2027-01-15"), 2, Decimal("0.01")),
        (("fal", "2027-01-16"), 3, Decimal("0.32")),
    ]
    assert short(await sums(kept, group_by=("key",), project="p")) == [
        (("key_1",), 4, Decimal("0.05")),
        (("key_2",), 1, Decimal("0.01")),
    ]
    for group, values in (
        ("project", ["p", "q"]),
        ("model", ["flux-2-klein", "max"]),
        ("deployment", ["klein-bfl", "klein-fal"]),
    ):
        assert [row.groups for row in await sums(kept, group_by=(group,))] == [(value,) for value in values]


async def test_an_attempt_belongs_to_the_time_it_began_in(kept: Database) -> None:
    (first,) = await sums(kept, end=NOON + DAY)
    (second,) = await sums(kept, start=NOON + DAY)
    (none,) = await sums(kept, start=NOON + 2 * DAY, end=NOON + 3 * DAY)
    assert (first.attempts, second.attempts, none.attempts, none.cost) == (3, 3, 0, Decimal(0))


async def test_attempts_that_ended_come_in_pages(kept: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(usage, "PAGE", 2)
    seen: list[str] = []
    after = None
    async with kept.read() as connection:
        while page := await usage.ended(connection, start=NOON, end=NOON + 2 * DAY, after=after):
            seen += [entry.attempt.id for entry in page]
            after = page[-1]
        assert seen == ["att_1", "att_2", "att_3", "att_5", "att_6"]
        (other,) = await usage.ended(connection, start=NOON, end=NOON + 2 * DAY, project="q")
    assert (other.attempt.id, other.cost) == ("att_6", Decimal("0.3"))


async def test_corrections_are_of_the_time_they_were_made_in(kept: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(usage, "PAGE", 1)
    async with kept.read() as connection:
        assert await usage.corrections(connection, start=NOON, end=NOON + 2 * DAY) == []
        (one,) = await usage.corrections(connection, start=NOON + 2 * DAY, end=NOON + 3 * DAY)
        (two,) = await usage.corrections(connection, start=NOON + 2 * DAY, end=NOON + 3 * DAY, after=one)
        assert await usage.corrections(connection, start=NOON + 2 * DAY, end=NOON + 3 * DAY, after=two) == []
        assert await usage.corrections(connection, start=NOON, end=NOON + 3 * DAY, project="p") == []
    assert {one.amount, two.amount} == {Decimal("-0.02"), Decimal("0.01")}
    assert (one.at, one.entry.attempt.id) == (NOON + 2 * DAY, "att_6")


async def test_decisions_are_found_by_their_project_and_in_order(database: Database) -> None:
    one = Decision("dec_1", "job_1", "key_1", "p", 100.0, {"candidates": [{"deployment": "a", "cost": "0.01"}]})
    others = (
        replace(one, id="dec_2", at=200.0),
        replace(one, id="dec_3", at=200.0, job_id=None),
        replace(one, id="dec_4", project="q", at=300.0),
    )
    async with database.write() as connection:
        for decision in (one, *others):
            await decisions.add(connection, decision)
        assert await decisions.find(connection, "dec_1", "p") == one
        assert await decisions.find(connection, "dec_1") == one
        assert await decisions.find(connection, "dec_1", "q") is None
        assert await decisions.of_job(connection, "job_1") == [one, others[0], others[2]]
        assert await decisions.since(connection, "p", 150.0) == list(others[:2])
        assert await decisions.since(connection, None, 0.0, limit=2) == [one, others[0]]
        assert await decisions.since(connection, None, 0.0, after=others[0]) == list(others[1:])
