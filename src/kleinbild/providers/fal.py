"""fal: a request waits in its queue, is polled, and its result is an answer of its own. The queue calls work completed
that has failed, too: what the result answers tells. fal's own retries are switched off, for there is one owner of those.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Mapping
from typing import Any

import httpx2

from kleinbild.core.deployments import Can, Parameter
from kleinbild.core.formats import PictureFormat
from kleinbild.core.sizes import SizeRange
from kleinbild.providers import answers, delivered, polling, results
from kleinbild.providers.given import data_url
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
from kleinbild.providers.wire import MAX_DETAIL, UNSURE, Wire, cause_of, retry_after
from kleinbild.safety.fetch import Fetcher

DEFAULT_URL = "https://queue.fal.run"
OWN_HOSTS = ("fal.run",)
MAX_IMAGES = 4
LOOKS_AFTER_CANCEL = 3
BELIEVED_BROKEN = 3
"""As often a result must be a server's error without a kind before it is taken for the work's."""
PROBED = "/fal-ai/flux-2/requests/00000000-0000-0000-0000-000000000000/status"
"""A request that there is not: fal says so to those whom it lets in."""

_FORMATS: frozenset[PictureFormat] = frozenset({"png", "jpeg", "webp"})
_SIZES = SizeRange(min_side=64, max_side=4096, max_pixels=2048 * 2048, multiple=16)
_PLAIN: frozenset[Parameter] = frozenset({"size", "seed", "steps"})
_EDIT = "/edit"
_FLAGGED = "content_policy_violation"
_OF_THE_POLL = frozenset({401, 403, 404, 408, 410, 425, 429})
"""What an answer says of the asking, not of the work that is asked about."""


def capabilities(model: str) -> Can:
    """The name is that of the endpoint without `/edit`. Of models that are not FLUX.2 [klein] no more is assumed than the
    fields that fal's models share."""
    parts = model.split("/")
    if "flux-2" not in parts or "klein" not in parts:
        return Can(
            frozenset({"image.generate"}), frozenset({"size", "seed"}), formats=_FORMATS, sizes=_SIZES, cancel=True
        )
    is_base = "base" in parts
    return Can(
        frozenset({"image.edit"} if model.endswith(_EDIT) else {"image.generate", "image.edit"}),
        _PLAIN | {"guidance"} if is_base else _PLAIN,
        formats=_FORMATS,
        sizes=_SIZES,
        max_images=MAX_IMAGES,
        max_references=4,
        default_steps=None if is_base else 4,
        cancel=True,
    )


class Fal:
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

    async def start(self, call: Call, watcher: Watcher = ignore) -> Accepted:
        body = await asyncio.to_thread(_body, call)
        edit = _EDIT if call.inputs.references and not call.model.endswith(_EDIT) else ""
        response = await self._wire.send(
            "POST",
            f"/{call.model}{edit}",
            json=body,
            params={"fal_webhook": self._hook.url} if self._hook else None,
            headers={"X-Fal-No-Retry": "1", "X-Fal-Request-Start-Timeout": str(max(1, math.ceil(call.seconds)))},
            seconds=min(call.seconds, polling.SUBMIT_SECONDS),
        )
        if not response.is_success:
            raise self._refusal(response)
        told = await answers.parsed(response)
        name = answers.name_in(told, "request_id")
        _tell(watcher, told)
        kept = {name: told[name] for name in ("status_url", "response_url", "cancel_url") if told.get(name)}
        handle = {"id": name, "app": _app(call.model), **kept}
        return Accepted(handle, request_id=name)

    async def collect(self, handle: Handle, call: Call, watcher: Watcher = ignore) -> Answer:
        deadline = Deadline(call.seconds, self._clock)
        url = self._place(handle, "status_url")
        state = await polling.follow(
            self._wire,
            url,
            lambda response: _completed(response, watcher),
            handle=handle,
            call=call,
            deadline=deadline,
            hook=self._hook,
        )
        told = await self._result(state, handle, deadline)
        flags = told.get("has_nsfw_concepts")
        if flags is True or (isinstance(flags, list) and any(flags)):
            raise _flagged(flags, handle)
        pictures = await results.fetched(
            self._wire,
            _urls(told.get("images")),
            call.count,
            handle=handle,
            deadline=deadline,
            seeds=[results.seed_of(told.get("seed"))],
        )
        return Answer(
            pictures,
            seconds=_inference_seconds(state),
            request_id=str(handle.get("id")),
            notes=delivered.size_notes(pictures, call.work.size),
        )

    async def cancel(self, handle: Handle) -> Cancellation:
        """fal takes what waits out of its queue, and asks what runs to stop, which then may be charged or done."""
        with polling.of_accepted(handle):
            response = await self._wire.send("PUT", self._place(handle, "cancel_url"), buys=False)
            status = polling.object_of(response).get("status")
            if status == "ALREADY_COMPLETED":
                return "too_late"
            if not response.is_success:
                raise self._refusal(response)
            if status == "OK":
                return "cancelled"
            return await self._cancelled(handle)

    async def probe(self) -> None:
        response = await self._wire.send("GET", PROBED, buys=False)
        if not response.is_success and response.status_code != httpx2.codes.NOT_FOUND:
            raise self._refusal(response, unsure=())

    async def close(self) -> None:
        await self._wire.close()

    def _authorize(self) -> Mapping[str, str]:
        return {"Authorization": f"Key {self._key}"} if self._key else {}

    def _place(self, handle: Handle, name: str) -> str:
        end = {"status_url": "/status", "cancel_url": "/cancel"}.get(name, "")
        return polling.place(self._wire, handle.get(name)) or f"/{handle.get('app')}/requests/{handle.get('id')}{end}"

    def _refusal(self, response: httpx2.Response, unsure: tuple[int, ...] = UNSURE) -> ProviderError:
        told = answers.error_in(response, self._key)
        cause: Cause | None = None
        if _FLAGGED in _types(response):
            cause = "moderated"
        elif response.status_code == httpx2.codes.FORBIDDEN and "balance" in told.message.lower():
            cause = "credit"
        return answers.refusal(response, told, cause=cause, unsure=unsure)

    async def _cancelled(self, handle: Handle) -> Cancellation:
        """How a request stands that fal was asked to cancel."""
        for _ in range(LOOKS_AFTER_CANCEL):
            response = await self._wire.send("GET", self._place(handle, "status_url"), buys=False)
            if response.status_code == httpx2.codes.NOT_FOUND:
                return "cancelled"
            state = polling.object_of(response)
            if state.get("status") == "COMPLETED":
                return "cancelled" if state.get("error") and not _has_run(state) else "too_late"
            await self._clock.sleep(polling.FIRST_SECONDS)
        return "impossible"

    async def _result(self, state: Mapping[str, Any], handle: Handle, deadline: Deadline) -> dict[str, Any]:
        """What the completed work put out. Raises ProviderError for what it failed with."""
        url, broken = self._place(handle, "response_url"), 0

        def is_of_the_work(response: httpx2.Response) -> bool:
            nonlocal broken
            if not response.is_server_error:
                return response.status_code not in _OF_THE_POLL
            broken += 1  # the queue for a moment, or the work: then it is said, or stays
            return bool(state.get("error") or _types(response)) or broken >= BELIEVED_BROKEN

        response = await polling.poll(
            lambda seconds: self._wire.send("GET", url, seconds=seconds, buys=False),
            _itself,
            handle=handle,
            deadline=deadline,
            pace=polling.AT_ONCE,
            readable=is_of_the_work,
        )
        if not response.is_success or state.get("error"):
            raise self._failure(response, state, handle)
        with polling.of_accepted(handle):
            return await answers.parsed(response)

    def _failure(self, response: httpx2.Response, state: Mapping[str, Any], handle: Handle) -> ProviderError:
        """Of work that came to nothing. What failed by the service is not charged; other failures may be."""
        told, kinds = answers.error_in(response, self._key), _types(response) | {str(state.get("error_type"))}
        if is_service := response.is_server_error:
            cause, message = cause_of(response.status_code), "the service broke down over the work"
        elif _FLAGGED in kinds:
            cause, message = "moderated", answers.IN_OUR_WORDS["moderated"]
        elif any("cancel" in kind for kind in kinds):
            cause, message = "cancelled", "the service ended the work before it was done"
        elif response.is_success:
            cause, message = "failed", "the service could not make the picture"
        else:
            cause, message = "invalid", "the service does not take the request"
            if told.message:
                message = f"{message}: {answers.quoted(told.message, response.request.url.host)}"
        is_free = is_service or (cause == "cancelled" and not _has_run(state))
        return ProviderError(
            message,
            cause=cause,
            acceptance="refused" if is_free else "accepted",
            billed=False if is_free else None,
            status=response.status_code,
            retry_after=retry_after(response.headers),
            handle=handle,
            request_id=str(handle.get("id")),
            detail=(f"{told} {state.get('error') or ''}").strip()[:MAX_DETAIL],
        )


def _body(call: Call) -> dict[str, Any]:
    work, can = call.work, capabilities(call.model)
    body: dict[str, Any] = {"prompt": work.prompt, "seed": work.seed + call.first}
    if work.size is not None:
        body["image_size"] = {"width": work.size.width, "height": work.size.height}
    if can.max_images > 1:
        body |= {"num_images": call.count, "output_format": work.output_format}
    if work.steps is not None and "steps" in can.parameters:
        body["num_inference_steps"] = work.steps
    if work.guidance is not None and "guidance" in can.parameters:
        body["guidance_scale"] = work.guidance
    if call.inputs.references:
        body["image_urls"] = [data_url(file) for file in call.inputs.references]
    return body


def _app(model: str) -> str:
    """Owner and app, below which requests are found, whatever endpoint of the app they are for."""
    return "/".join(model.split("/")[:2])


def _completed(response: httpx2.Response, watcher: Watcher) -> dict[str, Any] | Look:
    state = polling.object_of(response)
    if state.get("status") == "COMPLETED":
        return state
    _tell(watcher, state)
    return Look.PENDING


def _tell(watcher: Watcher, state: Mapping[str, Any]) -> None:
    position = state.get("queue_position")
    if state.get("status") == "IN_QUEUE" and isinstance(position, int):
        watcher(position, None)


def _urls(images: object) -> list[Any]:
    return (
        [image.get("url") if isinstance(image, dict) else None for image in images] if isinstance(images, list) else []
    )


def _itself(response: httpx2.Response) -> httpx2.Response | Look:
    return response


def _types(response: httpx2.Response) -> set[str]:
    """The kinds of error that an answer names, in each of the places for them."""
    told = polling.object_of(response)
    detail = told.get("detail")
    listed = [each.get("type") for each in detail if isinstance(each, dict)] if isinstance(detail, list) else []
    kinds = (response.headers.get("x-fal-error-type"), told.get("error_type"), *listed)
    return {kind for kind in kinds if isinstance(kind, str) and kind}


def _flagged(flags: object, handle: Handle) -> ProviderError:
    """A picture was made, and another, black one is delivered in its place."""
    return ProviderError(
        "the service's safety system refused the picture that was made",
        cause="moderated",
        acceptance="accepted",
        billed=True,
        handle=handle,
        request_id=str(handle.get("id")),
        detail=f"has_nsfw_concepts {flags}"[:MAX_DETAIL],
    )


def _has_run(state: Mapping[str, Any]) -> bool:
    return bool(_inference_seconds(state))


def _inference_seconds(state: Mapping[str, Any]) -> float | None:
    return results.seconds_of(answers.inner(state, "metrics").get("inference_time"))
