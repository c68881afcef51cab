"""From a caller's work to a job that will be made: idempotency, admission, the row, the workflow."""

from __future__ import annotations

import asyncio
import hashlib
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from kleinbild.core.callers import Caller
from kleinbild.core.jobs import ImageWork, Job, JobError, Outcome
from kleinbild.gateway.errors import ApiError
from kleinbild.gateway.flow import direct, durable
from kleinbild.gateway.flow.admit import megapixels
from kleinbild.gateway.flow.make import Plan, finish, kept_decision, load_inputs, payers_of
from kleinbild.gateway.flow.route import ANYWHERE, Wish, route
from kleinbild.storage import decisions, idempotency, jobs, webhooks
from kleinbild.storage.idempotency import Claim
from kleinbild.storage.webhooks import BflWebhook

if TYPE_CHECKING:
    from kleinbild.gateway.services import Services

MAX_KEY = 255
_keeping: set[asyncio.Task[Submission]] = set()  # the event loop itself does not hold on to its tasks


NOT_BEGUN = Outcome("failed", error=JobError("it could not be begun; ask for it again"))


class _QuickerError(Exception):
    """Another request with the same idempotency key has been kept since this one looked for it."""


@dataclass(frozen=True, slots=True)
class Order:
    """What a caller asks for. `job_id` will be the job's, unless the same was asked for before.

    `waits`: he does so for the pictures, and does not come back for them. `key` is his idempotency key; `fingerprint` says what it stands for. `webhook` is told of the job's end, as `bfl` says
    if it is given.
    """

    job_id: str
    caller: Caller
    work: ImageWork
    warnings: tuple[str, ...] = ()
    wish: Wish = ANYWHERE
    key: str | None = None
    fingerprint: str = ""
    metadata: dict[str, str] | None = None
    webhook: str | None = None
    bfl: BflWebhook | None = None
    waits: bool = False


@dataclass(frozen=True, slots=True)
class Submission:
    """`replayed`: it was asked for before with the same key, and this is that job. `making` ends with the job, if this
    process makes it right away."""

    job: Job
    replayed: bool
    making: asyncio.Task[None] | None = None


async def submit(services: Services, order: Order) -> Submission:
    """Raises ApiError: 422 for a key used for something else, 429 when there is no room, and what is wrong in words."""
    if services.draining:
        raise ApiError(503, "the server is stopping", type="server_error", headers={"Retry-After": "5"})
    if known := await _known(services, order):
        return Submission(known, replayed=True)
    inputs = await load_inputs(services, order.work)
    routed = await route(services, order.caller, order.wish, order.work, inputs, order.job_id)
    job = Job(
        id=order.job_id,
        caller=order.caller.id,
        project=order.caller.project,
        work=order.work,
        created_at=time.time(),
        warnings=(*order.warnings, *routed.warnings),
        metadata=order.metadata,
        webhook=order.webhook,
        server=services.server,
    )
    position = services.admission.num_jobs
    await services.admission.admit(order.caller, job.id, order.work.n, megapixels(order.work))
    plan = services.plans[job.id] = Plan(routed.decision, payers_of(order.caller), inputs)
    if order.waits and order.webhook is None:
        job = direct.running(job)
        if order.key is None:
            return Submission(job, replayed=False, making=direct.keep_and_begin(services, job, plan, position))
    keeping = asyncio.create_task(_keep(services, order, job, position))
    _keeping.add(keeping)
    keeping.add_done_callback(_keeping.discard)
    return await asyncio.shield(keeping)  # a request that is cancelled leaves no job that nobody makes


def fingerprint(route: str, work: ImageWork, *more: object, seed_drawn: bool) -> str:
    """What must be the same for a key to mean the same. A seed that was drawn here says nothing."""
    parts = [
        route,
        *(f"{name}={getattr(work, name)!r}" for name in work.__dataclass_fields__ if name != "seed" or not seed_drawn),
        *map(repr, more),
    ]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


async def _known(services: Services, order: Order) -> Job | None:
    if order.key is None:
        return None
    if not 0 < len(order.key) <= MAX_KEY or not order.key.isprintable():
        raise ApiError(400, f"Idempotency-Key must have 1 to {MAX_KEY} printable characters", param="Idempotency-Key")
    async with services.database.read() as connection:
        held = await idempotency.holder(connection, order.caller.id, order.key, time.time())
        return None if held is None else _same(held, order, await jobs.find(connection, held.job_id))


async def _keep(services: Services, order: Order, job: Job, position: int) -> Submission:
    try:
        known = await _add(services, order, job, position)
    except BaseException:
        services.admission.ended(job.id)
        services.plans.pop(job.id, None)
        raise
    if known is not None:  # somebody was quicker with the same key
        services.admission.ended(job.id)
        services.plans.pop(job.id, None)
        return Submission(known, replayed=True)
    if job.status == "running":
        return Submission(job, replayed=False, making=direct.begin(services, job))
    try:
        await durable.start(job.id)
    except Exception:
        await finish(services, job.id, NOT_BEGUN, release=True)
        raise
    return Submission(job, replayed=False)


async def _add(services: Services, order: Order, job: Job, position: int) -> Job | None:
    """Keeps the job; or gives the one back that holds the order's key."""
    try:
        return await _add_once(services, order, job, position)
    except _QuickerError:
        return await _add_once(services, order, job, position)


async def _add_once(services: Services, order: Order, job: Job, position: int) -> Job | None:
    """Raises _QuickerError."""
    async with services.database.write() as connection:
        if order.key is not None:
            now = time.time()
            if held := await idempotency.holder(connection, order.caller.id, order.key, now):
                return _same(held, order, await jobs.find(connection, held.job_id))
        await jobs.add(connection, job)
        await decisions.add(connection, kept_decision(services.plans[job.id].decision, job))
        if order.bfl is not None:
            await webhooks.add_bfl(connection, order.bfl)
        if order.key is not None:
            claim = Claim(order.caller.id, order.key, order.fingerprint, job.id)
            if not await idempotency.take(connection, claim, now):
                raise _QuickerError
        happened = [await services.hub.record(connection, services.hub.new(job, "job.queued", position=position))]
        if job.status == "running":
            happened.append(await services.hub.record(connection, services.hub.new(job, "job.started")))
    for event in happened:
        services.hub.publish(event, recorded=True)
    return None


def _same(held: Claim, order: Order, job: Job | None) -> Job | None:
    if held.fingerprint != order.fingerprint:
        raise ApiError(
            422,
            f"the Idempotency-Key {order.key!r} was used for another request; use a new key for a new request",
            type="idempotency_error",
            code="idempotency_key_reused",
            param="Idempotency-Key",
        )
    return job
