"""`/v1/webhooks`: endpoints that are told what becomes of a project's jobs."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Annotated, Any, Literal

from fastapi import APIRouter, Query, Request
from fastapi.responses import JSONResponse, Response
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from kleinbild.core.callers import Caller
from kleinbild.core.errors import DestinationError
from kleinbild.core.ids import new_id
from kleinbild.gateway.bodies import read_json
from kleinbild.gateway.described import ERRORS, documented
from kleinbild.gateway.errors import ApiError, not_found, of_validation
from kleinbild.gateway.flow.authenticate import Asking, require_member
from kleinbild.gateway.services import services_of
from kleinbild.gateway.wanted import null_is_absent, without_nulls
from kleinbild.gateway.webhooks import (
    OVERLAP_SECONDS,
    WebhookEvent,
    deliver_once,
    new_secret,
    receiver_of,
    seal,
)
from kleinbild.storage import webhooks
from kleinbild.storage.webhooks import Delivery, Endpoint

if TYPE_CHECKING:
    from kleinbild.gateway.services import Services

MAX_ENDPOINTS = 16
"""Of one project."""
EventType = Literal[
    "job.completed",
    "job.failed",
    "job.cancelled",
    "fine_tuning.job.succeeded",
    "fine_tuning.job.failed",
    "fine_tuning.job.cancelled",
]

router = APIRouter(prefix="/v1/webhooks", tags=["webhooks"])


class WantedWebhook(BaseModel):
    """`events` are the types to be told of; all of them without it."""

    model_config = ConfigDict(extra="forbid", json_schema_extra=null_is_absent)

    url: Annotated[str, Field(max_length=4096)]
    events: Annotated[tuple[EventType, ...] | None, Field(min_length=1, max_length=6)] = None


class WebhookObject(BaseModel):
    """`previous_until`: when the secret before the last rotation stops to sign. `disabled_at`: when it answered 410."""

    id: str
    object: Literal["webhook"] = "webhook"
    url: str
    events: list[EventType] | None
    created_at: int
    previous_until: int | None
    disabled_at: int | None


class NewWebhookObject(WebhookObject):
    """With the secret, which is shown this once."""

    secret: str


class WebhookList(BaseModel):
    object: Literal["list"] = "list"
    data: list[WebhookObject]
    first_id: str | None
    last_id: str | None
    has_more: bool = False


class DeliveryObject(BaseModel):
    """`id` is the event's, the `webhook-id` of every attempt; `last_status` the endpoint's last answer, if it gave one."""

    id: str
    object: Literal["webhook.delivery"] = "webhook.delivery"
    job_id: str
    type: EventType
    status: Literal["pending", "delivered", "given_up"]
    attempts: int
    last_status: int | None
    created_at: int
    delivered_at: int | None
    given_up_at: int | None


class DeliveryList(BaseModel):
    object: Literal["list"] = "list"
    data: list[DeliveryObject]
    first_id: str | None
    last_id: str | None
    has_more: bool


class DeletedWebhook(BaseModel):
    id: str
    object: Literal["webhook"] = "webhook"
    deleted: Literal[True] = True


class TestedWebhook(BaseModel):
    """`status` is the endpoint's answer; null if there was none."""

    id: str
    object: Literal["webhook.test"] = "webhook.test"
    delivered: bool
    status: int | None


@router.post("", **documented(WantedWebhook, NewWebhookObject, form=False, status=201, stream=False))
async def register(request: Request, caller: Asking) -> Response:
    """A new endpoint, with its secret, which is shown this once."""
    require_member(caller, "change webhooks")
    services = services_of(request)
    wanted = _read(await read_json(request))
    _check_url(services, wanted.url)
    webhook_id, secret = new_id("wh"), new_secret()
    sealed = seal(secret, webhook_id, _key(services))
    endpoint = Endpoint(webhook_id, caller.project, wanted.url, sealed, time.time(), wanted.events)
    async with services.database.write() as connection:
        if await webhooks.count(connection, caller.project) >= MAX_ENDPOINTS:
            raise ApiError(400, f"a project has at most {MAX_ENDPOINTS} webhooks; delete one", code="too_many_webhooks")
        await webhooks.add(connection, endpoint)
    return JSONResponse({**_object(endpoint), "secret": secret}, 201)


@router.get("", responses={200: {"model": WebhookList}, **ERRORS})
async def listing(request: Request, caller: Asking) -> Response:
    """The project's endpoints, newest first."""
    async with services_of(request).database.read() as connection:
        found = [_object(endpoint) for endpoint in await webhooks.of_project(connection, caller.project)]
    ends = {"first_id": found[0]["id"], "last_id": found[-1]["id"]} if found else {"first_id": None, "last_id": None}
    return JSONResponse({"object": "list", "data": found, **ends, "has_more": False})


@router.get("/{webhook_id}", responses={200: {"model": WebhookObject}, **ERRORS})
async def one(request: Request, webhook_id: str, caller: Asking) -> Response:
    """An endpoint, without its secret."""
    return JSONResponse(_object(await _find(services_of(request), caller, webhook_id)))


@router.delete("/{webhook_id}", responses={200: {"model": DeletedWebhook}, **ERRORS})
async def remove(request: Request, webhook_id: str, caller: Asking) -> Response:
    """Removes an endpoint. Nothing more is sent to it, what is waiting to be tried again included."""
    require_member(caller, "change webhooks")
    async with services_of(request).database.write() as connection:
        if not await webhooks.remove(connection, webhook_id, caller.project):
            raise not_found("webhook", webhook_id)
    return JSONResponse(DeletedWebhook(id=webhook_id).model_dump())


@router.get("/{webhook_id}/deliveries", responses={200: {"model": DeliveryList}, **ERRORS})
async def deliveries(
    request: Request,
    webhook_id: str,
    caller: Asking,
    limit: Annotated[int, Query(ge=1, le=100)] = 20,
    after: str | None = None,
) -> Response:
    """What was to be told, newest first, from the one that follows `after`, and what became of it."""
    services = services_of(request)
    endpoint = await _find(services, caller, webhook_id)
    async with services.database.read() as connection:
        found = await webhooks.deliveries_to(connection, endpoint.id, limit=limit + 1, after=after)
    page = [_delivery(each) for each in found[:limit]]
    ends = {"first_id": page[0]["id"] if page else None, "last_id": page[-1]["id"] if page else None}
    return JSONResponse({"object": "list", "data": page, **ends, "has_more": len(found) > limit})


@router.post("/{webhook_id}/rotate", responses={200: {"model": NewWebhookObject}, **ERRORS})
async def rotate(request: Request, webhook_id: str, caller: Asking) -> Response:
    """A new secret, which is shown this once. The one before it signs beside it for 24 hours."""
    require_member(caller, "change webhooks")
    services = services_of(request)
    secret, until = new_secret(), time.time() + OVERLAP_SECONDS
    sealed = seal(secret, webhook_id, _key(services))
    async with services.database.write() as connection:
        if not await webhooks.rotate(connection, webhook_id, caller.project, sealed, until):
            raise not_found("webhook", webhook_id)
    return JSONResponse({**_object(await _find(services, caller, webhook_id)), "secret": secret})


@router.post("/{webhook_id}/test", responses={200: {"model": TestedWebhook}, **ERRORS})
async def test(request: Request, webhook_id: str, caller: Asking) -> Response:
    """Tries an endpoint. Sends a `webhook.test` event now, once. An endpoint that was disabled and takes it is enabled again."""
    require_member(caller, "change webhooks")
    services = services_of(request)
    endpoint, now = await _find(services, caller, webhook_id), time.time()
    event = WebhookEvent(new_id("evt"), "webhook.test", now, endpoint.id, {"id": endpoint.id})
    attempt = await deliver_once(receiver_of(endpoint, _key(services), now), event, client=services.fetcher, now=now)
    if attempt.outcome == "delivered" and endpoint.disabled_at is not None:
        async with services.database.write() as connection:
            await webhooks.enable(connection, webhook_id)
    tested = TestedWebhook(id=event.id, delivered=attempt.outcome == "delivered", status=attempt.status)
    return JSONResponse(tested.model_dump())


def _read(values: Any) -> WantedWebhook:
    try:
        return WantedWebhook.model_validate(without_nulls(values))
    except ValidationError as error:
        raise of_validation(error.errors()) from error


def _check_url(services: Services, url: str) -> None:
    """What can be said without looking the host up; the rest is checked whenever something is sent."""
    try:
        services.fetcher.check(url)
    except DestinationError as error:
        raise ApiError(400, f"{error.message}; {error.hint}", code="invalid_webhook_url", param="url") from error
    if not url.lower().startswith("https:") and not services.settings.limits.allowed_networks:
        # Only with private networks may there be a reason for plain text.
        raise ApiError(400, "a webhook needs an https:// URL", code="invalid_webhook_url", param="url")


async def _find(services: Services, caller: Caller, webhook_id: str) -> Endpoint:
    async with services.database.read() as connection:
        endpoint = await webhooks.find(connection, webhook_id, caller.project)
    if endpoint is None:
        raise not_found("webhook", webhook_id)
    return endpoint


def _key(services: Services) -> bytes:
    return services.secrets.derive("webhook secrets")


def _object(endpoint: Endpoint) -> dict[str, Any]:
    return {
        "id": endpoint.id,
        "object": "webhook",
        "url": endpoint.url,
        "events": None if endpoint.events is None else list(endpoint.events),
        "created_at": int(endpoint.created_at),
        "previous_until": _seconds(endpoint.previous_until),
        "disabled_at": _seconds(endpoint.disabled_at),
    }


def _delivery(delivery: Delivery) -> dict[str, Any]:
    delivered, given_up = _seconds(delivery.delivered_at), _seconds(delivery.given_up_at)
    return {
        "id": delivery.id,
        "object": "webhook.delivery",
        "job_id": delivery.job_id,
        "type": delivery.type,
        "status": "delivered" if delivered else "given_up" if given_up else "pending",
        "attempts": delivery.attempts,
        "last_status": delivery.last_status,
        "created_at": int(delivery.created_at),
        "delivered_at": delivered,
        "given_up_at": given_up,
    }


def _seconds(time_: float | None) -> int | None:
    return None if time_ is None else int(time_)
