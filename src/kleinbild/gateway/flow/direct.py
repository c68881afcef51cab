"""A job that somebody waits for, made at once in this process, without a workflow of its own.

It is a row like any other from the start: if the process dies, the next one finds it unfinished and goes on with it as a
workflow (`takeover`). Its row is written together with the money set aside for it, and its end with what that came
to: where many ask at once, many share a transaction.
"""

from __future__ import annotations

import asyncio
import logging
import time
from dataclasses import replace
from typing import TYPE_CHECKING

from kleinbild.core.jobs import Job, JobError, Outcome
from kleinbild.gateway.flow import durable
from kleinbild.gateway.flow.make import Plan, count_out, frees_key, kept_decision, made
from kleinbild.storage import jobs

if TYPE_CHECKING:
    from kleinbild.gateway.services import Services

NOT_KEPT = Outcome("failed", error=JobError("the server cannot write its database just now; ask again"))
log = logging.getLogger(__name__)


def running(job: Job) -> Job:
    """As it is from its beginning."""
    return replace(job, status="running", started_at=time.time())


def keep_and_begin(services: Services, job: Job, plan: Plan, position: int) -> asyncio.Task[None]:
    """The task that makes a job that runs. Nothing leaves this machine for it before its row is kept: both are committed in
    order."""
    hub = services.hub
    events = (hub.new(job, "job.queued", position=position), hub.new(job, "job.started"))
    kept = services.commits.begin(
        jobs.added(job, kept_decision(plan.decision, job), events), durable=False, alone=False
    )
    for event in events:
        hub.publish(event, recorded=True)
    return begin(services, job, kept)


def begin(services: Services, job: Job, kept: asyncio.Future[None] | None = None) -> asyncio.Task[None]:
    """The task that makes a job that runs, and whose row is `kept`, or is about to be."""
    task = asyncio.create_task(_make(services, job, kept))
    services.direct.add(task)
    task.add_done_callback(services.direct.discard)
    return task


async def _make(services: Services, job: Job, kept: asyncio.Future[None] | None) -> None:
    outcome = await made(services, job, fresh=True, booked=False)
    try:
        await _finish(services, job, outcome, kept)
    except Exception:
        log.exception("the job %s could not be ended; it is taken up again", job.id)
        await durable.start(job.id, again=True)


async def _finish(services: Services, job: Job, outcome: Outcome, kept: asyncio.Future[None] | None) -> None:
    now = time.time()
    event = services.hub.new(job, f"job.{outcome.status}")
    if kept is not None and not services.commits.in_order:
        await asyncio.wait([kept])  # what has no row yet cannot end
    ending = services.commits.begin(jobs.ended(job.id, outcome, now, event, release=frees_key(outcome)), durable=False)
    try:
        if kept is not None:
            await kept
    except Exception:
        log.exception("the job %s could not be kept", job.id)
        outcome, event = NOT_KEPT, services.hub.new(job, f"job.{NOT_KEPT.status}")
    ended = await ending
    count_out(services, job.id, outcome)
    if ended or outcome is NOT_KEPT:  # that one has no row, and somebody who waits
        services.finished.keep(replace(job, status=outcome.status, outcome=outcome, completed_at=now))
        services.hub.publish(event, recorded=True)
