"""How a job's end reaches a webhook: with the server's real services, database, workflows, and a receiver on loopback."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Iterator
from itertools import pairwise
from typing import Any

import pytest
from standardwebhooks import Webhook

from kleinbild.gateway.flow import notify
from kleinbild.gateway.flow.make import cancel, finish
from kleinbild.gateway.lifespan import open_services
from kleinbild.gateway.services import Services
from kleinbild.gateway.settings import Settings
from kleinbild.gateway.webhooks import RETRY_SECONDS
from kleinbild.storage import webhooks
from tests.receiver import Receiver, receiving
from tests.unit.gateway.project import COMPLETED, FAILED, Project, settings_for

pytestmark = pytest.mark.anyio
SOON = (0, 0.05, 0.05)


@pytest.fixture(scope="module")
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="module")
def receiver() -> Iterator[Receiver]:
    with receiving() as listening:
        yield listening


@pytest.fixture(scope="module")
def settings(receiver: Receiver, tmp_path_factory: pytest.TempPathFactory) -> Settings:
    return settings_for(receiver, tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
async def services(anyio_backend: str, settings: Settings) -> AsyncIterator[Services]:
    async with open_services(settings) as opened:
        opened.retry_seconds = SOON
        yield opened


@pytest.fixture
def project(services: Services, receiver: Receiver) -> Project:
    return Project(services, receiver)


@pytest.mark.parametrize("status", ["completed", "failed", "cancelled"])
async def test_however_a_job_ends_its_webhook_is_told(project: Project, services: Services, status: str) -> None:
    registered = await project.register()
    job = await project.job(registered["id"])
    if status == "cancelled":
        await cancel(services, job.id)
    else:
        await finish(services, job.id, COMPLETED if status == "completed" else FAILED)
    (came,) = await project.received()
    event: Any = Webhook(registered["secret"]).verify(came.body, came.headers)
    delivery = await project.settled(registered["id"])
    assert event["type"] == f"job.{status}"
    assert event["id"] == came.headers["webhook-id"] == delivery["id"]
    data = event["data"]
    assert (data["id"], data["status"], data["metadata"]) == (job.id, status, {"order": "12"})
    assert (data["error"] or {}).get("code") == ("engine_error" if status == "failed" else None)
    pictures = data["result"]["data"] if status == "completed" else []
    assert [(each["seed"], each["size"]) for each in pictures] == [(7, "64x64")] * len(pictures)
    assert all(each["url"].startswith("https://pictures.example/v1/media/abab") for each in pictures)
    assert b"fox" not in came.body
    assert (delivery["status"], delivery["attempts"], delivery["last_status"]) == ("delivered", 1, 204)
    assert (delivery["job_id"], delivery["type"]) == (job.id, f"job.{status}")


async def test_a_job_that_ends_twice_is_told_of_once(project: Project, services: Services) -> None:
    webhook = (await project.register())["id"]
    job = await project.job(webhook)
    await finish(services, job.id, COMPLETED)
    await finish(services, job.id, FAILED)
    await cancel(services, job.id)
    await project.settled(webhook)
    assert [each["type"] for each in await project.deliveries(webhook)] == ["job.completed"]
    assert len(await project.received()) == 1


async def test_the_end_and_its_delivery_are_there_together_or_not_at_all(
    project: Project, services: Services, monkeypatch: pytest.MonkeyPatch
) -> None:
    webhook = (await project.register())["id"]
    job = await project.job(webhook)

    async def broken(*_: object) -> None:
        raise OSError("disk full")

    with monkeypatch.context() as patch:
        patch.setattr(webhooks, "add_delivery", broken)
        with pytest.raises(OSError, match="disk full"):
            await finish(services, job.id, COMPLETED)
    assert (await project.http.get(f"/v1/jobs/{job.id}")).json()["status"] == "queued"
    await finish(services, job.id, COMPLETED)
    assert (await project.settled(webhook))["status"] == "delivered"


async def test_what_fails_is_tried_again_as_the_same_event(
    project: Project, services: Services, receiver: Receiver
) -> None:
    registered = await project.register()
    receiver.answers[project.path] = [500, 404]
    await finish(services, (await project.job(registered["id"])).id, COMPLETED)
    came = await project.received(3)
    delivery = await project.settled(registered["id"])
    assert (delivery["status"], delivery["attempts"], delivery["last_status"]) == ("delivered", 3, 204)
    assert {each.headers["webhook-id"] for each in came} == {delivery["id"]}
    for each in came:
        Webhook(registered["secret"]).verify(each.body, each.headers)
    gaps = [later.at - earlier.at for earlier, later in pairwise(came)]
    assert all(gap > 0.05 for gap in gaps)


async def test_after_the_last_attempt_it_is_given_up(project: Project, services: Services, receiver: Receiver) -> None:
    webhook = (await project.register())["id"]
    receiver.answers[project.path] = [500] * 9
    await finish(services, (await project.job(webhook)).id, COMPLETED)
    delivery = await project.settled(webhook)
    assert (delivery["status"], delivery["attempts"], delivery["delivered_at"]) == ("given_up", len(SOON), None)
    await asyncio.sleep(0.2)
    assert len(receiver.at(project.path)) == len(SOON)
    async with services.database.read() as connection:
        assert delivery["id"] not in await webhooks.undelivered(connection)


@pytest.mark.parametrize("status", [301, 302, 307, 308])
async def test_a_redirect_is_a_failure_and_not_followed(
    project: Project, services: Services, receiver: Receiver, status: int
) -> None:
    webhook = (await project.register())["id"]
    receiver.answers[project.path] = [status] * len(SOON)
    await finish(services, (await project.job(webhook)).id, COMPLETED)
    delivery = await project.settled(webhook)
    assert (delivery["status"], delivery["last_status"]) == ("given_up", status)
    assert receiver.at("/elsewhere") == []


async def test_an_endpoint_that_is_gone_is_told_nothing_more(
    project: Project, services: Services, receiver: Receiver
) -> None:
    webhook = (await project.register())["id"]
    receiver.answers[project.path] = [410]
    await finish(services, (await project.job(webhook)).id, COMPLETED)
    delivery = await project.settled(webhook)
    assert (delivery["status"], delivery["attempts"], delivery["last_status"]) == ("given_up", 1, 410)
    assert (await project.http.get(f"/v1/webhooks/{webhook}")).json()["disabled_at"] is not None
    await finish(services, (await project.job(webhook)).id, COMPLETED)
    assert len(await project.deliveries(webhook)) == 1


async def test_what_waits_for_an_endpoint_that_is_disabled_meanwhile_is_given_up(
    project: Project, services: Services, receiver: Receiver
) -> None:
    webhook = (await project.register())["id"]
    services.retry_seconds = (0, 0.5)
    receiver.answers[project.path] = [500]
    await finish(services, (await project.job(webhook)).id, COMPLETED)
    await project.received()
    async with services.database.write() as connection:
        await webhooks.disable(connection, webhook, time.time())
    delivery = await project.settled(webhook)
    services.retry_seconds = SOON
    assert (delivery["status"], delivery["attempts"]) == ("given_up", 1)


async def test_after_a_rotation_both_secrets_sign(project: Project, services: Services) -> None:
    registered = await project.register()
    rotated = (await project.http.post(f"/v1/webhooks/{registered['id']}/rotate")).json()
    await finish(services, (await project.job(registered["id"])).id, COMPLETED)
    (came,) = await project.received()
    for secret in (registered["secret"], rotated["secret"]):
        assert json.loads(came.body) == Webhook(secret).verify(came.body, came.headers)


async def test_only_what_an_endpoint_wants_is_told(project: Project, services: Services) -> None:
    webhook = (await project.register(events=["job.failed"]))["id"]
    for outcome in (COMPLETED, FAILED):
        await finish(services, (await project.job(webhook)).id, outcome)
    await project.settled(webhook)
    assert [each["type"] for each in await project.deliveries(webhook)] == ["job.failed"]
    assert len(await project.received()) == 1


async def test_deliveries_are_listed_newest_first_to_their_project(project: Project, services: Services) -> None:
    webhook = (await project.register())["id"]
    for _ in range(3):
        await finish(services, (await project.job(webhook)).id, COMPLETED)
        await project.settled(webhook)
    ids = [each["id"] for each in await project.deliveries(webhook)]
    assert ids == sorted(ids, reverse=True)
    page = (await project.http.get(f"/v1/webhooks/{webhook}/deliveries?limit=2")).json()
    assert ([each["id"] for each in page["data"]], page["has_more"]) == (ids[:2], True)
    assert [each["id"] for each in await project.deliveries(webhook, after=page["last_id"])] == ids[2:]
    project.name = "another"
    assert (await project.http.get(f"/v1/webhooks/{webhook}/deliveries")).status_code == 404


async def test_a_bug_in_sending_is_a_failed_attempt(
    project: Project, services: Services, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Such as a secret that was sealed with another master key: nothing is sent, and it ends."""
    webhook = (await project.register())["id"]
    async with services.database.write() as connection:
        await webhooks.rotate(connection, webhook, project.name, "bm90IHNlYWxlZCBhdCBhbGwsIGJ1dCBsb25n", 0.0)
    await finish(services, (await project.job(webhook)).id, COMPLETED)
    assert (await project.settled(webhook))["status"] == "given_up"
    assert project.receiver.at(project.path) == []


def test_times_are_spread_upwards_and_no_wait_stays_none() -> None:
    assert notify.jittered(0) == 0
    drawn = [notify.jittered(100) for _ in range(200)]
    assert 100 <= min(drawn) < max(drawn) <= 120
    assert Services.__dataclass_fields__["retry_seconds"].default == RETRY_SECONDS


async def test_pictures_have_no_url_where_nobody_knows_how_they_are_reached(
    project: Project, services: Services
) -> None:
    webhook = (await project.register())["id"]
    before = services.settings
    services.settings = before.model_copy(update={"server": before.server.model_copy(update={"public_url": None})})
    await finish(services, (await project.job(webhook)).id, COMPLETED)
    (came,) = await project.received()
    services.settings = before
    assert json.loads(came.body)["data"]["result"] == {"data": [{"seed": 7, "size": "64x64"}]}
