"""Servers that share a PostgreSQL: each has a lock while it lives, and what it leaves goes to one of the others."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from decimal import Decimal

import psycopg
import pytest
from sqlalchemy import func, select, text

from kleinbild.core.errors import DatabaseError
from kleinbild.core.jobs import ImageWork, Job, JobEvent, Outcome
from kleinbild.storage import jobs, servers, webhooks
from kleinbild.storage.database import Database, open_database
from kleinbild.storage.ledger import Ledger
from kleinbild.storage.servers import ALONE, NUM_SLOTS, Left
from kleinbild.storage.webhooks import Delivery, Endpoint
from tests.postgres import Postgres
from tests.unit.storage.money import an_attempt

pytestmark = pytest.mark.anyio


@pytest.fixture
def shared_url(server: Postgres) -> str:
    return server.new_database()


@pytest.fixture
async def shared(anyio_backend: str, shared_url: str) -> AsyncIterator[Database]:
    opened = await open_database(shared_url)
    yield opened
    await opened.close()


async def dead(database: Database) -> list[int]:
    async with database.read() as connection:
        return [number for number in await servers.without_lock(connection) if number != ALONE]


async def leave_something(database: Database, server: int) -> Left:
    """A job to make, one that has ended and one attempt of each, a delivery to send and one that was sent."""
    work = ImageWork("image.generate", "a fox", "nano", 1)
    ledger = Ledger(database, server=server)
    async with database.write() as connection:
        for name in (f"job_{server}", f"old_{server}"):
            await jobs.add(connection, Job(name, "a", "p", work, created_at=1.0, server=server))
        await jobs.finish(connection, f"old_{server}", Outcome("cancelled"), 2.0)
        await webhooks.add(connection, Endpoint(f"wh_{server}", "p", "https://example.com", "sealed", 1.0))
        for name in ("evt", "sent"):
            delivery = Delivery(
                f"{name}_{server}", f"wh_{server}", f"old_{server}", "job.completed", 1.0, server=server
            )
            await webhooks.add_delivery(connection, delivery)
        await webhooks.attempted(connection, f"sent_{server}", 200, 3.0, delivered=True)
    names = [f"att_{server}_{job}" for job in ("job", "old", "done")]
    for name in names:
        await ledger.reserve(an_attempt(name, job_id=f"{name.rpartition('_')[2]}_{server}"), [])
    await ledger.settle(names[-1], "done", Decimal(0))
    return Left((f"job_{server}",), tuple(names[:-1]), (f"evt_{server}",))


async def test_servers_have_numbers_slots_and_locks_of_their_own(shared: Database) -> None:
    async with AsyncExitStack() as stack:
        lives = [await stack.enter_async_context(servers.live(shared)) for _ in range(10)]
        assert len({life.number for life in lives}) == len({life.slot for life in lives}) == 10
        for life in lives:
            others = await life.join("digest", None)
        assert [each.number for each in others] == sorted(life.number for life in lives[:-1])
        assert await dead(shared) == []
    async with asyncio.timeout(10):  # PostgreSQL ends their sessions in its own time
        while await dead(shared) != sorted(life.number for life in lives):  # noqa: ASYNC110
            await asyncio.sleep(0.02)


async def test_no_more_than_there_are_slots(shared: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(servers, "NUM_SLOTS", 2)
    async with servers.live(shared), servers.live(shared):
        with pytest.raises(DatabaseError, match="2 servers are running on the database postgresql://"):
            async with servers.live(shared):
                pass


async def test_a_version_that_wants_the_database_to_itself_is_respected(
    shared: Database, shared_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(servers, "WAIT_SECONDS", 0.1)
    with psycopg.connect(shared_url, autocommit=True) as older:
        older.execute(f"SELECT pg_advisory_lock({servers.UNSHARED})")
        with pytest.raises(DatabaseError, match="a server of an older version is running"):
            async with servers.live(shared):
                pass
        older.execute("SELECT pg_advisory_unlock_all()")
        async with servers.live(shared):
            found = older.execute(f"SELECT pg_try_advisory_lock({servers.UNSHARED})").fetchone()
            assert found == (False,)


async def test_a_lock_that_postgresql_ended_is_taken_again(
    shared: Database, shared_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the row, if another took the server for dead."""
    monkeypatch.setattr(servers, "CHECK_SECONDS", 0.05)
    async with servers.live(shared) as life, servers.live(shared) as other:
        await life.join("digest", "blobs")
        with psycopg.connect(shared_url, autocommit=True) as admin:
            holder = f"SELECT pid FROM pg_locks WHERE locktype = 'advisory' AND objid = {life.number}"
            (first,) = admin.execute(holder).fetchone() or (None,)
            async with shared.write() as connection:
                await servers.take_over(connection, life.number, other.number)
            admin.execute(f"SELECT pg_terminate_backend({first})")
            async with asyncio.timeout(10):
                while (found := admin.execute(holder).fetchone()) is None or found[0] == first:  # noqa: ASYNC110
                    await asyncio.sleep(0.05)
        async with asyncio.timeout(10):
            while [each.number for each in await other.join("digest", "blobs")] != [life.number]:  # noqa: ASYNC110
                await asyncio.sleep(0.05)


async def test_what_a_dead_server_left_goes_to_one_heir(shared: Database) -> None:
    async with servers.live(shared) as life:
        await life.join("digest", None)
        left = await leave_something(shared, life.number)
    async with servers.live(shared) as living:
        await living.join("digest", None)
        kept = await leave_something(shared, living.number)

        async def heir(number: int) -> Left:
            async with shared.write() as connection:
                return await servers.take_over(connection, life.number, number)

        heirs = await asyncio.gather(*(heir(number) for number in range(1, 9)))
        assert sorted(heirs, key=len_of)[:-1] == [Left()] * 7
        assert max(heirs, key=len_of) == left
        by = heirs.index(left) + 1
        async with shared.read() as connection:
            found = await jobs.find(connection, left.jobs[0])
            assert found is not None
            assert found.server == by
            assert (await jobs.find(connection, kept.jobs[0])).server == living.number  # type: ignore[union-attr]
        assert {each.attempt.id for each in await Ledger(shared, server=by).unsettled()} == set(left.attempts)
        assert {each.attempt.id for each in await Ledger(shared, server=living.number).unsettled()} == set(
            kept.attempts
        )
        assert await dead(shared) == []


def len_of(left: Left) -> int:
    return len(left.jobs)


async def test_the_one_server_of_sqlite_is_its_own_heir(database: Database) -> None:
    left = await leave_something(database, ALONE)
    async with database.write() as connection:
        assert await servers.handed_over(connection, ALONE, ALONE) == left


async def test_sqlite_has_one_server_and_no_others(tmp_path) -> None:
    opened = await open_database(f"sqlite:///{tmp_path / 'k.sqlite'}")
    async with servers.live(opened) as life:
        assert (life.number, life.slot) == (ALONE, 0)
        assert await life.join("digest", None) == []
    async with opened.write() as connection:
        assert await servers.living(connection) == []
        assert await servers.turn(connection, 1, wait=False)
    await opened.close()


async def test_a_turn_is_one_servers_at_a_time(shared: Database) -> None:
    async with shared.write() as first:
        assert await servers.turn(first, 1, wait=False)
        async with shared.write() as second:
            assert not await servers.turn(second, 1, wait=False)
            assert await servers.turn(second, 2, wait=False)
        waiting = asyncio.create_task(_turn(shared))
        await asyncio.sleep(0.1)
        assert not waiting.done()
    async with asyncio.timeout(5):
        assert await waiting


async def _turn(database: Database) -> bool:
    async with database.write() as connection:
        return await servers.turn(connection, 1, wait=True)


async def test_events_of_others_are_those_of_other_slots(database: Database) -> None:
    work = ImageWork("image.generate", "a fox", "nano", 1)
    async with database.write() as connection:
        for name, project in (("job_1", "p"), ("job_2", "p"), ("job_3", "q")):
            await jobs.add(connection, Job(name, "a", project, work, created_at=1.0))
            for number in (5, NUM_SLOTS + 6, 2 * NUM_SLOTS + 6):
                id_ = number + NUM_SLOTS * 10 * int(name[-1])
                await jobs.add_event(connection, JobEvent(id_, name, project, "job.started", {}, 1.0))

    async def found(slot: int, after: int, *asked: list[str]) -> list[tuple[str, int]]:
        async with database.read() as connection:
            ids = await jobs.ids_of_others(connection, slot, after, *asked)
            events = await jobs.events_of_ids(connection, ids)
        return [(event.job_id, event.id % NUM_SLOTS) for event in events]

    assert await found(6, 0, ["job_1"], []) == [("job_1", 5)]
    assert await found(5, 0, ["job_1", "job_3"], []) == [("job_1", 6)] * 2 + [("job_3", 6)] * 2
    assert await found(6, 0, ["job_3"], ["p"]) == [("job_1", 5), ("job_2", 5), ("job_3", 5)]
    assert await found(5, NUM_SLOTS * 21 + 6, [], ["p"]) == [("job_2", 6)]
    assert await found(5, 0, [], []) == []
    async with database.write() as connection:
        await jobs.add_event(connection, JobEvent(7, "job_1", "p", "job.failed", {}, 1.0))
    assert await found(5, 10**6, ["job_1"], ["p"]) == [("job_1", 7)]  # the end, however late it comes
    assert await found(5, 10**6, [], ["p"]) == []


async def test_what_is_there_before_servers_had_numbers_is_a_dead_ones(shared: Database) -> None:
    async with shared.read() as connection:
        assert await servers.without_lock(connection) == [ALONE]
        assert await connection.scalar(select(func.count()).select_from(text("servers"))) == 1
