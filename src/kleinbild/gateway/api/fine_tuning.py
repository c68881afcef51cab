"""`/v1/fine_tuning`, OpenAI's: a project's own models, trained on pictures that it has uploaded."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Collection
from typing import TYPE_CHECKING, Annotated, Any, Literal

from fastapi import APIRouter, Query, Request
from fastapi.responses import JSONResponse, Response, StreamingResponse
from pydantic import BaseModel

from kleinbild.core.callers import Caller
from kleinbild.core.errors import ModelError
from kleinbild.core.ids import new_id
from kleinbild.gateway.answers import server_sent
from kleinbild.gateway.bodies import read_json
from kleinbild.gateway.described import ERRORS, EVENT_STREAM, documented
from kleinbild.gateway.errors import ApiError
from kleinbild.gateway.flow.adapt import family_of
from kleinbild.gateway.flow.authenticate import Asking, require_member, require_model, still_admitted
from kleinbild.gateway.services import services_of
from kleinbild.gateway.tunings import (
    WantedTuning,
    adapter_name,
    checkpoint_id,
    checkpoint_object,
    drawn_seed,
    event_object,
    is_final,
    job_object,
    number_in,
    recipe_of,
    require_done_here,
)
from kleinbild.gateway.wanted import read
from kleinbild.model import catalog
from kleinbild.model.weights.sources import locate_parts
from kleinbild.storage import files, tunings
from kleinbild.storage.tunings import Happening, Status, Tuning, Wanted

if TYPE_CHECKING:
    from kleinbild.gateway.services import Services

router = APIRouter(prefix="/v1/fine_tuning/jobs", tags=["fine-tuning"])
LISTEN_SECONDS = 0.5
PAGE = 100

FileParam = Literal["training_file", "validation_file"]


class HyperparametersObject(BaseModel):
    n_epochs: int | Literal["auto"]
    batch_size: int | Literal["auto"]
    learning_rate_multiplier: float | Literal["auto"]


class TuningErrorObject(BaseModel):
    code: str
    message: str
    param: str | None


class TuningObject(BaseModel):
    id: str
    object: Literal["fine_tuning.job"]
    created_at: int
    error: TuningErrorObject | None
    fine_tuned_model: str | None
    finished_at: int | None
    hyperparameters: HyperparametersObject
    model: str
    organization_id: str
    result_files: list[str]
    seed: int
    status: Status
    trained_tokens: int | None
    training_file: str
    validation_file: str | None
    estimated_finish: int | None
    integrations: list[Any]
    metadata: dict[str, str]
    method: dict[str, Any]
    recipe: dict[str, Any]


class TuningList(BaseModel):
    object: Literal["list"]
    data: list[TuningObject]
    has_more: bool


class TuningEventObject(BaseModel):
    id: str
    object: Literal["fine_tuning.job.event"]
    created_at: int
    level: Literal["info", "warn", "error"]
    message: str
    type: Literal["message", "metrics"]
    data: dict[str, Any]


class TuningEventList(BaseModel):
    object: Literal["list"]
    data: list[TuningEventObject]
    has_more: bool


class CheckpointObject(BaseModel):
    id: str
    object: Literal["fine_tuning.job.checkpoint"]
    created_at: int
    fine_tuned_model_checkpoint: str
    fine_tuning_job_id: str
    metrics: dict[str, float]
    step_number: int


class CheckpointList(BaseModel):
    object: Literal["list"]
    data: list[CheckpointObject]
    first_id: str | None
    last_id: str | None
    has_more: bool


@router.post("", **documented(WantedTuning, TuningObject, form=False, stream=False))
async def create(request: Request, caller: Asking) -> Response:
    """A model of the project's own: what the training file shows is learned, and what comes of it is an adapter."""
    require_member(caller, "fine-tune models")
    services = services_of(request)
    wanted = read(WantedTuning, await read_json(request))
    require_done_here(wanted)
    recipe = recipe_of(wanted)
    model, base = await _models(services, caller, wanted.model)
    await _require_file(services, caller, "training_file", wanted.training_file)
    if wanted.validation_file is not None:
        await _require_file(services, caller, "validation_file", wanted.validation_file)
    job_id, now = new_id("ftjob"), time.time()
    tuning = Tuning(
        id=job_id,
        caller=caller.id,
        project=caller.project,
        model=model,
        adapter=adapter_name(wanted, job_id),
        wanted=Wanted(
            base=base,
            training_file=wanted.training_file,
            seed=drawn_seed() if wanted.seed is None else wanted.seed,
            suffix=wanted.suffix or "",
            hyperparameters=wanted.chosen,
            recipe=recipe,
            metadata=wanted.metadata,
            validation_file=wanted.validation_file,
        ),
        created_at=now,
        server=services.server,
    )
    await _keep(services, tuning)
    services.tunings.wake()
    return JSONResponse(job_object(tuning))


@router.get("", responses={200: {"model": TuningList}, **ERRORS})
async def listing(
    request: Request, caller: Asking, limit: Annotated[int, Query(ge=1, le=PAGE)] = 20, after: str | None = None
) -> Response:
    """The project's jobs, newest first, from the one that follows `after`; with `metadata[k]=v` those that have this."""
    asked = {
        name.removeprefix("metadata[").removesuffix("]"): value
        for name, value in request.query_params.items()
        if name.startswith("metadata[") and name.endswith("]")
    }
    found: list[Tuning] = []
    async with services_of(request).database.read() as connection:
        while len(found) <= limit:
            page = await tunings.newest(connection, caller.project, limit=PAGE, after=after)
            found += [each for each in page if asked.items() <= each.wanted.metadata.items()]
            if len(page) < PAGE:
                break
            after = page[-1].id
    data = [job_object(each) for each in found[:limit]]
    return JSONResponse({"object": "list", "data": data, "has_more": len(found) > limit})


@router.get("/{job_id}", responses={200: {"model": TuningObject}, **ERRORS})
async def one(request: Request, job_id: str, caller: Asking) -> Response:
    """A job, and what has come of it."""
    return JSONResponse(job_object(await _find(services_of(request), caller, job_id)))


@router.post("/{job_id}/cancel", responses={200: {"model": TuningObject}, **ERRORS})
async def cancelling(request: Request, job_id: str, caller: Asking) -> Response:
    """Ends a job. What it has trained until then is kept in its checkpoints."""
    require_member(caller, "cancel fine-tuning jobs")
    services = services_of(request)
    cancelled = await services.tunings.cancel(await _find(services, caller, job_id))
    return await _changed(services, caller, job_id, cancelled, "cancelled")


@router.post("/{job_id}/pause", responses={200: {"model": TuningObject}, **ERRORS})
async def pausing(request: Request, job_id: str, caller: Asking) -> Response:
    """Stops a job that waits or runs, which keeps its state."""
    return await _move(request, caller, job_id, "pause", ("queued", "running"), "paused")


@router.post("/{job_id}/resume", responses={200: {"model": TuningObject}, **ERRORS})
async def resuming(request: Request, job_id: str, caller: Asking) -> Response:
    """Goes on with a job that was paused, to the same weights as if it had not been."""
    return await _move(request, caller, job_id, "resume", ["paused"], "queued")


@router.get(
    "/{job_id}/events",
    responses={200: {"model": TuningEventList, "content": EVENT_STREAM, "description": "events"}, **ERRORS},
)
async def events(
    request: Request,
    job_id: str,
    caller: Asking,
    limit: Annotated[int, Query(ge=1, le=PAGE)] = 20,
    after: str | None = None,
    stream: bool = False,
) -> Response:
    """What has happened to a job, newest first; with `stream` as it happens, from its beginning or after `after`."""
    services = services_of(request)
    tuning = await _find(services, caller, job_id)
    number = number_in("ftevent", job_id, after)
    if stream:
        return StreamingResponse(_streamed(request, services, tuning, number or 0), media_type="text/event-stream")
    async with services.database.read() as connection:
        found = await tunings.events(connection, job_id, limit=limit + 1, before=number)
    data = [event_object(job_id, each) for each in found[:limit]]
    return JSONResponse({"object": "list", "data": data, "has_more": len(found) > limit})


@router.get("/{job_id}/checkpoints", responses={200: {"model": CheckpointList}, **ERRORS})
async def checkpoints(
    request: Request,
    job_id: str,
    caller: Asking,
    limit: Annotated[int, Query(ge=1, le=PAGE)] = 10,
    after: str | None = None,
) -> Response:
    """Models that a job has made on its way, which can be asked for as `fine_tuned_model_checkpoint`; the last first."""
    services = services_of(request)
    tuning = await _find(services, caller, job_id)
    async with services.database.read() as connection:
        step = number_in("ftckpt", job_id, after)
        found = await tunings.checkpoints(connection, job_id, limit=limit + 1, before=step)
    page = found[:limit]
    return JSONResponse(
        {
            "object": "list",
            "data": [checkpoint_object(tuning, each) for each in page],
            "first_id": checkpoint_id(page[0]) if page else None,
            "last_id": checkpoint_id(page[-1]) if page else None,
            "has_more": len(found) > limit,
        }
    )


async def _models(services: Services, caller: Caller, asked: str) -> tuple[str, str]:
    """The model that the adapter is for, and the one that is trained: the base of its family. Raises ApiError."""
    served = {each.model: each.provider_model for each in services.fleet.listed if each.on_machine}
    model = alias.model if (alias := services.fleet.aliases.get(asked)) else asked
    if model not in served or services.settings.fine_tuning.runs == 0:
        there_are = ", ".join(served) if services.settings.fine_tuning.runs else "none"
        raise _not_available(f"Model {asked} is not available for fine-tuning here; there are {there_are or 'none'}.")
    require_model(caller, model)
    entry = catalog.find_variant(family_of(services, served[model]), "base")
    if entry is None:
        raise _not_available(f"{model} is of no family whose base model is known; train it with kleinbild train.")
    base = entry.name
    try:
        await asyncio.to_thread(locate_parts, base)
    except ModelError as error:
        raise _not_available(
            f"{base}, on which {model} is fine-tuned, cannot be used: {error.message}; {error.hint}"
        ) from error
    return model, base


def _not_available(message: str) -> ApiError:
    return ApiError(400, message, code="model_not_available", param="model")


async def _require_file(services: Services, caller: Caller, param: FileParam, file_id: str) -> None:
    async with services.database.read() as connection:
        file = await files.find(connection, file_id, caller.project, time.time())
    limit = services.settings.fine_tuning.max_file_mb
    if file is None:
        message = f"invalid {param}: {file_id}"
    elif file.purpose != "fine-tune":
        message = f"{file_id} was uploaded with the purpose {file.purpose!r}; upload it with 'fine-tune'"
    elif file.bytes > limit * 1e6:
        message = f"{file_id} has {file.bytes / 1e6:.0f} MB; this server takes files of {limit:g} MB for training"
    else:
        return
    raise ApiError(400, message, code=f"invalid_{param}", param=param)


async def _keep(services: Services, tuning: Tuning) -> None:
    most = services.settings.fine_tuning.max_jobs
    wanted = tuning.wanted
    other = f" and validation file: {wanted.validation_file}" if wanted.validation_file else ""
    said = [f"Created fine-tuning job: {tuning.id}", f"Validating training file: {wanted.training_file}{other}"]
    async with services.database.write() as connection:
        if await tunings.num_unfinished(connection, tuning.project) >= most:
            message = f"the project has {most} fine-tuning jobs that have not ended, and may have no more"
            raise ApiError(429, message, type="rate_limit_error", code="rate_limit_exceeded")
        await tunings.add(connection, tuning)
        await tunings.tell(connection, tuning.id, [Happening(each, tuning.created_at) for each in said])


async def _find(services: Services, caller: Caller, job_id: str) -> Tuning:
    async with services.database.read() as connection:
        found = await tunings.find(connection, job_id, caller.project)
    if found is None:
        message = f"Could not find fine tune: {job_id}"
        raise ApiError(404, message, code="fine_tune_not_found", param="fine_tuning_job_id")
    return found


async def _move(
    request: Request,
    caller: Caller,
    job_id: str,
    verb: Literal["pause", "resume"],
    before: Collection[Status],
    to: Status,
) -> Response:
    """To another status, from one of those `before`."""
    require_member(caller, f"{verb} fine-tuning jobs")
    services = services_of(request)
    await _find(services, caller, job_id)
    async with services.database.write() as connection:
        changed = await tunings.change(connection, job_id, before, to, estimated_finish=None)
    services.tunings.wake()
    return await _changed(services, caller, job_id, changed, f"{verb}d")


async def _changed(services: Services, caller: Caller, job_id: str, changed: Tuning | None, to: str) -> Response:
    if changed is None:
        now = await _find(services, caller, job_id)
        message = f"The job {job_id} is {now.status} and cannot be {to}."
        raise ApiError(400, message, code="invalid_status")
    return JSONResponse(job_object(changed))


async def _streamed(request: Request, services: Services, tuning: Tuning, number: int) -> AsyncGenerator[bytes, None]:
    yield b": kleinbild\n\n"
    while await still_admitted(request):
        async with services.database.read() as connection:
            now = await tunings.find(connection, tuning.id)  # before its events: the last of them is not missed
            new = await tunings.events(connection, tuning.id, limit=PAGE, after=number)
        for each in new:
            number = each.number
            yield server_sent("fine_tuning.job.event", event_object(tuning.id, each), None)
        if now is None or (is_final(now) and not new):
            return
        if not new:
            await asyncio.sleep(LISTEN_SECONDS)
