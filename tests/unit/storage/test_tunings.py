"""Fine-tuning jobs in both databases: their rows, what may follow on what, events in order, whose adapters they are."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import replace

import pytest

from kleinbild.storage import servers, tunings
from kleinbild.storage.database import Database, open_database
from kleinbild.storage.tunings import Checkpoint, Happening, Hyperparameters, Result, Tuning, Wanted

pytestmark = pytest.mark.anyio
WANTED = Wanted("nano-base", "file_1", 7, "fox", Hyperparameters(3, "auto", 0.5), {"rank": 8}, {"team": "red"})


@pytest.fixture
async def database(url: str) -> AsyncIterator[Database]:
    opened = await open_database(url)
    yield opened
    await opened.close()


def tuning(name: str, project: str = "red", server: int = 0) -> Tuning:
    return Tuning(f"ftjob_{name}", "key", project, "nano", f"fox-{name}", WANTED, 100.0, server=server)


async def test_a_job_comes_back_as_it_was_kept(database: Database) -> None:
    async with database.write() as connection:
        await tunings.add(connection, tuning("1"))
        assert await tunings.find(connection, "ftjob_1") == tuning("1")
        assert await tunings.find(connection, "ftjob_1", "blue") is None
        result = Result({"code": "c", "message": "m", "param": None}, 12, ("file_2",))
        failed = await tunings.change(
            connection, "ftjob_1", ["validating_files"], "failed", result=result, finished_at=120.0
        )
        assert failed == replace(tuning("1"), status="failed", result=result, finished_at=120.0)
        assert failed.fine_tuned_model == "ft:nano:fox-1"


async def test_only_what_may_follow_follows(database: Database) -> None:
    async with database.write() as connection:
        await tunings.add(connection, tuning("1"))
        assert await tunings.change(connection, "ftjob_1", ["queued", "running"], "paused") is None
        assert await tunings.change(connection, "ftjob_1", ["validating_files"], "queued") is not None
        assert await tunings.change(connection, "ftjob_1", ["queued", "running"], "paused") is not None
        assert await tunings.change(connection, "ftjob_1", tunings.UNFINISHED, "cancelled") is not None
        assert await tunings.change(connection, "ftjob_1", tunings.UNFINISHED, "succeeded") is None


async def test_the_next_is_one_that_has_begun_then_the_oldest(database: Database) -> None:
    async with database.write() as connection:
        for name in ("3", "1", "2", "4"):
            await tunings.add(connection, tuning(name, server=9 if name == "4" else 0))
            await tunings.change(connection, f"ftjob_{name}", ["validating_files"], "queued")
        await tunings.note(connection, "ftjob_2", started_at=101.0)
        found = await tunings.waiting(connection, 0, ["queued", "running"])
        assert [each.id for each in found] == ["ftjob_2", "ftjob_1", "ftjob_3"]
        assert await tunings.num_unfinished(connection, "red") == 4
        assert await tunings.num_unfinished(connection, "blue") == 0
        assert [each.id for each in await tunings.newest(connection, "red", limit=2, after="ftjob_4")] == [
            "ftjob_3",
            "ftjob_2",
        ]


async def test_events_are_numbered_and_come_from_either_end(database: Database) -> None:
    async with database.write() as connection:
        await tunings.add(connection, tuning("1"))
        await tunings.tell(connection, "ftjob_1", [Happening("one", 1.0), Happening("two", 1.0, "warn")])
        await tunings.tell(connection, "ftjob_1", [Happening("three", 1.0, data={"step": 1})])
        newest = await tunings.events(connection, "ftjob_1", limit=2)
        assert [(each.number, each.message, each.type) for each in newest] == [
            (3, "three", "metrics"),
            (2, "two", "message"),
        ]
        assert [each.number for each in await tunings.events(connection, "ftjob_1", limit=9, before=2)] == [1]
        assert [each.number for each in await tunings.events(connection, "ftjob_1", limit=9, after=1)] == [2, 3]


async def test_a_step_has_one_checkpoint_however_often_it_is_reached(database: Database) -> None:
    async with database.write() as connection:
        await tunings.add(connection, tuning("1"))
        for step in (2, 4, 2):
            await tunings.add_checkpoint(
                connection, Checkpoint("ftjob_1", step, f"step-{step}", {"train_loss": 1.0}, 9.0)
            )
        assert [each.step for each in await tunings.checkpoints(connection, "ftjob_1", limit=9)] == [4, 2]
        assert [each.step for each in await tunings.checkpoints(connection, "ftjob_1", limit=9, before=4)] == [2]
        found = await tunings.find_checkpoint(connection, "ftjob_1", 2)
        assert found is not None
        assert found.path == "step-2"
        assert await tunings.find_checkpoint(connection, "ftjob_1", 3) is None


async def test_an_adapter_is_its_projects(database: Database) -> None:
    async with database.write() as connection:
        await tunings.add(connection, tuning("1"))
        await tunings.add(connection, tuning("2", "blue"))
        assert await tunings.owners(connection) == {"fox-1": "red", "fox-2": "blue"}
        assert await tunings.of_adapter(connection, "fox-2") == tuning("2", "blue")
        assert await tunings.of_adapter(connection, "crayon") is None


async def test_what_a_dead_server_had_is_anothers(database: Database) -> None:
    async with database.write() as connection:
        for name in ("1", "2"):
            await tunings.add(connection, tuning(name, server=5))
        await tunings.change(connection, "ftjob_2", ["validating_files"], "cancelled")
        left = await servers.handed_over(connection, 5, 6)
        assert left.tunings == ("ftjob_1",)
        assert [each.server for each in await tunings.newest(connection, "red", limit=9)] == [5, 6]
