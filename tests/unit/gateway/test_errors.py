"""Errors that no route makes: a method that a path does not take, a bug."""

from __future__ import annotations

import logging

import httpx2
import pytest

from kleinbild.gateway.app import create_app
from kleinbild.gateway.settings import Settings

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
