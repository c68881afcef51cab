"""`/v1/images`: generations, edits and variations, as the `openai` package speaks them."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from fastapi import APIRouter, Request
from fastapi.responses import Response, StreamingResponse
from starlette.datastructures import UploadFile

from kleinbild.core.callers import Caller
from kleinbild.core.deployments import Parameter
from kleinbild.core.ids import new_id
from kleinbild.core.jobs import Job, JobEvent, PictureRef
from kleinbild.gateway import answers, spliced
from kleinbild.gateway.api.waiting import (
    abandon,
    ended,
    events_until_end,
    reload,
    require_pictures,
    with_heartbeats,
)
from kleinbild.gateway.bodies import is_form, read_form, read_json
from kleinbild.gateway.described import ImagesObject, documented
from kleinbild.gateway.errors import ApiError, as_object, client_gone
from kleinbild.gateway.events import LAST
from kleinbild.gateway.flow.adapt import adapted
from kleinbild.gateway.flow.authenticate import Making, require_model
from kleinbild.gateway.flow.pictures import require_few, take_file, take_source, take_sources
from kleinbild.gateway.flow.route import model_of, wish_of
from kleinbild.gateway.flow.submit import Order, Submission, fingerprint, submit
from kleinbild.gateway.services import services_of
from kleinbild.gateway.urls import base_url
from kleinbild.gateway.wanted import Pictures, Wanted, WantedEdit, WantedVariation, read, work_anywhere, work_for
from kleinbild.safety.pictures import size_of

if TYPE_CHECKING:
    from kleinbild.gateway.services import Services

router = APIRouter(prefix="/v1/images", tags=["images"])
IMAGE_FIELDS = ("image", "image[]")
FILE_FIELDS = (*IMAGE_FIELDS, "mask")


@router.post("/generations", **documented(Wanted, ImagesObject, form=False))
async def generations(request: Request, caller: Making) -> Response:
    """Pictures from words; with our field `references`, from pictures, too."""
    services = services_of(request)
    wanted = read(Wanted, await read_json(request))
    references = await take_sources(services, caller, {"references": wanted.references})
    return await make(request, caller, wanted, Pictures(tuple(references)))


@router.post("/edits", **documented(WantedEdit, ImagesObject, form=True))
async def edits(request: Request, caller: Making) -> Response:
    """A picture, or several, changed as the prompt says: as a form with files, or JSON with `images`."""
    if is_form(request.headers):
        wanted, pictures = await read_edit_form(request, caller)
    else:
        wanted, pictures = await read_edit_json(request, caller)
    if not pictures.references:
        raise ApiError(400, "Missing required parameter: 'image'.", code="missing_required_parameter", param="image")
    return await make(request, caller, wanted, pictures)


@router.post("/variations", **documented(WantedVariation, ImagesObject, form=True, json=False))
async def variations(request: Request, caller: Making) -> Response:
    """A picture like the one given. OpenAI has retired this; here it is an edit with a prompt of its own."""
    wanted, pictures = await read_form_as(WantedVariation, request, caller)
    if len(pictures.references) != 1:
        raise ApiError(400, "give one picture", code="invalid_value", param="image")
    return await make(request, caller, wanted, pictures)


async def read_edit_form(request: Request, caller: Caller) -> tuple[Wanted, Pictures]:
    return await read_form_as(Wanted, request, caller)


async def read_edit_json(request: Request, caller: Caller) -> tuple[Wanted, Pictures]:
    services = services_of(request)
    wanted = read(WantedEdit, await read_json(request))
    lists = {"images": wanted.images, "references": wanted.references}
    references = await take_sources(services, caller, lists)
    mask = None if wanted.mask is None else await take_source(services, caller, wanted.mask, "mask")
    return wanted, Pictures(tuple(references), mask)


async def read_form_as(kind: type[Wanted], request: Request, caller: Caller) -> tuple[Wanted, Pictures]:
    """The fields of a form and its files. A field of several values may be repeated, with or without `[]`."""
    services = services_of(request)
    async with read_form(request) as form:
        values: dict[str, Any] = {}
        files: list[tuple[str, UploadFile]] = []
        for name, value in form.multi_items():
            if isinstance(value, UploadFile):
                files.append((name, value))
            elif name in FILE_FIELDS:
                raise ApiError(400, f"{name!r} must be a file", code="invalid_value", param=name)
            elif name.removesuffix("[]") == "adapters":
                values.setdefault("adapters", []).extend(_adapters(value))
            elif name.removesuffix("[]") in ("references", "pins"):
                values.setdefault(name.removesuffix("[]"), []).append(value)
            elif name in values:
                raise ApiError(400, f"{name!r} was given twice; give it once", code="invalid_value", param=name)
            else:
                values[name] = value
        if unknown := [name for name, _ in files if name not in FILE_FIELDS]:
            raise ApiError(400, f"Unknown parameter: {unknown[0]!r}.", code="unknown_parameter", param=unknown[0])
        wanted = read(kind, values, form=True)
        num_masks = sum(name == "mask" for name, _ in files)
        if num_masks > 1:
            raise ApiError(400, f"{num_masks} masks were given; give one", code="invalid_value", param="mask")
        require_few(len(files) - num_masks + len(wanted.references), "image")
        references: list[PictureRef] = []
        mask = None
        for name, file in files:
            taken = await take_file(services, file, name)
            if name == "mask":
                mask = taken
            else:
                references.append(taken)
    references += await take_sources(services, caller, {"references": wanted.references})
    return wanted, Pictures(tuple(references), mask)


def _adapters(text: str) -> list[Any]:
    """Of a form: a name, or one adapter or several as JSON text."""
    if not text.lstrip().startswith(("[", "{")):
        return [text]
    try:
        found = json.loads(text)
    except ValueError as error:
        raise ApiError(400, f"'adapters' is not JSON: {error}", code="invalid_value", param="adapters") from error
    return found if isinstance(found, list) else [found]


async def make(request: Request, caller: Caller, wanted: Wanted, pictures: Pictures) -> Response:
    """The answer with pictures, or its stream."""
    services = services_of(request)
    order = replace(await order_for(request, services, caller, wanted, pictures), waits=True)
    with services.hub.listen(caller.project, order.job_id) as live:
        submission = await submit(services, order)
        job = submission.job
        if not submission.replayed and not wanted.stream:
            job = await ended(request, services, live, submission, keep=wanted.keep)
    if submission.replayed or not wanted.stream:
        require_pictures(job)
    if wanted.stream:
        told = await headers(services, caller, submission)
        if await request.is_disconnected():  # the stream would not begin, and nobody see to it
            await abandon(services, job, keep=wanted.keep)
            raise client_gone()
        return StreamingResponse(
            with_heartbeats(events(request, services, job, wanted)),
            media_type="text/event-stream",
            headers=told,
        )
    submission = replace(submission, job=job)
    body = await answers.images_object(services, job, base_url(request), urls=wanted.response_format == "url")
    return spliced.response(body, await headers(services, caller, submission))


async def order_for(
    request: Request,
    services: Services,
    caller: Caller,
    wanted: Wanted,
    pictures: Pictures,
    *,
    metadata: dict[str, str] | None = None,
    webhook: str | None = None,
) -> Order:
    if wanted.losses is None and not wanted.strict:
        wanted = wanted.model_copy(update={"losses": services.settings.routing.losses})
    asked, wanted = wanted.model, await adapted(services, caller, wanted)
    model, about_model = model_of(services.fleet, wanted)
    require_model(caller, model, asked if wanted.model != asked else None)
    wish = wish_of(wanted, pictures)
    if (here := services.fleet.on_machine(model)) is not None:
        work, warnings = work_for(wanted, pictures, services.provider.capabilities(here.provider_model))
        kept: dict[Parameter, object] = {name: wish.given[name] for name in wish.given if name == "adapters"}
        work, wish = replace(work, model=model), replace(wish, given=kept)  # what it loses has been told
    else:
        work, warnings = work_anywhere(wanted, pictures, model)
    about = {**({"user": wanted.user} if wanted.user else {}), **(metadata or {})}
    answer, key = (wanted.stream, wanted.response_format), request.headers.get("idempotency-key")
    return Order(
        job_id=new_id("job"),
        caller=caller,
        work=work,
        warnings=(*about_model, *warnings),
        wish=wish,
        key=key,
        fingerprint=""
        if key is None
        else fingerprint(
            request.url.path,
            work,
            *answer,
            *wish.identity,
            sorted(about.items()),
            webhook,
            seed_drawn=wanted.seed is None,
        ),
        metadata=about or None,
        webhook=webhook,
    )


async def headers(services: Services, caller: Caller, submission: Submission) -> dict[str, str]:
    job = submission.job
    found = {"x-kleinbild-job-id": job.id, **await rate_headers(services, caller), **answers.place_headers(job)}
    if warnings := answers.warnings(job):
        found["x-kleinbild-warnings"] = str(len(warnings))
    if submission.replayed:
        found["Idempotent-Replayed"] = "true"
    return found


async def rate_headers(services: Services, caller: Caller) -> dict[str, str]:
    """OpenAI's, of the limits that the caller has."""
    found: dict[str, str] = {}
    for rate in await services.admission.rates(caller):
        found[f"x-ratelimit-limit-{rate.name}"] = str(rate.limit)
        found[f"x-ratelimit-remaining-{rate.name}"] = str(rate.remaining)
        found[f"x-ratelimit-reset-{rate.name}"] = f"{rate.reset_seconds:.3g}s"
    return found


async def events(request: Request, services: Services, job: Job, wanted: Wanted) -> AsyncGenerator[bytes, None]:
    """OpenAI's: previews as they come, each with its own size, then the pictures."""
    num_partial = 0
    with services.hub.listen(job.project, job.id) as live:
        latest = await reload(services, job)
        try:
            if latest.outcome is None:
                async for event in events_until_end(request, live):
                    if event.type == "job.preview" and num_partial < wanted.partial_images * wanted.n:
                        yield _partial(job, event, num_partial)
                        num_partial += 1
                    if event.type in LAST:
                        latest = await reload(services, job)
        except ApiError as error:
            yield answers.server_sent("error", {"type": "error", "error": as_object(error)})
            return
        finally:
            if latest.outcome is None:
                await abandon(services, job, keep=wanted.keep)
    async for chunk in _last_events(request, services, latest):
        yield chunk


async def _last_events(request: Request, services: Services, job: Job) -> AsyncGenerator[bytes, None]:
    """Of a job that has ended."""
    try:
        require_pictures(job)
    except ApiError as error:
        yield answers.server_sent("error", {"type": "error", "error": as_object(error)})
        return
    body = await answers.images_object(services, job, base_url(request), urls=False)
    kind = f"{_family(job)}.completed"
    shared = {name: body[name] for name in ("size", "quality", "background", "output_format", "usage", "warnings")}
    for picture in body["data"]:
        yield answers.server_sent(
            kind, {"type": kind, **shared, **picture, "created_at": body["created"], "id": job.id}
        )


def _partial(job: Job, event: JobEvent, index: int) -> bytes:
    kind = f"{_family(job)}.partial_image"
    data = answers.event_data(event, None)
    work = job.work
    return answers.server_sent(
        kind,
        {
            "type": kind,
            "b64_json": data["b64_json"],
            "created_at": int(event.created_at),
            "size": str(size_of(event.data["png"])),
            "quality": answers.quality_of(work),
            "background": work.background,
            "output_format": "png",
            "partial_image_index": index,
        },
    )


def _family(job: Job) -> str:
    return "image_edit" if job.work.task == "image.edit" else "image_generation"
