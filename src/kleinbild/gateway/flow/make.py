"""The steps of a job: make its pictures, and end it, once. `durable` runs them, and again after an interruption."""

from __future__ import annotations

import asyncio
import io
import logging
import time
from collections import Counter
from http import HTTPStatus
from typing import TYPE_CHECKING

from PIL import Image

from kleinbild.core.errors import KleinbildError
from kleinbild.core.formats import MEDIA_TYPES
from kleinbild.core.jobs import ImageWork, Job, JobError, MadePicture, Outcome
from kleinbild.core.sizes import Size
from kleinbild.core.tokens import NO_TOKENS
from kleinbild.gateway.errors import job_error
from kleinbild.gateway.flow import notify
from kleinbild.providers.base import Inputs, Progress, Waiting
from kleinbild.storage import idempotency, jobs

if TYPE_CHECKING:
    from kleinbild.gateway.services import Services

DAY = 24 * 3600.0
log = logging.getLogger(__name__)


async def make(services: Services, job_id: str) -> Outcome:
    """The pictures of a job, in the blob store. Nothing is made of a job that has ended, by being cancelled for one."""
    job = await _begin(services, job_id)
    if job is None:
        return Outcome("cancelled")
    task = services.running[job_id] = asyncio.create_task(_pictures(services, job))
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
    """Ends the job and tells everybody, unless it had ended before. `release` frees its idempotency key, too; so does a
    failure of ours, which is no answer to keep: whoever asks again with that key is to get his picture."""
    now = time.time()
    release |= outcome.error is not None and outcome.error.status >= HTTPStatus.INTERNAL_SERVER_ERROR
    async with services.database.write() as connection:
        job = await jobs.finish(connection, job_id, outcome, now)
        event = job and await services.hub.record(connection, services.hub.new(job, f"job.{outcome.status}"))
        delivery = job and await notify.record(connection, job, now)
        if job and release:
            await idempotency.release(connection, job_id)
    timings = outcome.timings
    seconds = sum(timings.values()) - timings.get("queue", 0.0) if timings else None
    services.admission.ended(job_id, seconds / len(outcome.pictures) if seconds and outcome.pictures else None)
    if event:
        services.hub.publish(event, recorded=True)
    if delivery:
        services.outbox.put_nowait(delivery.id)
    return job


async def cancel(services: Services, job_id: str, *, release: bool = False) -> Job | None:
    """Ends the job as cancelled and frees what it holds within a step; None if it had ended before."""
    job = await finish(services, job_id, Outcome("cancelled"), release=release)
    if task := services.running.get(job_id):
        task.cancel()
    return job


async def _begin(services: Services, job_id: str) -> Job | None:
    async with services.database.write() as connection:
        before = await jobs.find(connection, job_id)
        job = await jobs.start(connection, job_id, time.time())
        first = before is not None and before.status == "queued"
        event = job and first and await services.hub.record(connection, services.hub.new(job, "job.started"))
    if event:
        services.hub.publish(event, recorded=True)
    return job


async def _pictures(services: Services, job: Job) -> Outcome:
    inputs = await load_inputs(services, job.work)
    made = await services.provider.make(job.work, inputs, lambda progress: _tell(services, job, progress))
    expires_at = time.time() + services.settings.storage.image_days * DAY
    media_type = MEDIA_TYPES[job.work.output_format]
    hashes = [await services.blobs.put(each.file, media_type, expires_at) for each in made]
    sizes = [size_of_file(each.file) for each in made]
    pictures = [
        MadePicture(sha256, each.seed, size, len(each.file))
        for sha256, size, each in zip(hashes, sizes, made, strict=True)
    ]
    timings: Counter[str] = Counter()
    for each in made:
        timings.update(each.timings)
    return Outcome(
        "completed",
        tuple(pictures),
        timings=dict(timings),
        tokens=sum((each.tokens for each in made), NO_TOKENS),
        fingerprint=made[0].fingerprint,
        notes=tuple(dict.fromkeys(note for each in made for note in each.notes)),
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


def size_of_file(file: bytes) -> Size:
    with Image.open(io.BytesIO(file)) as image:  # reads the header, decodes nothing
        return Size(image.width, image.height)
