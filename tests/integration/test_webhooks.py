"""Webhooks of a whole server, which is killed at the worst moments."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest
from standardwebhooks import Webhook

from tests.integration.process import ServerProcess, server_process
from tests.receiver import Receiver, receiving

DIES_BEFORE_IT_SENDS = """
import os, signal
from kleinbild.gateway.flow import durable

async def start_delivery(delivery_id):
    os.kill(os.getpid(), signal.SIGKILL)

durable.start_delivery = start_delivery
"""


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with receiving() as listening:
        yield listening


@pytest.fixture
def server(receiver: Receiver, tmp_path: Path) -> Iterator[ServerProcess]:
    variables = {
        "KLEINBILD_LIMITS__ALLOWED_NETWORKS": "127.0.0.0/8",
        "KLEINBILD_LIMITS__ALLOWED_PORTS": f"443,{receiver.port}",
    }
    with server_process(tmp_path, **variables) as running:
        yield running


def register(server: ServerProcess, receiver: Receiver) -> dict[str, Any]:
    answer = httpx2.post(f"{server.url}/v1/webhooks", json={"url": receiver.url("/hook")})
    assert answer.status_code == 201, answer.text
    found: dict[str, Any] = answer.json()
    return found


def submit(server: ServerProcess, webhook: str) -> str:
    body = {"task": "image.generate", "input": {"prompt": "a fox on a mint background", "seed": 7}, "webhook": webhook}
    answer = httpx2.post(f"{server.url}/v1/jobs", json=body)
    assert answer.status_code == 202, answer.text
    return str(answer.json()["id"])


def deliveries(server: ServerProcess, webhook: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = httpx2.get(f"{server.url}/v1/webhooks/{webhook}/deliveries").json()["data"]
    return found


def delivered(server: ServerProcess, webhook: str) -> dict[str, Any]:
    deadline = time.monotonic() + 120
    while (newest := deliveries(server, webhook)[0])["status"] != "delivered":
        assert time.monotonic() < deadline
        time.sleep(0.05)
    return newest


def test_killed_between_the_end_of_a_job_and_its_delivery(server: ServerProcess, receiver: Receiver) -> None:
    webhook = register(server, receiver)
    server.stop()
    server.start(DIES_BEFORE_IT_SENDS)
    job = submit(server, webhook["id"])
    server.wait_until_gone()
    assert server.process.returncode == -9
    assert receiver.at("/hook") == []
    server.start()
    (came,) = receiver.wait("/hook")
    event: Any = Webhook(webhook["secret"]).verify(came.body, came.headers)
    assert (event["type"], event["data"]["id"]) == ("job.completed", job)
    assert delivered(server, webhook["id"])["id"] == came.headers["webhook-id"]
    server.kill()
    server.start()
    server.wait_until_ready()
    time.sleep(1.5)  # what DBOS had not ended it begins again within a second
    assert len(receiver.at("/hook")) == 1


def test_killed_while_it_waits_to_try_again(server: ServerProcess, receiver: Receiver) -> None:
    webhook = register(server, receiver)
    receiver.answers["/hook"] = [503]
    submit(server, webhook["id"])
    (first,) = receiver.wait("/hook")
    while deliveries(server, webhook["id"])[0]["attempts"] == 0:
        time.sleep(0.02)
    time.sleep(0.5)
    server.kill()
    server.start()
    first, second = receiver.wait("/hook", 2)
    assert second.headers["webhook-id"] == first.headers["webhook-id"]
    assert second.at - first.at >= 5  # Standard Webhooks' five seconds hold across the restart
    Webhook(webhook["secret"]).verify(second.body, second.headers)
    newest = delivered(server, webhook["id"])
    assert (newest["attempts"], newest["last_status"]) == (2, 204)
    assert len(receiver.at("/hook")) == 2
    assert not any("WARNING" in line for line in server.log), server.log
