"""What DBOS keeps of jobs: no more than is needed, and never what holds a job up."""

from __future__ import annotations

import asyncio
import time
from dataclasses import replace
from pathlib import Path

import pytest
from dbos import DBOS

from kleinbild.core.callers import LOCAL
from kleinbild.core.errors import PromptError, WorkerError
from kleinbild.core.jobs import ImageWork, Job
from kleinbild.core.sizes import Size
from kleinbild.gateway.flow import durable, make
from kleinbild.gateway.flow.submit import Order, submit
from kleinbild.gateway.lifespan import open_services
from kleinbild.gateway.services import Services
from kleinbild.gateway.settings import Settings
from kleinbild.storage import jobs

pytestmark = pytest.mark.anyio

WORK = ImageWork("image.generate", "a fox on a mint background", "nano", seed=1, size=Size(64, 64), steps=1)


def settings(folder: Path) -> Settings:
    return Settings.model_validate({"server": {"data": folder}})


async def ended(services: Services, job_id: str) -> Job:
    async with asyncio.timeout(60):
        while True:
            async with services.database.read() as connection:
                job = await jobs.find(connection, job_id)
            assert job is not None
            if job.outcome is not None:
                return job
            await asyncio.sleep(0.05)


async def workflows() -> list[tuple[str, str]]:
    return [(found.workflow_id, found.status) for found in await DBOS.list_workflows_async()]


async def until_workflow(job_id: str, status: str) -> None:
    async with asyncio.timeout(60):
        while True:
            if (job_id, status) in await workflows():
                return
            await asyncio.sleep(0.05)


async def test_a_failure_of_the_database_is_waited_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    failures = iter([OSError("the disk is full"), OSError("the disk is full")])
    finish = jobs.finish

    async def failing(*arguments):
        for failure in failures:
            raise failure
        return await finish(*arguments)

    monkeypatch.setattr(make.jobs, "finish", failing)
    async with open_services(settings(tmp_path)) as services:
        await submit(services, Order("job_a", LOCAL, WORK))
        assert (await ended(services, "job_a")).status == "completed"


async def test_a_job_whose_workflow_has_ended_without_it_is_made_after_the_next_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with open_services(settings(tmp_path)) as services:
        monkeypatch.setattr(durable, "_persistent", lambda name: {"name": name})
        with monkeypatch.context() as broken:
            broken.setattr(make.jobs, "finish", None)
            await submit(services, Order("job_a", LOCAL, WORK))
            await until_workflow("job_a", "ERROR")
    async with open_services(settings(tmp_path)) as services:
        assert (await ended(services, "job_a")).status == "completed"


async def test_what_was_begun_beside_a_job_that_was_made_is_taken_up_with_its_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a second call that was slower, of a server that ended between the first one's pictures and the job's end."""
    reached, left = asyncio.Event(), []

    async def never(*_):
        left.append(asyncio.current_task())  # held: a task that nothing holds is collected while it waits
        reached.set()
        await asyncio.Event().wait()

    async with open_services(settings(tmp_path)) as services:
        with monkeypatch.context() as ending:
            ending.setattr(make, "finish", never)
            await submit(services, Order("job_a", LOCAL, WORK))
            await reached.wait()
        (made,) = await services.ledger.of_job("job_a")
        slower = replace(made.attempt, id="att_slower", kind="openai", provider="a", deployment="a", number=2)
        await services.ledger.reserve(slower, ())
    async with open_services(settings(tmp_path)) as services:
        assert (await ended(services, "job_a")).status == "completed"
        async with asyncio.timeout(10):
            while True:
                entry = await services.ledger.find("att_slower")
                if entry is not None and entry.state == "unknown":
                    break
                await asyncio.sleep(0.05)
    left[0].cancel()
    await asyncio.gather(*left, return_exceptions=True)


async def test_workflows_that_ended_long_ago_are_forgotten_and_their_jobs_are_not(tmp_path: Path) -> None:
    async with open_services(settings(tmp_path)) as services:
        await submit(services, Order("job_a", LOCAL, WORK))
        await ended(services, "job_a")
        await until_workflow("job_a", "SUCCESS")
        await durable.forget(time.time() - 60)
        assert await workflows() == [("job_a", "SUCCESS")]
        await durable.forget(time.time() + 1)
        assert await workflows() == []
        assert (await ended(services, "job_a")).status == "completed"


async def test_a_failure_of_ours_frees_the_key_and_one_of_the_callers_does_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with open_services(settings(tmp_path)) as services:
        for error, name in ((WorkerError("the engine's process ended"), "ours"), (PromptError("a bad word"), "theirs")):

            async def failing(*_, error=error, **__):
                raise error

            def order(job_id: str, key: str = name) -> Order:
                return Order(job_id, LOCAL, WORK, key=key, fingerprint="same")

            with monkeypatch.context() as broken:
                broken.setattr(make, "_pictures", failing)
                await submit(services, order(f"job_{name}1"))
                assert (await ended(services, f"job_{name}1")).status == "failed"
            again = await submit(services, order(f"job_{name}2"))
            assert again.replayed is (name == "theirs")
            if not again.replayed:
                assert (await ended(services, again.job.id)).status == "completed"
