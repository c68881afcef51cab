"""What happens to jobs: told as it happens, and from where a listener left off."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from kleinbild.core.jobs import ImageWork, Job, JobEvent
from kleinbild.gateway.events import NO_PROGRESS, NUM_RECENT, NUM_WAITING, RECENT_BYTES, EventHub, LaggardError
from kleinbild.storage import jobs
from kleinbild.storage.database import Database

pytestmark = pytest.mark.anyio


async def job(database: Database, name: str = "job_1", project: str = "p") -> Job:
    work = ImageWork("image.generate", "a fox", "nano", 1)
    kept = Job(name, "a", project, work, created_at=1.0)
    async with database.write() as connection:
        await jobs.add(connection, kept)
    return kept


async def recorded(database: Database, hub: EventHub, of: Job, kind: str, **data: object) -> JobEvent:
    event = hub.new(of, kind, **data)
    async with database.write() as connection:
        await hub.record(connection, event)
    hub.publish(event, recorded=True)
    return event


async def taken(events: AsyncIterator[JobEvent], number: int) -> list[str]:
    async with asyncio.timeout(5):
        return [(await anext(events)).type for _ in range(number)]


async def test_a_jobs_stream_has_its_past_then_what_happens_and_ends_with_its_end(database: Database) -> None:
    hub, one = EventHub(database), await job(database)
    await recorded(database, hub, one, "job.queued")
    hub.publish(hub.new(one, "job.step", step=1, num_steps=4), recorded=False)
    events = hub.follow("p", one.id, None)
    assert await taken(events, 2) == ["job.queued", "job.step"]
    await recorded(database, hub, one, "job.completed")
    async with asyncio.timeout(5):
        assert [event.type async for event in events] == ["job.completed"]
    assert not hub._of_jobs


async def test_it_goes_on_after_the_last_id_in_another_process_too(database: Database) -> None:
    hub, one = EventHub(database), await job(database)
    queued = await recorded(database, hub, one, "job.queued")
    await recorded(database, hub, one, "job.started")
    async with database.read() as connection:
        after_restart = EventHub(database, await jobs.last_event_id(connection))
    events = after_restart.follow("p", one.id, queued.id)
    assert await taken(events, 1) == ["job.started"]
    last = await recorded(database, after_restart, one, "job.completed")
    assert last.id > queued.id
    assert await taken(events, 1) == ["job.completed"]


async def test_ids_increase_even_where_the_clock_goes_back(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    hub, one = EventHub(database, last_id=10**18), await job(database)
    first, second = hub.new(one, "job.step"), hub.new(one, "job.step")
    monkeypatch.setattr("time.time", lambda: 5.0)
    assert 10**18 < first.id < second.id < hub.new(one, "job.step").id


async def test_what_comes_while_the_past_is_read_comes_once(database: Database) -> None:
    hub, one = EventHub(database), await job(database)
    await recorded(database, hub, one, "job.queued")
    read_past = hub._past

    async def slow(*arguments):
        await recorded(database, hub, one, "job.started")  # both in the past and live
        return await read_past(*arguments)

    hub._past = slow  # type: ignore[method-assign]
    events = hub.follow("p", one.id, None)
    assert await taken(events, 2) == ["job.queued", "job.started"]
    await recorded(database, hub, one, "job.failed")
    assert await taken(events, 1) == ["job.failed"]


async def test_a_projects_stream_has_its_jobs_alone_and_only_what_is_new(database: Database) -> None:
    hub = EventHub(database)
    ours, theirs = await job(database), await job(database, "job_2", "other")
    await recorded(database, hub, ours, "job.queued")
    events = hub.follow("p", None, None)
    first = asyncio.create_task(taken(events, 2))
    await asyncio.sleep(0.05)
    await recorded(database, hub, theirs, "job.completed")
    await recorded(database, hub, ours, "job.started")
    await recorded(database, hub, ours, "job.completed")
    assert await first == ["job.started", "job.completed"]


async def test_a_slow_listener_is_left_behind_and_others_are_not(database: Database) -> None:
    hub, one = EventHub(database), await job(database)
    with hub.listen("p", one.id) as slow, hub.listen("p", one.id) as quick:
        for step in range(NUM_WAITING + 5):
            hub.publish(hub.new(one, "job.step", step=step), recorded=False)
            assert (await quick.next()).data == {"step": step}  # type: ignore[union-attr]
        seen = [await slow.next() for _ in range(NUM_WAITING)]
        assert [event.data["step"] for event in seen if event] == list(range(NUM_WAITING))
        with pytest.raises(LaggardError):
            await slow.next()
    assert len(hub._recent) == NUM_RECENT


async def test_large_previews_are_not_kept_for_long(database: Database) -> None:
    hub, one, png = EventHub(database), await job(database), b"p" * (RECENT_BYTES // 4)
    for number in range(20):
        hub.publish(hub.new(one, "job.preview", step=number, png=png), recorded=False)
        hub.publish(hub.new(one, "job.step", step=number), recorded=False)
    kept = [event.data["step"] for event in hub._recent if event.type == "job.preview"]
    assert kept == [16, 17, 18, 19]
    assert sum(len(event.data.get("png", b"")) for event in hub._recent) <= RECENT_BYTES


async def test_when_the_server_stops_streams_end_and_waiting_requests_do_not(database: Database) -> None:
    hub, one = EventHub(database), await job(database)
    events = hub.follow("p", one.id, None)
    stream = asyncio.create_task(anext(events, None))
    await asyncio.sleep(0.05)
    with hub.listen("p", one.id) as waiting:
        hub.close()
        async with asyncio.timeout(5):
            assert await stream is None
        await recorded(database, hub, one, "job.completed")
        assert (await waiting.next()).type == "job.completed"  # type: ignore[union-attr]


async def test_progress_is_the_last_that_was_told_until_the_end(database: Database) -> None:
    hub, one = EventHub(database), await job(database)
    assert hub.progress(one.id) == NO_PROGRESS
    hub.publish(hub.new(one, "job.waiting", position=3), recorded=False)
    assert hub.progress(one.id)["position"] == 3
    hub.publish(hub.new(one, "job.step", image_index=1, step=2, num_steps=4), recorded=False)
    assert hub.progress(one.id) == {"position": None, "image_index": 1, "step": 2, "num_steps": 4}
    hub.publish(hub.new(one, "job.cancelled"), recorded=True)
    assert hub.progress(one.id) == NO_PROGRESS


async def test_the_end_comes_though_a_step_was_told_between_its_id_and_its_keeping(database: Database) -> None:
    hub, one = EventHub(database), await job(database)
    end = hub.new(one, "job.cancelled")
    step = hub.new(one, "job.step", step=1)
    hub.publish(step, recorded=False)
    live = hub.follow("p", one.id, None)
    assert await taken(live, 1) == ["job.step"]
    async with database.write() as connection:
        await hub.record(connection, end)
    hub.publish(end, recorded=True)
    async with asyncio.timeout(5):
        assert [event.type async for event in live] == ["job.cancelled"]
        assert [event.type async for event in hub.follow("p", one.id, step.id)] == ["job.cancelled"]
        assert [event.type async for event in hub.follow("p", one.id, None)] == ["job.step", "job.cancelled"]


async def test_whoever_has_seen_the_end_and_comes_back_does_not_wait_for_ever(database: Database) -> None:
    hub, one = EventHub(database), await job(database)
    end = await recorded(database, hub, one, "job.completed")
    async with asyncio.timeout(5):
        assert [event.type async for event in hub.follow("p", one.id, end.id)] == ["job.completed"]
        assert [event.type async for event in hub.follow("p", one.id, end.id + 10)] == ["job.completed"]


async def test_a_stream_that_begins_while_the_server_stops_ends_too(database: Database) -> None:
    hub, one = EventHub(database), await job(database)
    hub.close()
    async with asyncio.timeout(5):
        assert [event.type async for event in hub.follow("p", one.id, None)] == []
