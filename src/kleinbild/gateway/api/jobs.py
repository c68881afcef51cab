"""`/v1/jobs` and `/v1/events`: pictures that outlive the connection they were asked for by."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from typing import TYPE_CHECKING, Annotated, Any, Literal

from fastapi import APIRouter, Header, Query, Request
from fastapi.responses import JSONResponse, Response, StreamingResponse
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from kleinbild.core.callers import Caller
from kleinbild.core.jobs import Job, JobStatus, Task
from kleinbild.gateway import answers
from kleinbild.gateway.api.openai_images import headers, order_for
from kleinbild.gateway.api.waiting import with_heartbeats
from kleinbild.gateway.bodies import read_json
from kleinbild.gateway.described import ERRORS, EVENT_STREAM, JobList, JobObject, documented
from kleinbild.gateway.errors import ApiError, not_found, of_validation
from kleinbild.gateway.events import LAST, LaggardError
from kleinbild.gateway.flow.authenticate import Asking, Cancelling, Making, still_admitted
from kleinbild.gateway.flow.make import cancel
from kleinbild.gateway.flow.pictures import take_source, take_sources
from kleinbild.gateway.flow.submit import submit
from kleinbild.gateway.services import services_of
from kleinbild.gateway.urls import base_url
from kleinbild.gateway.wanted import Pictures, WantedEdit, null_is_absent, without_nulls
from kleinbild.storage import jobs, webhooks

if TYPE_CHECKING:
    from kleinbild.gateway.services import Services

router = APIRouter(prefix="/v1", tags=["jobs"])
EventId = Annotated[int | None, Header(alias="last-event-id", ge=0, le=2**62)]


class WantedJob(BaseModel):
    """`input` is the JSON form of `/v1/images/edits`; without pictures, of `/v1/images/generations`.

    `webhook` is the id of one that was registered before.
    """

    model_config = ConfigDict(extra="forbid", json_schema_extra=null_is_absent)

    task: Task
    input: Annotated[WantedEdit, BeforeValidator(without_nulls)]
    webhook: str | None = None
    metadata: dict[Annotated[str, Field(max_length=64)], Annotated[str, Field(max_length=512)]] = Field(
        default_factory=dict, max_length=16
    )


@router.post("/jobs", **documented(WantedJob, JobObject, form=False, status=202, stream=False))
async def create(request: Request, caller: Making) -> Response:
    """A job, which is answered at once and made afterwards."""
    services = services_of(request)
    wanted = _read(await read_json(request))
    pictures = await _pictures(services, caller, wanted)
    await _require_webhook(services, caller, wanted.webhook)
    order = await order_for(
        request, services, caller, wanted.input, pictures, metadata=wanted.metadata, webhook=wanted.webhook
    )
    submission = await submit(services, order)
    body = answers.job_object(services, submission.job, base_url(request))
    location = {"Location": f"/v1/jobs/{submission.job.id}"}
    return JSONResponse(body, 202, {**await headers(services, caller, submission), **location})


@router.get("/jobs", responses={200: {"model": JobList}, **ERRORS})
async def listing(
    request: Request,
    caller: Asking,
    limit: Annotated[int, Query(ge=1, le=100)] = 20,
    after: str | None = None,
    status: Literal["queued", "running", "completed", "failed", "cancelled"] | None = None,
) -> Response:
    """The project's jobs, newest first, from the one that follows `after`."""
    services = services_of(request)
    async with services.database.read() as connection:
        found = await jobs.newest(connection, caller.project, limit=limit + 1, after=after, status=_status(status))
    page = [answers.job_object(services, job, base_url(request)) for job in found[:limit]]
    return JSONResponse(
        {
            "object": "list",
            "data": page,
            "first_id": page[0]["id"] if page else None,
            "last_id": page[-1]["id"] if page else None,
            "has_more": len(found) > limit,
        }
    )


@router.get("/jobs/{job_id}", responses={200: {"model": JobObject}, **ERRORS})
async def one(request: Request, job_id: str, caller: Asking) -> Response:
    """A job, and what has come of it."""
    services = services_of(request)
    return JSONResponse(answers.job_object(services, await _find(services, caller, job_id), base_url(request)))


@router.post("/jobs/{job_id}/cancel", responses={200: {"model": JobObject}, **ERRORS})
async def cancelling(request: Request, job_id: str, caller: Cancelling) -> Response:
    """Ends a job; what it holds is free within one step. A job that has ended stays as it is."""
    services = services_of(request)
    await _find(services, caller, job_id)
    cancelled = await cancel(services, job_id) or await _find(services, caller, job_id)  # as it has ended meanwhile
    return JSONResponse(answers.job_object(services, cancelled, base_url(request)))


@router.get("/jobs/{job_id}/events", responses={200: {"content": EVENT_STREAM, "description": "events"}, **ERRORS})
async def events_of_job(
    request: Request,
    job_id: str,
    caller: Asking,
    last_event_id: EventId = None,
) -> Response:
    """Everything that happens to a job, from its beginning or from the event that follows `Last-Event-ID`."""
    services = services_of(request)
    job = await _find(services, caller, job_id)
    return _stream(request, services, job.project, job.id, last_event_id)


@router.get("/events", responses={200: {"content": EVENT_STREAM, "description": "events"}, **ERRORS})
async def events_of_all(
    request: Request,
    caller: Asking,
    last_event_id: EventId = None,
) -> Response:
    """Everything that happens to the project's jobs from now on, or from the event that follows `Last-Event-ID`."""
    return _stream(request, services_of(request), caller.project, None, last_event_id)


def _stream(request: Request, services: Services, project: str, job_id: str | None, after: int | None) -> Response:
    async def chunks() -> AsyncGenerator[bytes, None]:
        yield b": kleinbild\n\n"  # so that the client knows at once that he is connected
        try:
            async for event in services.hub.follow(project, job_id, after):
                if not await still_admitted(request):
                    return
                job = await _job_at_end(services, request, event.job_id) if event.type in LAST else None
                yield answers.server_sent(event.type, answers.event_data(event, job), event.id)
        except LaggardError:
            return  # he may come back with the last id that he has seen

    return StreamingResponse(
        with_heartbeats(chunks()), media_type="text/event-stream", headers={"Cache-Control": "no-store"}
    )


async def _job_at_end(services: Services, request: Request, job_id: str) -> dict[str, Any] | None:
    async with services.database.read() as connection:
        job = await jobs.find(connection, job_id)
    return None if job is None else answers.job_object(services, job, base_url(request))


async def _find(services: Services, caller: Caller, job_id: str) -> Job:
    async with services.database.read() as connection:
        job = await jobs.find(connection, job_id, caller.project)
    if job is None:
        raise not_found("job", job_id)
    return job


def _read(values: Any) -> WantedJob:
    if not isinstance(values, dict):
        raise ApiError(400, "the body must be a JSON object")
    try:
        return WantedJob.model_validate(without_nulls(values))
    except ValidationError as error:
        raise of_validation(error.errors()) from error


def _status(text: str | None) -> JobStatus | None:
    return text  # type: ignore[return-value]  # the route's signature allows no other


async def _pictures(services: Services, caller: Caller, wanted: WantedJob) -> Pictures:
    given = wanted.input
    if wanted.task == "image.edit" and not (given.images or given.references):
        raise ApiError(400, "an image.edit needs input.images", code="missing_required_parameter", param="input.images")
    lists = {"input.images": given.images, "input.references": given.references}
    references = await take_sources(services, caller, lists)
    mask = None if given.mask is None else await take_source(services, caller, given.mask, "input.mask")
    return Pictures(tuple(references), mask)


async def _require_webhook(services: Services, caller: Caller, webhook: str | None) -> None:
    if webhook is None:
        return
    async with services.database.read() as connection:
        if await webhooks.find(connection, webhook, caller.project) is None:
            raise not_found("webhook", webhook)
