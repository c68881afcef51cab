"""A job that is made at once and ends, on databases that commit in order and on one that does not."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from kleinbild.core.jobs import ImageWork, Job, JobError, Outcome
from kleinbild.gateway.events import EventHub
from kleinbild.gateway.flow import direct
from kleinbild.gateway.services import Finished
from kleinbild.storage import jobs
from kleinbild.storage.commits import Commits
from kleinbild.storage.database import open_database, sqlite_url
from kleinbild.storage.decisions import Decision
from tests.postgres import Postgres, postgres

pytestmark = pytest.mark.anyio
FAILED = Outcome("failed", error=JobError("no money is left"))


@pytest.fixture(scope="module")
def postgresql() -> Iterator[Postgres]:
    with postgres() as running:
        yield running


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "sqlite":
        return sqlite_url(tmp_path / "kleinbild.db")
    server: Postgres = request.getfixturevalue("postgresql")
    return server.new_database()


async def test_a_job_that_fails_sooner_than_its_row_is_kept_has_ended(url: str) -> None:
    database = await open_database(url)
    commits, hub, finished = Commits(database), EventHub(database), Finished()
    services: Any = SimpleNamespace(
        commits=commits, hub=hub, finished=finished, admission=SimpleNamespace(ended=lambda *_: None)
    )
    work = ImageWork("image.generate", "a fox", "nano", 1)
    job = Job("job_1", "a", "p", work, created_at=1.0, status="running")
    added = jobs.added(job, Decision("dec_1", job.id, "a", "p", 1.0, {}), ())

    async def slowly() -> None:
        await asyncio.sleep(0.2)
        await commits.make(added)

    kept = commits.begin(added) if commits.in_order else asyncio.ensure_future(slowly())
    with hub.listen("p", job.id) as live:
        await direct._finish(services, job, FAILED, kept)
        async with asyncio.timeout(5):
            event = await live.next()
    assert event is not None
    assert event.type == "job.failed"
    async with database.read() as connection:
        found = await jobs.find(connection, job.id)
    assert found is not None
    assert found.status == "failed"
    await commits.drain()
    await database.close()
