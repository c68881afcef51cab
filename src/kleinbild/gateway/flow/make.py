"""The steps of a job: make its pictures, and end it, once. `durable` runs them, and again after an interruption."""

from __future__ import annotations

import asyncio
import logging
import time
from dataclasses import dataclass, replace
from http import HTTPStatus
from typing import TYPE_CHECKING

from kleinbild.core.callers import Caller
from kleinbild.core.errors import KleinbildError, NoPlaceError
from kleinbild.core.jobs import ImageWork, Job, JobError, JobStatus, Outcome
from kleinbild.gateway.errors import job_error
from kleinbild.gateway.flow import notify
from kleinbild.gateway.flow.chain import Chain, Made, Terms
from kleinbild.gateway.flow.route import decision_id
from kleinbild.gateway.routing.decision import Decision
from kleinbild.providers.base import Inputs, Progress, Waiting
from kleinbild.storage import decisions, idempotency, jobs, keys

if TYPE_CHECKING:
    from kleinbild.gateway.services import Services

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Plan:
    """Where a job's pictures may be made, who pays, and the pictures given, if they are at hand."""

    decision: Decision
    payers: tuple[str, ...]
    inputs: Inputs | None = None


async def make(services: Services, job_id: str) -> Outcome:
    """The pictures of a job, in the blob store. Nothing is made of a job that has ended, by being cancelled for one."""
    job, fresh = await _begin(services, job_id)
    if job is None:
        return Outcome("cancelled")
    return await made(services, job, fresh=fresh, booked=True)


async def made(services: Services, job: Job, *, fresh: bool, booked: bool) -> Outcome:
    """The pictures of a job that runs. `fresh`: it never did before. Unless all is to be `booked` first, what its attempts
    came to may wait to be committed with its end."""
    job_id = job.id
    task = services.running[job_id] = asyncio.create_task(_pictures(services, job, fresh=fresh, booked=booked))
    try:
        outcome = await _outcome(task, job_id)
    finally:
        services.running.pop(job_id, None)
        services.hub.forget(job_id)  # one picture of several may have told of a step after the job was cancelled
    if services.stopping:  # nothing that is known now is the job's end: it is made again after the next start
        await asyncio.Event().wait()
    return outcome


async def _outcome(task: asyncio.Task[Outcome], job_id: str) -> Outcome:
    await asyncio.wait((task,))
    if task.cancelled():
        return Outcome("cancelled")
    error = task.exception()
    if error is None:
        return task.result()
    if isinstance(error, KleinbildError):
        return Outcome("failed", error=job_error(error))
    log.error("job %s failed by a bug", job_id, exc_info=error)
    return Outcome("failed", error=JobError("an unexpected error; the server's log has it under the job's id"))


async def finish(services: Services, job_id: str, outcome: Outcome, *, release: bool = False) -> Job | None:
    """Ends the job and tells everybody, unless it had ended before. `release` frees its idempotency key, too."""
    now = time.time()
    release |= frees_key(outcome)
    async with services.database.write() as connection:
        job = await jobs.finish(connection, job_id, outcome, now)
        event = job and await services.hub.record(connection, services.hub.new(job, f"job.{outcome.status}"))
        delivery = job and await notify.record(connection, job, now, services.server)
        if job and release:
            await idempotency.release(connection, job_id)
    count_out(services, job_id, outcome)
    if event:
        services.hub.publish(event, recorded=True)
    if delivery:
        services.outbox.put_nowait(delivery.id)
    return job


def frees_key(outcome: Outcome) -> bool:
    """A failure of ours is no answer to keep: whoever asks again with that idempotency key is to get his picture."""
    return outcome.error is not None and outcome.error.status >= HTTPStatus.INTERNAL_SERVER_ERROR


def count_out(services: Services, job_id: str, outcome: Outcome) -> None:
    """Out of the queue, and what it took into what is expected of others."""
    timings = outcome.timings
    seconds = sum(timings.values()) - timings.get("queue", 0.0) if timings else None
    services.admission.ended(job_id, seconds / len(outcome.pictures) if seconds and outcome.pictures else None)


async def cancel(services: Services, job_id: str, *, release: bool = False) -> Job | None:
    """Ends the job as cancelled and frees what it holds within a step; None if it had ended before."""
    job = await finish(services, job_id, Outcome("cancelled"), release=release)
    if task := services.running.get(job_id):
        task.cancel()
    return job


async def _begin(services: Services, job_id: str) -> tuple[Job | None, bool]:
    """The job, unless it has ended, and whether nobody ever began it."""
    async with services.database.write() as connection:
        before = await jobs.find(connection, job_id)
        job = await jobs.start(connection, job_id, time.time())
        first = before is not None and before.status == "queued"
        event = job and first and await services.hub.record(connection, services.hub.new(job, "job.started"))
    if event:
        services.hub.publish(event, recorded=True)
    return job, first


async def _pictures(services: Services, job: Job, *, fresh: bool, booked: bool) -> Outcome:
    plan = services.plans.pop(job.id, None) or await _plan_again(services, job)
    inputs = await load_inputs(services, job.work) if plan.inputs is None else plan.inputs
    chain = Chain(
        services,
        job,
        inputs,
        plan.decision,
        plan.payers,
        _terms(services, plan),
        lambda progress: _tell(services, job, progress),
    )
    try:
        await chain.run(fresh=fresh)
    except KleinbildError as error:
        outcome = _outcome_of("failed", chain.made, job_error(error))
    else:
        outcome = _outcome_of("completed", chain.made)
    if plan.decision.asked.losses == "drop":
        outcome = replace(outcome, notes=())
    if chain.made.booked and (booked or not services.commits.in_order):
        services.commits.flush()
        await asyncio.wait(chain.made.booked)
    return outcome


def _outcome_of(status: JobStatus, made: Made, error: JobError | None = None) -> Outcome:
    return Outcome(
        status,
        () if error else tuple(made.pictures[index] for index in sorted(made.pictures)),
        error=error,
        timings=dict(made.timings),
        tokens=made.tokens,
        fingerprint=made.fingerprint,
        notes=tuple(made.notes),
        cost=made.cost,
        attempts=made.attempts,
        deployments=tuple(made.deployments),
    )


def payers_of(caller: Caller) -> tuple[str, ...]:
    """The keys whose budgets count what he asks for: his own, and those above it."""
    return (caller.id, *caller.payers)


def kept_decision(decision: Decision, job: Job) -> decisions.Decision:
    return decisions.Decision(decision.id, job.id, job.caller, job.project, decision.at, decision.to_json())


async def _plan_again(services: Services, job: Job) -> Plan:
    """After a restart: what was decided then."""
    async with services.database.read() as connection:
        kept = await decisions.find(connection, decision_id(job.id), job.project)
        payers = await keys.line_of(connection, job.caller)
    if kept is None:
        raise NoPlaceError("it is not known any more where this was to be made", "ask for it again")
    return Plan(Decision.from_json(kept.body), payers)


def _terms(services: Services, plan: Plan) -> Terms:
    routing, asked = services.settings.routing, plan.decision.asked
    return Terms(
        deadline=services.fleet.clock() + routing.total_seconds,
        max_attempts=routing.max_attempts + asked.measure.images - 1,
        on_unknown=routing.unknown,
        ceiling=asked.max_price,
        hedge=routing.hedge if asked.hedge is None else asked.hedge,
    )


async def load_inputs(services: Services, work: ImageWork) -> Inputs:
    references = [await services.blobs.get(each.sha256) for each in work.references]
    return Inputs(tuple(references), await services.blobs.get(work.mask.sha256) if work.mask else None)


def _tell(services: Services, job: Job, progress: Progress) -> None:
    hub = services.hub
    if isinstance(progress, Waiting):
        hub.publish(hub.new(job, "job.waiting", position=progress.position), recorded=False)
        return
    step = {"image_index": progress.image_index, "step": progress.step, "num_steps": progress.num_steps}
    hub.publish(hub.new(job, "job.step", **step), recorded=False)
    if progress.preview is not None:
        hub.publish(hub.new(job, "job.preview", **step, png=progress.preview), recorded=False)
