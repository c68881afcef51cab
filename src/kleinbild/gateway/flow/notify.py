"""The steps of telling a webhook how a job ended: note that it is to be told, send it, give it up. `durable` runs them.

What is to be told is a row that is written with the job's end, so that neither is there without the other. It may arrive
twice, if the server is killed after it was sent and before that was noted; its id is the same then.
"""

from __future__ import annotations

import json
import logging
import random
import time
from typing import TYPE_CHECKING, Any

from sqlalchemy.ext.asyncio import AsyncConnection

from kleinbild.core.ids import new_id
from kleinbild.core.jobs import Job
from kleinbild.gateway import bfl
from kleinbild.gateway.answers import picture_objects
from kleinbild.gateway.errors import as_object
from kleinbild.gateway.urls import public_url
from kleinbild.gateway.webhooks import (
    Attempt,
    WebhookEvent,
    deliver_once,
    receiver_of,
    send_once,
    sign,
    sign_for_bfl,
    unseal,
)
from kleinbild.storage import jobs, tunings, webhooks
from kleinbild.storage.tunings import Tuning
from kleinbild.storage.webhooks import BflWebhook, Delivery, Endpoint

if TYPE_CHECKING:
    from kleinbild.gateway.services import Services

JITTER = 0.2  # of the time between attempts, so that many that failed together do not come back together
log = logging.getLogger(__name__)


async def record(connection: AsyncConnection, job: Job, now: float, server: int) -> Delivery | None:
    """The delivery of the job's end by that server, in the transaction that ends it; None if nobody wants to be told."""
    if job.webhook is None:
        return None
    type_ = f"job.{job.status}"
    endpoint = await webhooks.find(connection, job.webhook, job.project)
    if endpoint is None or not endpoint.wants(type_):
        return None
    delivery = Delivery(new_id("evt"), endpoint.id, job.id, type_, now, server=server)
    await webhooks.add_delivery(connection, delivery)
    return delivery


async def record_tuning(connection: AsyncConnection, tuning: Tuning, now: float, server: int) -> list[Delivery]:
    """The deliveries of a fine-tuning job's end to all of its project that want to be told."""
    type_ = f"fine_tuning.job.{tuning.status}"
    wanting = [each for each in await webhooks.of_project(connection, tuning.project) if each.wants(type_)]
    told = [Delivery(new_id("evt"), each.id, tuning.id, type_, now, server=server) for each in wanting]
    for delivery in told:
        await webhooks.add_delivery(connection, delivery)
    return told


async def send(services: Services, delivery_id: str) -> bool:
    """Tries once. Whether it is settled: delivered, or nobody is to be told any more."""
    try:
        return await _send(services, delivery_id)
    except Exception:
        log.exception("the delivery %s failed by a bug", delivery_id)
        return False


async def give_up(services: Services, delivery_id: str) -> None:
    async with services.database.write() as connection:
        await webhooks.given_up(connection, delivery_id, time.time())


def jittered(seconds: float) -> float:
    """`seconds`, or up to a fifth more."""
    return seconds * (1 + JITTER * random.random())


async def _send(services: Services, delivery_id: str) -> bool:
    async with services.database.read() as connection:
        delivery = await webhooks.find_delivery(connection, delivery_id)
        if delivery is None or delivery.delivered_at is not None or delivery.given_up_at is not None:
            return True  # its webhook was deleted, or it was noted just before the server was killed
        endpoint = await webhooks.find(connection, delivery.webhook_id)
        job = await jobs.find(connection, delivery.job_id)
        is_tuning = job is None and await tunings.find(connection, delivery.job_id) is not None
        as_bfl = await webhooks.find_bfl(connection, delivery.job_id)
    if endpoint is None or endpoint.disabled_at is not None or (job is None and not is_tuning):
        await give_up(services, delivery_id)
        return True
    if job is None or as_bfl is None:
        attempt = await _attempt(services, delivery, endpoint, job)
    else:
        attempt = await _attempt_as_bfl(services, delivery, endpoint, job, as_bfl)
    await _note(services, delivery, attempt)
    return attempt.outcome != "retry"


async def _attempt(services: Services, delivery: Delivery, endpoint: Endpoint, job: Job | None) -> Attempt:
    """Of a fine-tuning job, which is no `job`, OpenAI tells the id alone, and so is it here."""
    now = time.time()
    receiver = receiver_of(endpoint, _key(services), now)
    data = {"id": delivery.job_id} if job is None else _data(services, job)
    event = WebhookEvent(delivery.id, delivery.type, delivery.created_at, delivery.job_id, data)
    return await deliver_once(receiver, event, client=services.fetcher, now=now)


async def _attempt_as_bfl(
    services: Services, delivery: Delivery, endpoint: Endpoint, job: Job, as_bfl: BflWebhook
) -> Attempt:
    """BFL's body, with its signature if the client gave a secret for it, and ours."""
    now, key = time.time(), _key(services)
    body = json.dumps(bfl.webhook_object(services, job, public_url(services))).encode()
    headers = {
        "content-type": "application/json",
        **sign(receiver_of(endpoint, key, now).secrets, delivery.id, now, body),
    }
    if as_bfl.secret is not None:
        headers |= sign_for_bfl(unseal(as_bfl.secret, job.id, key), body)
    return await send_once(endpoint.url, body, headers, client=services.fetcher)


def _key(services: Services) -> bytes:
    return services.secrets.derive("webhook secrets")


async def _note(services: Services, delivery: Delivery, attempt: Attempt) -> None:
    now = time.time()
    delivered = attempt.outcome == "delivered"
    async with services.database.write() as connection:
        await webhooks.attempted(connection, delivery.id, attempt.status, now, delivered=delivered)
        if attempt.outcome == "gone":
            await webhooks.given_up(connection, delivery.id, now)
            await webhooks.disable(connection, delivery.webhook_id, now)


def _data(services: Services, job: Job) -> dict[str, Any]:
    """What the event says of the job. Without `server.public_url` nobody knows here how its pictures are reached."""
    outcome = job.outcome
    assert outcome is not None
    assert job.completed_at is not None
    pictures = picture_objects(services, job, public_url(services))
    return {
        "id": job.id,
        "object": "job",
        "status": job.status,
        "task": job.work.task,
        "model": job.work.model,
        "created_at": int(job.created_at),
        "completed_at": int(job.completed_at),
        "result": {"data": pictures} if pictures else None,
        "error": as_object(outcome.error) if outcome.error else None,
        "metadata": job.metadata or {},
    }
