"""Black Forest Labs' API: a task is taken on, polled at the address that it is given, and its picture fetched within ten
minutes. A task cannot be cancelled, and one that is done is charged.
"""

from __future__ import annotations

import asyncio
import base64
from collections.abc import Mapping
from decimal import Decimal, InvalidOperation
from typing import Any

import httpx2

from kleinbild.core.deployments import Can, Parameter
from kleinbild.core.formats import PictureFormat
from kleinbild.core.jobs import Task
from kleinbild.core.sizes import SizeRange
from kleinbild.providers import answers, delivered, polling, results
from kleinbild.providers.hooks import Hook
from kleinbild.providers.hosted import (
    Accepted,
    Answer,
    Call,
    Cancellation,
    Cause,
    Handle,
    ProviderError,
    Watcher,
    ignore,
)
from kleinbild.providers.polling import CLOCK, Clock, Deadline, Look
from kleinbild.providers.wire import MAX_DETAIL, Wire
from kleinbild.safety.fetch import Fetcher

DEFAULT_URL = "https://api.bfl.ai"
OWN_HOSTS = ("bfl.ai",)
"""Polls go to clusters below it, such as api.eu2.bfl.ai."""
MAX_ACTIVE = 24
"""Tasks of one account that may be under way at the same time."""
CREDIT = Decimal("0.01")
"""In dollars."""
MAX_COST = Decimal(100)
"""Of one task, in dollars; more is a mistake, and no bill."""

LOOSEST = 5
"""Of `safety_tolerance`, which is 2 unless somebody says so: what a low moderation is there."""

_TASKS: frozenset[Task] = frozenset({"image.generate", "image.edit"})
_FORMATS: frozenset[PictureFormat] = frozenset({"png", "jpeg", "webp"})
_SIZES = SizeRange(min_side=64, max_side=4096, max_pixels=2048 * 2048, multiple=16)
_PLAIN: frozenset[Parameter] = frozenset({"size", "seed", "moderation"})
_MODERATED: Mapping[str, str] = {
    "Request Moderated": "the service's safety system refused the request",
    "Content Moderated": "the service's safety system refused the picture that was made",
}


def capabilities(model: str) -> Can:
    """Of models that are not FLUX.2 no more is assumed than that they take a prompt and a seed."""
    if not model.startswith("flux-2-"):
        return Can(frozenset({"image.generate"}), frozenset({"seed"}), formats=_FORMATS)
    is_klein, is_flex = model.startswith("flux-2-klein"), model.startswith("flux-2-flex")
    return Can(
        _TASKS,
        _PLAIN | {"steps", "guidance"} if is_flex else _PLAIN,
        formats=_FORMATS,
        sizes=_SIZES,
        max_references=4 if is_klein else 8,
        default_steps=4 if is_klein else 50 if is_flex else None,
    )


class BlackForestLabs:
    """`hook` is where it is to call back; `clock` is for tests."""

    def __init__(
        self,
        key: str | None,
        *,
        base_url: str = DEFAULT_URL,
        fetcher: Fetcher | None = None,
        transport: httpx2.AsyncBaseTransport | None = None,
        hook: Hook | None = None,
        clock: Clock = CLOCK,
    ) -> None:
        self._key, self._hook, self._clock = key, hook, clock
        self._wire = Wire(base_url, self._authorize, own_hosts=OWN_HOSTS, fetcher=fetcher, transport=transport)

    def can(self, model: str) -> Can:
        return capabilities(model)

    async def start(self, call: Call, watcher: Watcher = ignore) -> Accepted:  # noqa: ARG002 - it tells of no progress
        body = await asyncio.to_thread(_body, call)
        if self._hook is not None:
            body |= {"webhook_url": self._hook.url, "webhook_secret": self._hook.secret}
        response = await self._wire.send(
            "POST", f"/v1/{call.model}", json=body, seconds=min(call.seconds, polling.SUBMIT_SECONDS)
        )
        if not response.is_success:
            raise answers.refusal(response, answers.error_in(response, self._key))
        told = await answers.parsed(response)
        task, charged = answers.name_in(told, "id"), _dollars(told.get("cost"))
        handle: Handle = {"id": task}
        if isinstance(url := told.get("polling_url"), str):
            handle["polling_url"] = url
        if charged is not None:
            handle["charged"] = str(charged)
        return Accepted(handle, charged, request_id=task)

    async def collect(self, handle: Handle, call: Call, watcher: Watcher = ignore) -> Answer:  # noqa: ARG002
        deadline = Deadline(call.seconds, self._clock)
        url, params = self._place(handle)
        told = await polling.follow(
            self._wire, url, _read, handle=handle, call=call, deadline=deadline, hook=self._hook, params=params
        )
        charged = _charged(told, handle)
        result = answers.inner(told, "result")
        pictures = await results.fetched(
            self._wire,
            [result.get("sample")],
            call.count,
            handle=handle,
            deadline=deadline,
            seeds=[results.seed_of(result.get("seed"))],
            charged=charged,
        )
        return Answer(
            pictures,
            charged=charged,
            seconds=results.seconds_of(result.get("duration")),
            request_id=str(handle.get("id")),
            notes=delivered.size_notes(pictures, call.work.size),
        )

    async def cancel(self, handle: Handle) -> Cancellation:  # noqa: ARG002
        return "impossible"

    async def probe(self) -> None:
        response = await self._wire.send("GET", "/v1/credits", buys=False)
        if not response.is_success:
            raise answers.refusal(response, answers.error_in(response, self._key), unsure=())

    async def close(self) -> None:
        await self._wire.close()

    def _authorize(self) -> Mapping[str, str]:
        return {"x-key": self._key} if self._key else {}

    def _place(self, handle: Handle) -> tuple[str, dict[str, str] | None]:
        """Where to poll."""
        if url := polling.place(self._wire, handle.get("polling_url")):
            return url, None
        return "/v1/get_result", {"id": str(handle.get("id"))}


def _body(call: Call) -> dict[str, Any]:
    work = call.work
    body: dict[str, Any] = {"prompt": work.prompt, "seed": work.seed + call.first, "output_format": work.output_format}
    can = capabilities(call.model)
    if work.size is not None and can.sizes is not None:
        body |= {"width": work.size.width, "height": work.size.height}
    if work.moderation == "low" and "moderation" in can.parameters:
        body["safety_tolerance"] = LOOSEST
    if work.steps is not None and "steps" in can.parameters:
        body["steps"] = work.steps
    if work.guidance is not None and "guidance" in can.parameters:
        body["guidance"] = work.guidance
    for number, file in enumerate(call.inputs.references, 1):
        body["input_image" if number == 1 else f"input_image_{number}"] = base64.b64encode(file).decode()
    return body


def _read(response: httpx2.Response) -> dict[str, Any] | Look:
    """The task that is ready. A status that nobody knows is one on the way."""
    told = polling.object_of(response)
    status = told.get("status")
    if status == "Ready":
        return told
    if status == "Task not found":
        return Look.MISSING
    if isinstance(status, str) and status in _MODERATED:
        raise _ended(told, "moderated", _MODERATED[status], charge_unless_told=False)
    if status == "Error":
        raise _ended(told, "failed", "the service could not make the picture", charge_unless_told=None)
    return Look.PENDING


def _ended(told: Mapping[str, Any], cause: Cause, message: str, *, charge_unless_told: bool | None) -> ProviderError:
    """Without a picture. Some answers tell what that costs."""
    cost = _dollars(told.get("cost"))
    billed = charge_unless_told if cost is None else cost > 0
    return ProviderError(
        message,
        cause=cause,
        acceptance="refused" if billed is False else "accepted",
        billed=billed,
        charged=cost,
        request_id=str(told.get("id")),
        detail=str(told.get("details") or "")[:MAX_DETAIL],
    )


def _charged(told: Mapping[str, Any], handle: Handle) -> Decimal | None:
    """What the task cost in the end, else what was said at its beginning."""
    cost = _dollars(told.get("cost"))
    if cost is None and isinstance(kept := handle.get("charged"), str):
        return Decimal(kept)
    return cost


def _dollars(credits_: object) -> Decimal | None:
    if isinstance(credits_, bool) or not isinstance(credits_, int | float | str):
        return None
    try:
        cost = Decimal(str(credits_)) * CREDIT
    except InvalidOperation:
        return None
    return cost if cost.is_finite() and 0 <= cost <= MAX_COST else None
