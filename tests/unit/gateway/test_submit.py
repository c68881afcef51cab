"""From a request to a job: once for a key, and never one that nobody makes."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx2
import pytest

from kleinbild.gateway.app import create_app
from kleinbild.gateway.lifespan import open_services
from kleinbild.gateway.services import Services
from kleinbild.gateway.settings import Settings

pytestmark = pytest.mark.anyio

INPUT = {"prompt": "a fox on a mint background", "size": "64x64", "steps": 1}


@asynccontextmanager
async def serving(folder: Path) -> AsyncIterator[tuple[Services, httpx2.AsyncClient]]:
    settings = Settings.model_validate({"server": {"data": folder}})
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
