"""Changes that are committed together: in order, each for itself, and none left waiting."""

from __future__ import annotations

import asyncio
import threading

import pytest
from sqlalchemy import text

from kleinbild.storage.commits import LATER_SECONDS, Change, Commits, Run
from kleinbild.storage.database import Database

pytestmark = pytest.mark.anyio
ADD = "INSERT INTO blobs (sha256, bytes, media_type, created_at) VALUES (:name, 1, 'image/png', 0)"


def noted(name: str) -> Change[int]:
    def change(run: Run) -> int:
        run(ADD, {"name": name})
        return int(name)

    return change


def failing(run: Run) -> None:
    noted("99")(run)
    raise ValueError("no")


async def names(database: Database) -> list[str]:
    async with database.read() as connection:
        return list(await connection.scalars(text("SELECT sha256 FROM blobs ORDER BY sha256")))


async def test_what_fails_leaves_no_trace_and_the_others_be(database: Database) -> None:
    commits = Commits(database)
    found = await asyncio.gather(
        commits.make(noted("1")), commits.make(failing), commits.make(noted("2")), return_exceptions=True
    )
    assert found[0] == 1
    assert found[2] == 2
    assert isinstance(found[1], ValueError)
    assert await names(database) == ["1", "2"]


async def test_what_need_not_be_alone_is_committed_with_the_next_and_soon_if_there_is_none(database: Database) -> None:
    commits = Commits(database)
    first = commits.begin(noted("1"), alone=False)
    await commits.make(noted("2"))
    assert first.done()
    last = commits.begin(noted("3"), alone=False)
    await asyncio.wait_for(last, 100 * LATER_SECONDS)
    assert await names(database) == ["1", "2", "3"]


async def test_what_comes_after_is_done_once_it_is_committed_and_in_a_thread(database: Database) -> None:
    commits, threads = Commits(database), []
    assert await commits.make(noted("1"), after=lambda made: threads.append((made, threading.get_ident()))) == 1
    ((made, thread),) = threads
    assert made == 1
    assert thread != threading.get_ident()

    def breaks(_: int) -> None:
        raise OSError("the disk is full")

    with pytest.raises(OSError, match="full"):
        await commits.make(noted("2"), after=breaks)
    assert await names(database) == ["1", "2"]


async def test_transactions_and_changes_take_turns(database: Database) -> None:
    """Neither finds the other's lock: both wait in line."""
    commits = Commits(database)

    async def others(number: int) -> None:
        async with database.write() as connection:
            await connection.execute(text(ADD), {"name": str(number)})
            await asyncio.sleep(0.002)

    await asyncio.gather(
        *(commits.make(noted(str(number))) for number in range(1, 40)), *(others(number) for number in range(40, 80))
    )
    assert len(await names(database)) == 79


async def test_who_is_cancelled_does_not_stop_what_he_asked_for(database: Database) -> None:
    commits = Commits(database)
    asked = asyncio.create_task(commits.make(noted("1")))
    await asyncio.sleep(0)
    asked.cancel()
    await asyncio.gather(asked, return_exceptions=True)
    await commits.drain()
    assert await names(database) == ["1"]
