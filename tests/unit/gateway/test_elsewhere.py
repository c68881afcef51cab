"""What other servers keep of jobs is told here as if it were ours, once, and ends what is made here."""

from __future__ import annotations

import asyncio
import time
from types import SimpleNamespace
from typing import Any

import pytest
from sqlalchemy.exc import OperationalError, ProgrammingError

from kleinbild.core.jobs import ImageWork, Job, JobEvent
from kleinbild.gateway.events import EventHub, Subscription
from kleinbild.gateway.flow import elsewhere
from kleinbild.gateway.flow.elsewhere import _Hearing
from kleinbild.storage import jobs
from kleinbild.storage.database import Database
from kleinbild.storage.servers import NUM_SLOTS

pytestmark = pytest.mark.anyio
HERE, THERE = 5, 9


async def job(database: Database, name: str = "job_1", project: str = "p") -> Job:
    kept = Job(name, "a", project, ImageWork("image.generate", "a fox", "nano", 1), created_at=1.0)
    async with database.write() as connection:
        await jobs.add(connection, kept)
    return kept


async def recorded(database: Database, hub: EventHub, of: Job, kind: str) -> JobEvent:
    event = hub.new(of, kind)
    async with database.write() as connection:
        await hub.record(connection, event)
    hub.publish(event, recorded=True)
    return event


@pytest.fixture
def here(database: Database) -> Any:
    return SimpleNamespace(database=database, hub=EventHub(database, 0, HERE), server=HERE + NUM_SLOTS, running={})


@pytest.fixture
def there(database: Database) -> EventHub:
    return EventHub(database, 0, THERE)


def told(live: Subscription) -> list[str]:
    kinds = []
    while not live._queue.empty():
        event = live._queue.get_nowait()
        kinds.append(event.type if event else "")
    return kinds


async def test_ids_of_two_servers_are_never_the_same(database: Database, here: Any, there: EventHub) -> None:
    one = await job(database)
    ours, theirs = [[hub.new(one, "job.step").id for _ in range(1000)] for hub in (here.hub, there)]
    assert ours == sorted(set(ours))
    assert not set(ours) & set(theirs)
    assert {id_ % NUM_SLOTS for id_ in theirs} == {THERE}


async def test_a_listener_hears_of_another_servers_job_once(database: Database, here: Any, there: EventHub) -> None:
    one, hearing = await job(database), _Hearing(here)
    with here.hub.listen("p", one.id) as of_job, here.hub.listen("p") as of_project:
        await hearing.look()
        await recorded(database, there, one, "job.started")
        for _ in range(3):
            await hearing.look()
        assert told(of_job) == told(of_project) == ["job.started"]
        await recorded(database, there, one, "job.completed")
        await recorded(database, here.hub, one, "job.step")  # ours, which needs no telling
        for _ in range(3):
            await hearing.look()
        assert told(of_job) == told(of_project) == ["job.step", "job.completed"]


async def test_what_was_kept_late_is_heard_and_what_is_long_past_is_not(
    database: Database, here: Any, there: EventHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, two, hearing, now = await job(database), await job(database, "job_2"), _Hearing(here), time.time()
    with here.hub.listen("p") as of_project, here.hub.listen("p", two.id) as of_job:
        await hearing.look()
        monkeypatch.setattr(time, "time", lambda: now - 5.0)
        await recorded(database, there, one, "job.started")
        behind = EventHub(database, 0, THERE)
        monkeypatch.setattr(time, "time", lambda: now - 100.0)
        await recorded(database, behind, two, "job.started")
        await recorded(database, behind, two, "job.failed")
        monkeypatch.undo()
        await hearing.look()
        assert told(of_project) == ["job.failed", "job.started"]
        assert told(of_job) == ["job.failed"]  # of a job that somebody waits for, the end is heard whenever it was


async def test_nothing_is_asked_where_nobody_listens_for_long(here: Any, database: Database) -> None:
    one, hearing = await job(database), _Hearing(here)
    here.database = None
    await hearing.look()
    with here.hub.listen("p", one.id):
        await hearing.look()  # it may be ours, and done in a moment
    await hearing.look()


async def test_a_job_that_is_cancelled_there_is_not_made_here_any_longer(
    database: Database, here: Any, there: EventHub
) -> None:
    one, other, hearing = await job(database), await job(database, "job_2"), _Hearing(here)
    here.running = {each.id: asyncio.create_task(asyncio.sleep(60)) for each in (one, other)}
    await hearing.look()
    await recorded(database, there, one, "job.cancelled")
    await hearing.look()
    await asyncio.wait([here.running[one.id]], timeout=5)
    assert here.running[one.id].cancelled()
    assert not here.running[other.id].done()
    here.running[other.id].cancel()


async def test_a_projects_stream_has_nothing_twice_where_it_is_resumed(
    database: Database, here: Any, there: EventHub
) -> None:
    """What was told before is found again by the first look, since nobody listened before."""
    one, hearing = await job(database), _Hearing(here)
    seen = await recorded(database, there, one, "job.queued")
    events = here.hub.follow("p", None, seen.id)
    first = asyncio.create_task(anext(events))
    await asyncio.sleep(0.05)
    await hearing.look()
    await recorded(database, there, one, "job.started")
    await hearing.look()
    async with asyncio.timeout(5):
        assert (await first).type == "job.started"
    await events.aclose()  # type: ignore[attr-defined]
    new = here.hub.follow("p", None, None)
    second = asyncio.create_task(anext(new))
    await asyncio.sleep(0.05)
    await _Hearing(here).look()
    await recorded(database, there, one, "job.completed")
    await hearing.look()
    async with asyncio.timeout(5):
        assert (await second).type == "job.completed"
    await new.aclose()  # type: ignore[attr-defined]


async def test_a_database_that_is_gone_for_a_while_is_waited_for(
    database: Database, here: Any, there: EventHub, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(elsewhere, "POLL_SECONDS", 0.01)
    read, one = jobs.ids_of_others, await job(database)
    failures = iter([OperationalError("", None, Exception()), ProgrammingError("a bug", None, Exception())])

    async def failing(*arguments: Any) -> set[int]:
        for failure in failures:
            raise failure
        return await read(*arguments)

    monkeypatch.setattr(elsewhere.jobs, "ids_of_others", failing)
    listening = asyncio.create_task(elsewhere.hear(here))
    with here.hub.listen("p", one.id) as live:
        await recorded(database, there, one, "job.completed")
        async with asyncio.timeout(5):
            event = await live.next()
    assert event is not None
    assert event.type == "job.completed"
    assert [record.exc_info[0] for record in caplog.records if record.exc_info] == [ProgrammingError]
    listening.cancel()
