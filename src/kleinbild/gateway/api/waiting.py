"""Waiting for a job within a request: until it has ended, or the client has gone; and with signs of life meanwhile."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import suppress
from typing import TYPE_CHECKING

from fastapi import Request

from kleinbild.core.jobs import FINAL, Job, JobEvent
from kleinbild.gateway import answers
from kleinbild.gateway.errors import ApiError, client_gone
from kleinbild.gateway.events import LAST, Subscription
from kleinbild.gateway.flow.make import cancel
from kleinbild.gateway.flow.submit import Submission
from kleinbild.storage import jobs

if TYPE_CHECKING:
    from kleinbild.gateway.services import Services


HEARTBEAT = b": still here\n\n"
HEARTBEAT_SECONDS = 15.0
"""Proxies and clients give up a connection on which nothing comes for a minute, some for half of one."""
_leaving: set[asyncio.Task[None]] = set()  # the event loop itself does not hold on to its tasks


async def with_heartbeats(
    chunks: AsyncGenerator[bytes, None], seconds: float = HEARTBEAT_SECONDS
) -> AsyncGenerator[bytes, None]:
    """`chunks` of a stream of events, and a comment whenever none has come for so long."""
    coming: asyncio.Future[bytes] | None = None
    try:
        while True:
            coming = asyncio.ensure_future(anext(chunks))
            while not (await asyncio.wait((coming,), timeout=seconds))[0]:
                yield HEARTBEAT
            try:
                chunk = coming.result()
            except StopAsyncIteration:
                return
            yield chunk
    finally:
        if coming is not None and not coming.done():
            coming.cancel()
            with suppress(asyncio.CancelledError):
                await coming
        await chunks.aclose()


async def events_until_end(request: Request, live: Subscription) -> AsyncIterator[JobEvent]:
    """The job's events up to its last. Ends early when the client goes away."""
    gone = asyncio.create_task(_gone(request))
    coming: asyncio.Task[JobEvent | None] | None = None
    try:
        while not gone.done():
            coming = asyncio.create_task(live.next())
            await asyncio.wait((coming, gone), return_when=asyncio.FIRST_COMPLETED)
            if not coming.done():
                return
            event = coming.result()
            if event is None:
                return
            yield event
            if event.type in LAST:
                return
    finally:
        gone.cancel()
        if coming is not None:
            coming.cancel()


async def ended(request: Request, services: Services, live: Subscription, submission: Submission, *, keep: bool) -> Job:
    """The job when it has ended. If the client goes away before, it is cancelled unless he said `keep`."""
    job = submission.job
    if submission.making is not None:
        gone = asyncio.create_task(_gone(request))
        await asyncio.wait((submission.making, gone), return_when=asyncio.FIRST_COMPLETED)
        gone.cancel()
        if (finished := services.finished.take(job.id)) is not None:
            return finished
    async for event in events_until_end(request, live):
        if event.type in LAST:
            return await reload(services, job)
    await abandon(services, job, keep=keep)
    raise client_gone()


async def abandon(services: Services, job: Job, *, keep: bool) -> None:
    """The client has gone. Nobody has seen an answer, so the job's idempotency key is free again.

    The request's own task is being cancelled for the same reason, in its own time; this goes on to its end.
    """
    if keep:
        return
    leaving = asyncio.create_task(_end(services, job.id))
    _leaving.add(leaving)
    leaving.add_done_callback(_leaving.discard)
    await asyncio.shield(leaving)


async def _end(services: Services, job_id: str) -> None:
    await cancel(services, job_id, release=True)


async def reload(services: Services, job: Job) -> Job:
    if (finished := services.finished.take(job.id)) is not None:
        return finished
    async with services.database.read() as connection:
        found = await jobs.find(connection, job.id)
    return found or job  # the row of one that has just begun may yet be on its way


def require_pictures(job: Job) -> None:
    """Raises the ApiError of a job that ended without any, and 409 for one that has not ended."""
    if job.status not in FINAL:
        raise ApiError(
            409,
            f"the first request with this Idempotency-Key is still {job.status} (job {job.id})",
            type="idempotency_error",
            code="idempotency_in_progress",
            headers={"Retry-After": "1"},
        )
    if job.outcome is not None and job.outcome.error is not None:
        error = ApiError.of_job(job.outcome.error)
        error.headers |= answers.place_headers(job)
        raise error
    if job.status == "cancelled":
        raise ApiError(409, f"the job {job.id} was cancelled", code="cancelled")


async def _gone(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
