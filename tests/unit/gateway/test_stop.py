"""The server stops: nothing that is under way holds it up, and nothing of it is lost."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from kleinbild.gateway.flow.make import finish
from kleinbild.gateway.lifespan import open_services
from kleinbild.storage import webhooks
from tests.receiver import Receiver, receiving
from tests.unit.gateway.project import COMPLETED, Project, settings_for

pytestmark = pytest.mark.anyio


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with receiving() as listening:
        yield listening


async def test_a_stop_waits_for_no_delivery_and_the_next_start_sends_it(receiver: Receiver, tmp_path: Path) -> None:
    """One that is being sent and one that waits to be tried again; each arrives with its id."""
    settings = settings_for(receiver, tmp_path)
    async with open_services(settings) as first:
        slow, waiting = Project(first, receiver), Project(first, receiver)
        receiver.hold.add(slow.path)
        receiver.answers[waiting.path] = [500]
        first.retry_seconds = (0, 1.5)
        for project in (slow, waiting):
            webhook = (await project.register())["id"]
            await finish(first, (await project.job(webhook)).id, COMPLETED)
            await project.received()
        begun = time.monotonic()
    assert time.monotonic() - begun < 12  # the receiver would be waited for longer: WEBHOOK_SECONDS
    receiver.hold.clear()
    async with open_services(settings) as second:
        second.retry_seconds = (0, 1.5)
        for project in (slow, waiting):
            again = Project(second, receiver)
            again.name, again.path = project.name, project.path
            came = await again.received(2)
            assert len({each.headers["webhook-id"] for each in came}) == 1
            async with second.database.read() as connection:
                (endpoint,) = await webhooks.of_project(connection, project.name)
            assert (await again.settled(endpoint.id))["status"] == "delivered"
            assert len(receiver.at(project.path)) == 2
