"""Black Forest Labs' API (https://docs.bfl.ai): `POST /v1/flux-2-…`, then `GET /v1/get_result?id=…` until it is ready.

Tasks are jobs, and can be asked for as such. What differs from BFL's own service is in docs/bfl.md.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Any, Literal

from fastapi import APIRouter, Depends, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from fastapi.routing import APIRoute
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from kleinbild.core.callers import Caller
from kleinbild.core.errors import KleinbildError
from kleinbild.core.formats import PictureFormat
from kleinbild.core.jobs import PictureRef
from kleinbild.core.requests import MAX_GUIDANCE, MAX_SEED, MAX_STEPS
from kleinbild.core.sizes import Size
from kleinbild.gateway import bfl
from kleinbild.gateway.api.openai_images import headers, order_for
from kleinbild.gateway.bodies import read_json
from kleinbild.gateway.described import documented
from kleinbild.gateway.errors import ApiError
from kleinbild.gateway.flow.authenticate import caller_by_x_key, maker_by_x_key
from kleinbild.gateway.flow.pictures import take_source
from kleinbild.gateway.flow.route import USUAL_SIZE, model_of
from kleinbild.gateway.flow.submit import Order, fingerprint, submit
from kleinbild.gateway.services import services_of
from kleinbild.gateway.urls import base_url
from kleinbild.gateway.wanted import MAX_PROMPT, Pictures, PictureSource, Wanted, read, without_nulls
from kleinbild.gateway.webhooks import seal
from kleinbild.storage import jobs, webhooks
from kleinbild.storage.webhooks import BflWebhook, Endpoint

if TYPE_CHECKING:
    from kleinbild.gateway.services import Services

MODELS = {
    "flux-2-klein-4b": "klein-4b",
    "flux-2-klein-9b": "klein-9b",
    "flux-2-klein-9b-preview": "klein-9b-kv",
    "flux-2-klein-base-4b": "klein-base-4b",
    "flux-2-klein-base-9b": "klein-base-9b",
    "flux-2-pro": None,
    "flux-2-pro-preview": None,
    "flux-2-max": None,
    "flux-2-flex": None,
}
"""BFL's names, the last part of the path, and ours. What is not served, the first model stands in for."""

MIN_SIDE = 64
MAX_PICTURE_CHARS = 20_000_000
MAX_TOLD, MAX_TOLD_CHARS = 8, 64  # of unknown fields
PARAMS = {"size": "width", "image": "input_image"}
"""Our names of fields that BFL calls otherwise."""


def _side(pixels: int) -> int:
    if 0 < pixels < MIN_SIDE:
        raise ValueError(f"must be at least {MIN_SIDE}, or 0 to leave it to the model")
    return pixels


Side = Annotated[int, Field(ge=0), AfterValidator(_side)]
Picture = Annotated[str, Field(min_length=1, max_length=MAX_PICTURE_CHARS)]
CallerByKey = Annotated[Caller, Depends(caller_by_x_key)]
MakerByKey = Annotated[Caller, Depends(maker_by_x_key)]


class Inputs(BaseModel):
    """The fields of all of BFL's FLUX.2 endpoints. Pictures are URLs or base64. What is unknown is a warning."""

    model_config = ConfigDict(extra="allow", frozen=True)

    prompt: str = Field(min_length=1, max_length=MAX_PROMPT)
    input_image: Picture | None = None
    input_image_2: Picture | None = None
    input_image_3: Picture | None = None
    input_image_4: Picture | None = None
    input_image_5: Picture | None = None
    input_image_6: Picture | None = None
    input_image_7: Picture | None = None
    input_image_8: Picture | None = None
    seed: int | None = Field(None, ge=0, le=MAX_SEED)
    width: Side = 0
    height: Side = 0
    steps: int | None = Field(None, ge=1, le=MAX_STEPS)
    guidance: float | None = Field(None, ge=1, le=MAX_GUIDANCE)
    output_format: PictureFormat = "jpeg"
    safety_tolerance: int | None = Field(None, ge=0, le=5)
    prompt_upsampling: bool = False
    disable_pup: bool = True
    webhook_url: str | None = Field(None, min_length=1, max_length=2083)
    webhook_secret: str | None = Field(None, max_length=1024)

    def pictures(self) -> Iterator[tuple[str, str]]:
        """Names and values of those that are given, in their order."""
        for name in ("input_image", *(f"input_image_{number}" for number in range(2, 9))):
            if (value := getattr(self, name)) is not None:
                yield name, value

    def warnings(self) -> Iterator[str]:
        if self.safety_tolerance is not None:
            yield "safety_tolerance: makes no difference here"
        if self.prompt_upsampling or not self.disable_pup:
            yield "prompt_upsampling: the prompt is used as it is written"
        if self.webhook_secret is not None and self.webhook_url is None:
            yield "webhook_secret: there is no webhook_url to sign for"
        if unknown := list(self.model_extra or {}):
            names = ", ".join(name[:MAX_TOLD_CHARS] for name in unknown[:MAX_TOLD])
            yield f"{names}{' and others' if len(unknown) > MAX_TOLD else ''}: unknown, ignored"


class Submitted(BaseModel):
    """With a `webhook_url` there is a `status` and no `polling_url`. Nothing is billed: what it costs is null."""

    id: str
    polling_url: str | None = None
    status: Literal["Pending"] | None = None
    webhook_url: str | None = None
    cost: float | None
    input_mp: float | None
    output_mp: float | None


class Task(BaseModel):
    id: str
    status: bfl.Status
    result: dict[str, Any] | None
    progress: float | None
    details: dict[str, Any] | None
    preview: dict[str, Any] | None


class Refusal(BaseModel):
    """`detail` says what is wrong; of a field, in a list."""

    detail: str | list[dict[str, Any]]


REFUSALS: dict[int | str, dict[str, Any]] = {
    422: {"model": Refusal, "description": "a field is wrong"},
    "default": {"model": Refusal, "description": "what went wrong, in words"},
}


class Route(APIRoute):
    """One whose errors are told as BFL tells them."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handle = super().get_route_handler()

        async def handle_in_bfls_words(request: Request) -> Response:
            try:
                return await handle(request)
            except ApiError as error:
                return refusal(error)
            except KleinbildError as error:
                return refusal(ApiError.of(error))
            except RequestValidationError as error:
                return JSONResponse({"detail": [_found(each) for each in error.errors()]}, 422)

        return handle_in_bfls_words


router = APIRouter(prefix="/v1", tags=["bfl"], route_class=Route)


async def create(request: Request, caller: MakerByKey) -> Response:
    """A picture from words, or from words and pictures: a task, to be polled for or told of by a webhook."""
    services = services_of(request)
    wanted = _read(await read_json(request))
    endpoint = None if wanted.webhook_url is None else await _endpoint(services, caller, wanted.webhook_url)
    submission = await submit(services, await _order(request, services, caller, wanted, endpoint))
    nothing_billed = {"cost": None, "input_mp": None, "output_mp": None}
    told: dict[str, Any] = {"id": submission.job.id}
    if endpoint is None:
        told |= {"polling_url": f"{base_url(request)}/v1/get_result?id={submission.job.id}"}
    else:
        told |= {"status": "Pending", "webhook_url": endpoint.url}
    return JSONResponse({**told, **nothing_billed}, headers=await headers(services, caller, submission))


for _name in MODELS:
    _described = documented(Inputs, Submitted, form=False, stream=False)
    _described["responses"] = {200: _described["responses"][200], **REFUSALS}
    router.add_api_route(f"/{_name}", create, methods=["POST"], **_described)


@router.get("/get_result", responses={200: {"model": Task}, **REFUSALS})
async def get_result(request: Request, id: str, caller: CallerByKey) -> Response:  # noqa: A002 - BFL's name
    """How a task stands. `result.sample` is a URL that needs no key and is good for a while."""
    services = services_of(request)
    async with services.database.read() as connection:
        job = await jobs.find(connection, id, caller.project)
    return JSONResponse(bfl.not_found(id) if job is None else bfl.task_object(services, job, base_url(request)))


def refusal(error: ApiError) -> Response:
    """As FastAPI tells it, which BFL's service is made with. A key that is missing or wrong is 403 there."""
    status = 403 if error.status == 401 else error.status
    if status in (400, 422) and error.param is not None:
        place = "header" if error.param == "Idempotency-Key" else "body"
        loc = [place, *PARAMS.get(error.param, error.param).split(".")]
        return JSONResponse({"detail": [{"loc": loc, "msg": error.message, "type": error.code or error.type}]}, 422)
    return JSONResponse({"detail": error.message}, status, error.headers)


def _found(error: Any) -> dict[str, Any]:
    """Of what validation found: without what was sent, which may be megabytes."""
    return {"loc": list(error["loc"]), "msg": error["msg"], "type": error["type"]}


def _read(values: Any) -> Inputs:
    try:
        return Inputs.model_validate(without_nulls(values))
    except ValidationError as error:
        raise RequestValidationError([{**each, "loc": ("body", *each["loc"])} for each in error.errors()]) from error


async def _order(
    request: Request, services: Services, caller: Caller, wanted: Inputs, endpoint: Endpoint | None
) -> Order:
    pictures = Pictures(tuple([await _take(services, caller, name, value) for name, value in wanted.pictures()]))
    ours = _ours(request, services, wanted)
    order = await order_for(request, services, caller, ours, pictures)
    told = fingerprint(
        request.url.path, order.work, wanted.webhook_url, wanted.webhook_secret, seed_drawn=wanted.seed is None
    )
    order = replace(order, fingerprint=told, warnings=(*order.warnings, *wanted.warnings()))
    if endpoint is None:
        return order
    key = services.secrets.derive("webhook secrets")
    secret = None if wanted.webhook_secret is None else seal(wanted.webhook_secret, order.job_id, key)
    return replace(order, webhook=endpoint.id, bfl=BflWebhook(order.job_id, secret))


def _ours(request: Request, services: Services, wanted: Inputs) -> Wanted:
    name = request.scope["path"].rsplit("/", 1)[1]
    named = MODELS[name]
    model = named if named is not None and services.fleet.knows(named) else name
    same = {name: getattr(wanted, name) for name in ("prompt", "seed", "steps", "guidance", "output_format")}
    ours = read(Wanted, {**same, "model": model})
    if not wanted.width and not wanted.height:
        return ours
    usual = services.fleet.usual_size(model_of(services.fleet, ours)[0]) or USUAL_SIZE
    return ours.model_copy(update={"size": str(Size(wanted.width or usual.width, wanted.height or usual.height))})


async def _take(services: Services, caller: Caller, name: str, value: str) -> PictureRef:
    """A URL, or a file as base64. Raises ApiError that names the field."""
    is_url = value.startswith(("http://", "https://", "data:"))
    source = PictureSource(image_url=value if is_url else f"data:;base64,{value}")
    return await take_source(services, caller, source, name)


async def _endpoint(services: Services, caller: Caller, url: str) -> Endpoint:
    """The webhook with this URL. Nothing is sent to where nobody registered: a caller may not point the server at others."""
    async with services.database.read() as connection:
        found = [endpoint for endpoint in await webhooks.of_project(connection, caller.project) if endpoint.url == url]
    enabled = [endpoint for endpoint in found if endpoint.disabled_at is None]
    if enabled:
        return enabled[0]
    why = "is disabled since it answered 410" if found else "is not registered; POST it to /v1/webhooks first"
    raise ApiError(422, f"the webhook {url} {why}", code="unknown_webhook", param="webhook_url")
