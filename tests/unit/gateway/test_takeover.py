"""When a server is taken for dead, and what is then gone on with."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from sqlalchemy import select
from sqlalchemy.exc import OperationalError, ProgrammingError

from kleinbild.core.jobs import ImageWork, Job
from kleinbild.gateway.flow import durable, takeover
from kleinbild.gateway.lifespan import open_services
from kleinbild.gateway.secrets import load_secrets
from kleinbild.gateway.settings import Settings
from kleinbild.storage import jobs, schema, servers
from kleinbild.storage.database import Database, open_database
from kleinbild.storage.ledger import Ledger
from tests.postgres import Postgres, postgres
from tests.unit.storage.money import an_attempt

pytestmark = pytest.mark.anyio
US, THEY, OTHERS = 1, 2, 3


@pytest.fixture(scope="module")
def postgresql() -> Iterator[Postgres]:
    with postgres() as running:
        yield running


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


async def test_what_the_dead_left_is_ended_and_what_is_of_the_living_is_left_alone(
    tmp_path: Path, postgresql: Postgres, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The dead: number 0, which is of a version that had no numbers, and one that had."""
    monkeypatch.setattr(takeover, "GRACE_SECONDS", 0.2)
    monkeypatch.setattr(takeover, "LOOK_SECONDS", 0.1)
    take_up, failures = durable.take_up, iter([OperationalError("", None, Exception())])

    async def failing_once(*arguments: Any) -> None:
        for failure in failures:
            raise failure
        await take_up(*arguments)

    monkeypatch.setattr(durable, "take_up", failing_once)
    url, blobs = postgresql.new_database(), str(tmp_path / "blobs")
    database = await open_database(url)
    digest = load_secrets(tmp_path).digest
    async with servers.live(database) as living:
        await living.join(digest, blobs)
        async with servers.live(database) as dead:
            await dead.join(digest, blobs)
            for number in (servers.ALONE, dead.number, living.number):
                await leave(database, number)
        storage = {"database_url": url, "blobs_url": blobs}
        settings = Settings.model_validate({"server": {"data": tmp_path}, "storage": storage})
        async with open_services(settings) as services:
            async with asyncio.timeout(60):
                while (found := await status_of(database))[f"job_{servers.ALONE}"] == "running" or (  # noqa: ASYNC110
                    found[f"job_{dead.number}"] == "running"
                ):
                    await asyncio.sleep(0.1)
            assert found == {
                f"job_{servers.ALONE}": "failed",  # it is not known where it was to be made
                f"job_{dead.number}": "failed",
                f"job_{living.number}": "running",
            }
            ledger = services.ledger
            async with asyncio.timeout(10):
                while any("gone" in each.attempt.id for each in await ledger.unsettled()):  # noqa: ASYNC110
                    await asyncio.sleep(0.05)
            assert len(await Ledger(database, server=living.number).unsettled()) == 2
            async with database.read() as connection:
                numbers = {each.number for each in await servers.living(connection)}
                assert numbers == {living.number, services.server}
                assert await servers.without_lock(connection) == []
    await database.close()


async def leave(database: Database, server: int) -> None:
    """A job that runs, and an attempt on the machine of it and of one that nobody knows."""
    work = ImageWork("image.generate", "a fox", "nano", 1)
    job = Job(f"job_{server}", "local", "default", work, time.time(), "running", server=server)
    async with database.write() as connection:
        await jobs.add(connection, job)
    for of in (job.id, f"gone_{server}"):
        attempt = an_attempt(f"att_{of}", job_id=of, kind="local", created_at=time.time())
        await Ledger(database, server=server).reserve(attempt, [])


async def status_of(database: Database) -> dict[str, str]:
    async with database.read() as connection:
        found = await connection.execute(select(schema.jobs.c.id, schema.jobs.c.status))
        return dict(found.all())  # type: ignore[arg-type]


async def test_a_look_that_fails_says_nothing_of_anybody(
    looking: Looking, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    seen: list[dict[int, float]] = []
    failures = [OperationalError("", None, Exception()), ProgrammingError("a bug", None, Exception())]

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
    assert [record.exc_info[0] for record in caplog.records if record.exc_info] == [ProgrammingError]
