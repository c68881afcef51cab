"""When a server is taken for dead, and what is then gone on with."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest
from sqlalchemy.exc import DBAPIError

from kleinbild.gateway.flow import takeover
from kleinbild.storage.database import Database

pytestmark = pytest.mark.anyio
US, THEY, OTHERS = 1, 2, 3


class Looking:
    """`missing` are the servers without a lock; `taken` those that were taken over, with the time of it."""

    def __init__(self, database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
        self.services: Any = SimpleNamespace(database=database, server=US, draining=False)
        self.missing: list[int] = []
        self.taken: list[tuple[float, int]] = []
        self.now = 100.0
        self.since: dict[int, float] = {}

        async def without_lock(_: Any) -> list[int]:
            return self.missing

        async def take_over(_: Any, dead: int) -> None:
            self.taken.append((self.now, dead))
            self.missing = [number for number in self.missing if number != dead]

        monkeypatch.setattr(takeover.servers, "without_lock", without_lock)
        monkeypatch.setattr(takeover, "_take_over", take_over)
        monkeypatch.setattr(takeover, "time", SimpleNamespace(monotonic=lambda: self.now))

    async def at(self, now: float, *missing: int) -> None:
        self.now, self.missing = now, list(missing)
        self.since = await takeover._look(self.services, self.since)


@pytest.fixture
def looking(database: Database, monkeypatch: pytest.MonkeyPatch) -> Looking:
    return Looking(database, monkeypatch)


async def test_a_server_is_dead_when_nobody_has_had_its_lock_for_a_while(looking: Looking) -> None:
    await looking.at(100.0, THEY)
    await looking.at(102.9, THEY, OTHERS)
    assert looking.taken == []
    await looking.at(103.0, THEY, OTHERS)
    assert looking.taken == [(103.0, THEY)]
    await looking.at(106.0, OTHERS)
    assert looking.taken == [(103.0, THEY), (106.0, OTHERS)]
    assert looking.since == {}


async def test_one_that_is_back_in_time_is_not(looking: Looking) -> None:
    await looking.at(100.0, THEY)
    await looking.at(102.0)
    await looking.at(104.0, THEY)
    await looking.at(106.9, THEY)
    assert looking.taken == []


async def test_who_has_lost_its_own_lock_or_is_about_to_stop_takes_nothing(looking: Looking) -> None:
    """As when PostgreSQL starts again: all have lost theirs, and are back one after the other."""
    await looking.at(100.0, US, THEY)
    await looking.at(104.0, THEY)
    assert looking.taken == []
    looking.services.draining = True
    await looking.at(110.0, THEY)
    assert looking.taken == []


async def test_a_look_that_fails_says_nothing_of_anybody(
    looking: Looking, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    seen: list[dict[int, float]] = []
    failures = [DBAPIError("", None, Exception()), ValueError("a bug")]

    async def look(_: Any, since: dict[int, float]) -> dict[int, float]:
        seen.append(since)
        if failures and len(seen) > 1:
            raise failures.pop(0)
        return {**since, len(seen): 100.0}

    monkeypatch.setattr(takeover, "_look", look)
    monkeypatch.setattr(takeover, "LOOK_SECONDS", 0.001)
    task = asyncio.create_task(takeover.look_after_others(looking.services))
    while len(seen) < 4:  # noqa: ASYNC110
        await asyncio.sleep(0.001)
    task.cancel()
    assert seen[:4] == [{}, {1: 100.0}, {}, {}]
    assert [record.exc_info[0] for record in caplog.records if record.exc_info] == [ValueError]
