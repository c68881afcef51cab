"""Errors that no route makes: a method that a path does not take, a client that goes away, a bug."""

from __future__ import annotations

import asyncio
import logging

import httpx2
import pytest
from fastapi import Request
from pydantic import TypeAdapter
from pydantic_core import to_json

from kleinbild.core.errors import BusyError, PlacesError
from kleinbild.core.jobs import ImageWork, Job, JobError, Outcome
from kleinbild.gateway.api.waiting import require_pictures
from kleinbild.gateway.app import create_app
from kleinbild.gateway.bodies import read_form, read_json
from kleinbild.gateway.errors import ApiError, client_gone, job_error
from kleinbild.gateway.settings import Settings
from tests.unit.gateway.serving import serving

pytestmark = pytest.mark.anyio


async def test_a_method_that_a_path_does_not_take_is_told_which_it_does() -> None:
    transport = httpx2.ASGITransport(app=create_app(Settings()))
    async with httpx2.AsyncClient(transport=transport, base_url="http://localhost") as client:
        answer = await client.put("/v1/files")
    assert (answer.status_code, answer.headers["allow"]) == (405, "GET, POST")
    assert answer.json()["error"]["code"] == "method_not_allowed"
    assert "GET, POST, not PUT" in answer.json()["error"]["message"]


async def test_a_bug_is_told_by_the_id_under_which_the_log_has_it(caplog: pytest.LogCaptureFixture) -> None:
    app = create_app(Settings())
    app.state.services = None  # every route needs them
    transport = httpx2.ASGITransport(app=app, raise_app_exceptions=False)
    with caplog.at_level(logging.ERROR):
        async with httpx2.AsyncClient(transport=transport, base_url="http://localhost") as client:
            answer = await client.get("/v1/files")
    request_id = answer.headers["x-request-id"]
    assert (answer.status_code, answer.json()["error"]["type"]) == (500, "server_error")
    assert request_id in answer.json()["error"]["message"]
    assert any(request_id in record.getMessage() for record in caplog.records)


@pytest.mark.parametrize("content_type", ["application/json", "multipart/form-data; boundary=b"])
async def test_a_client_that_breaks_off_its_body_is_no_bug(content_type: str, caplog: pytest.LogCaptureFixture) -> None:
    app = create_app(Settings())
    ended = asyncio.Event()

    @app.post("/read")
    async def read(request: Request) -> None:
        try:
            if "json" in content_type:
                await read_json(request)
            async with read_form(request):
                pass
        finally:
            ended.set()

    async with serving(app) as url:
        _, writer = await asyncio.open_connection("127.0.0.1", int(url.rsplit(":", 1)[1]))
        head = f"POST /read HTTP/1.1\r\nhost: x\r\ncontent-type: {content_type}\r\ncontent-length: 100\r\n\r\n--b\r\n"
        writer.write(head.encode())
        await writer.drain()
        writer.close()
        async with asyncio.timeout(10):
            await ended.wait()
    assert [record.getMessage() for record in caplog.records if record.levelno >= logging.ERROR] == []


async def test_a_client_that_has_gone_is_a_problem_too() -> None:
    """Its status has no phrase in the standard library."""
    app = create_app(Settings())

    @app.get("/gone")
    async def gone() -> None:
        raise client_gone()

    transport = httpx2.ASGITransport(app=app)
    async with httpx2.AsyncClient(transport=transport, base_url="http://localhost") as client:
        answer = await client.get("/gone", headers={"accept": "application/problem+json"})
    assert (answer.status_code, answer.json()["title"]) == (499, "Client Closed Request")


@pytest.mark.parametrize(("seconds", "told"), [(0.2, "1"), (8.1, "9")])
def test_a_job_for_which_no_place_could_be_asked_is_503_and_says_when_to_come_back(seconds: float, told: str) -> None:
    kept = TypeAdapter(JobError).validate_json(to_json(job_error(BusyError("all rest", retry_after=seconds))))
    work = ImageWork("image.generate", "a fox", "nano", 1)
    job = Job("job_1", "key", "p", work, created_at=1, status="failed", outcome=Outcome("failed", error=kept))
    with pytest.raises(ApiError) as caught:
        require_pictures(job)
    assert (caught.value.status, caught.value.type, caught.value.code) == (503, "server_error", "no_deployment")
    assert caught.value.headers == {"Retry-After": told, "x-kleinbild-decision": "dec_1"}


def test_other_failures_do_not_say_when_to_come_back() -> None:
    error = ApiError.of(PlacesError("none made it"))
    assert (error.status, error.headers) == (502, {})
