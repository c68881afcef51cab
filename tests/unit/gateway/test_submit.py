"""From a request to a job: once for a key, and never one that nobody makes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx2
import pytest

from kleinbild.gateway.api import jobs as jobs_routes
from kleinbild.gateway.app import create_app
from kleinbild.gateway.flow import durable, make
from kleinbild.gateway.lifespan import open_services
from kleinbild.gateway.services import Services
from kleinbild.gateway.settings import Settings
from tests.postgres import Postgres, postgres

pytestmark = pytest.mark.anyio

INPUT = {"prompt": "a fox on a mint background", "size": "64x64", "steps": 1}


@pytest.fixture(scope="module")
def postgresql() -> Iterator[Postgres]:
    with postgres() as running:
        yield running


@asynccontextmanager
async def serving(folder: Path, database_url: str | None = None) -> AsyncIterator[tuple[Services, httpx2.AsyncClient]]:
    settings = Settings.model_validate({"server": {"data": folder}, "storage": {"database_url": database_url}})
    app = create_app(settings)
    async with open_services(settings) as services:
        app.state.services = services
        transport = httpx2.ASGITransport(app, raise_app_exceptions=False)
        async with httpx2.AsyncClient(transport=transport, base_url="http://localhost", timeout=60) as client:
            yield services, client


async def test_a_key_stands_for_metadata_and_webhook_too(tmp_path: Path) -> None:
    async with serving(tmp_path) as (_, client):
        urls = ("https://one.example/", "https://two.example/")
        one, two = [(await client.post("/v1/webhooks", json={"url": url})).json()["id"] for url in urls]

        async def ask(**fields: Any) -> httpx2.Response:
            body = {"task": "image.generate", "input": INPUT, **fields}
            return await client.post("/v1/jobs", json=body, headers={"Idempotency-Key": "k"})

        first = await ask(metadata={"order": "12", "line": "1"}, webhook=one)
        assert first.status_code == 202, first.text
        again = await ask(metadata={"line": "1", "order": "12"}, webhook=one)
        assert (again.json()["id"], again.headers["Idempotent-Replayed"]) == (first.json()["id"], "true")
        assert (await ask(metadata={"order": "13", "line": "1"}, webhook=one)).status_code == 422
        assert (await ask(metadata={"order": "12", "line": "1"}, webhook=two)).status_code == 422
        assert (await ask(metadata={"order": "12", "line": "1"})).status_code == 422


async def test_requests_with_one_key_at_once_are_one_job_on_postgresql(tmp_path: Path, postgresql: Postgres) -> None:
    async with serving(tmp_path, postgresql.new_database()) as (services, client):
        body = {"task": "image.generate", "input": INPUT}
        asking = [client.post("/v1/jobs", json=body, headers={"Idempotency-Key": "k"}) for _ in range(8)]
        answers = await asyncio.gather(*asking)
        assert [answer.status_code for answer in answers] == [202] * 8, [answer.text for answer in answers]
        assert len({answer.json()["id"] for answer in answers}) == 1
        assert sum("Idempotent-Replayed" in answer.headers for answer in answers) == 7
        assert services.admission.num_jobs <= 1


async def test_a_job_that_cannot_be_begun_holds_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with serving(tmp_path) as (services, client):

        async def failing(job_id: str) -> None:
            raise OSError("the disk is full")

        async def ask() -> httpx2.Response:
            body = {"task": "image.generate", "input": INPUT}
            return await client.post("/v1/jobs", json=body, headers={"Idempotency-Key": "k"})

        with monkeypatch.context() as broken:
            broken.setattr(durable, "start", failing)
            assert (await ask()).status_code == 500
        assert services.admission.num_jobs == 0
        (failed,) = (await client.get("/v1/jobs")).json()["data"]
        assert (failed["status"], failed["error"]["message"]) == ("failed", "it could not be begun; ask for it again")
        again = await ask()
        assert again.status_code == 202
        assert again.json()["id"] != failed["id"]


async def test_a_request_that_is_cancelled_leaves_no_job_that_nobody_makes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with serving(tmp_path) as (services, client):
        begun, start = asyncio.Event(), durable.start

        async def slow(job_id: str) -> None:
            begun.set()
            await asyncio.sleep(0.1)
            await start(job_id)

        monkeypatch.setattr(durable, "start", slow)
        asking = asyncio.create_task(client.post("/v1/jobs", json={"task": "image.generate", "input": INPUT}))
        await begun.wait()
        asking.cancel()
        await asyncio.gather(asking, return_exceptions=True)
        async with asyncio.timeout(30):
            while (await client.get("/v1/jobs")).json()["data"][0]["status"] != "completed":  # noqa: ASYNC110 - by HTTP
                await asyncio.sleep(0.05)
            while services.admission.num_jobs:  # noqa: ASYNC110 - it has no event for it
                await asyncio.sleep(0.05)


async def test_a_cancel_that_comes_too_late_tells_how_the_job_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with serving(tmp_path) as (_, client):
        job_id = (await client.post("/v1/jobs", json={"task": "image.generate", "input": INPUT})).json()["id"]

        async def late(*arguments):
            async with asyncio.timeout(30):
                while (await client.get(f"/v1/jobs/{job_id}")).json()["status"] != "completed":  # noqa: ASYNC110 - by HTTP
                    await asyncio.sleep(0.05)
            return await make.cancel(*arguments)

        monkeypatch.setattr(jobs_routes, "cancel", late)
        assert (await client.post(f"/v1/jobs/{job_id}/cancel")).json()["status"] == "completed"
