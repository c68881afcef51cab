"""A project of a real server's services, with jobs that a test ends as it likes and webhooks that it receives."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from typing import Any

import httpx2

from kleinbild.core.callers import Caller
from kleinbild.core.ids import new_id
from kleinbild.core.jobs import ImageWork, Job, JobError, MadePicture, Outcome
from kleinbild.core.sizes import Size
from kleinbild.gateway.app import create_app
from kleinbild.gateway.flow import authenticate
from kleinbild.gateway.services import Services
from kleinbild.gateway.settings import Settings
from kleinbild.storage import jobs
from tests.receiver import Received, Receiver

COMPLETED = Outcome("completed", (MadePicture("ab" * 32, 7, Size(64, 64), 100),))
FAILED = Outcome("failed", error=JobError("out of memory", code="engine_error"))


def settings_for(receiver: Receiver, data: Path) -> Settings:
    return Settings.model_validate(
        {
            "server": {"data": data, "public_url": "https://pictures.example/"},
            "limits": {"allowed_networks": ["127.0.0.0/8"], "allowed_ports": [receiver.port]},
        }
    )


class Project:
    """A project of its own, whose webhooks lead to one path of the receiver."""

    def __init__(self, services: Services, receiver: Receiver) -> None:
        self.services, self.receiver = services, receiver
        self.name = new_id("project")
        self.path = f"/{self.name}"
        app = create_app(services.settings)
        app.state.services = services
        app.dependency_overrides[authenticate.caller] = lambda: Caller("key", "ada", self.name)
        self.http = httpx2.AsyncClient(transport=httpx2.ASGITransport(app), base_url="http://server")

    async def register(self, **fields: Any) -> dict[str, Any]:
        answer = await self.http.post("/v1/webhooks", json={"url": self.receiver.url(self.path), **fields})
        assert answer.status_code == 201, answer.text
        found: dict[str, Any] = answer.json()
        return found

    async def job(self, webhook: str | None) -> Job:
        """One that nobody makes, so that a test can end it as it likes."""
        work = ImageWork("image.generate", "a fox on a mint background", "nano", seed=7)
        job = Job(new_id("job"), "key", self.name, work, time.time(), webhook=webhook, metadata={"order": "12"})
        async with self.services.database.write() as connection:
            await jobs.add(connection, job)
        return job

    async def deliveries(self, webhook: str, **params: Any) -> list[dict[str, Any]]:
        answer = await self.http.get(f"/v1/webhooks/{webhook}/deliveries", params=params)
        assert answer.status_code == 200, answer.text
        found: list[dict[str, Any]] = answer.json()["data"]
        return found

    async def settled(self, webhook: str) -> dict[str, Any]:
        """Its newest delivery when nothing more is tried."""
        async with asyncio.timeout(60):
            while (newest := (await self.deliveries(webhook))[0])["status"] == "pending":  # noqa: ASYNC110 - by HTTP
                await asyncio.sleep(0.02)
        return newest

    async def received(self, count: int = 1) -> list[Received]:
        return await asyncio.to_thread(self.receiver.wait, self.path, count)
