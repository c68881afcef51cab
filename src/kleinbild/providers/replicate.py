"""Replicate: a prediction is asked for and may be done within that request, else it is polled; what says how it stands is
its `status`, not the code of the answer. Output is kept for an hour.

FLUX.2 [klein] takes shapes and megapixels there instead of sizes, so that the nearest ones are asked for.
"""

from __future__ import annotations

import asyncio
import math
import re
from collections.abc import Mapping
from typing import Any

import httpx2

from kleinbild.core.deployments import Can
from kleinbild.core.formats import PictureFormat
from kleinbild.core.jobs import ImageWork
from kleinbild.core.sizes import Size, parse_aspect
from kleinbild.providers import answers, delivered, polling, results
from kleinbild.providers.given import data_url, media_type
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

DEFAULT_URL = "https://api.replicate.com"
OWN_HOSTS = ("replicate.com", "replicate.delivery")
"""Output is fetched from the second with the key, as Replicate says to do."""
RATIOS = ("1:1", "16:9", "21:9", "3:2", "2:3", "4:5", "5:4", "3:4", "4:3", "9:16", "9:21")
MEGAPIXELS = ("0.25", "0.5", "1", "2", "4")
MAX_WAIT_SECONDS = 60
MIN_CANCEL_SECONDS = 5
MAX_DATA_URL = 256_000
"""Bytes. Larger pictures are uploaded before."""

_KLEIN = "black-forest-labs/flux-2-klein"
_FORMATS: Mapping[PictureFormat, str] = {"png": "png", "jpeg": "jpg", "webp": "webp"}
_FLAGGED = re.compile(r"nsfw|sensitive|safety|moderat|E005", re.IGNORECASE)
"""In the error of a prediction that was refused, which has no other mark."""
_FINAL = frozenset({"succeeded", "failed", "canceled", "aborted"})


def capabilities(model: str) -> Can:
    """Each model has fields of its own: of those that are not FLUX.2 [klein] only the two that nearly all have are sent."""
    if not model.startswith(_KLEIN):
        return Can(frozenset({"image.generate"}), frozenset({"seed"}), formats=frozenset(_FORMATS), cancel=True)
    return Can(
        frozenset({"image.generate", "image.edit"}),
        frozenset({"size", "seed", "output_compression"}),
        formats=frozenset(_FORMATS),
        ratios=RATIOS,
        max_references=5,
        default_steps=4,
        cancel=True,
    )


def nearest(size: Size) -> tuple[str, str]:
    """The ratio and the megapixels that come closest to `size`."""
    ratio = min(RATIOS, key=lambda ratio: abs(math.log(size.width / size.height / parse_aspect(ratio))))
    return ratio, min(MEGAPIXELS, key=lambda step: abs(math.log(size.area / 1e6 / float(step))))


class Replicate:
    """`wait_seconds`, at most 60, are how long a request is held for its prediction: less to poll, but a request that is
    lost meanwhile leaves nobody knowing. It is not held for work that is expected to take longer, nor where there is a
    `hook` for it to call back. With 0 it is polled at once. `clock` is for tests."""

    def __init__(
        self,
        key: str | None,
        *,
        base_url: str = DEFAULT_URL,
        fetcher: Fetcher | None = None,
        transport: httpx2.AsyncBaseTransport | None = None,
        wait_seconds: int = MAX_WAIT_SECONDS,
        hook: Hook | None = None,
        clock: Clock = CLOCK,
    ) -> None:
        self._key, self._wait_seconds = key, wait_seconds
        self._hook, self._clock = hook, clock
        self._wire = Wire(base_url, self._authorize, own_hosts=OWN_HOSTS, fetcher=fetcher, transport=transport)

    def can(self, model: str) -> Can:
        return capabilities(model)

    async def start(self, call: Call, watcher: Watcher = ignore) -> Answer | Accepted:  # noqa: ARG002 - no progress
        deadline = Deadline(call.seconds, self._clock)
        images = [await self._image(file, number, deadline) for number, file in enumerate(call.inputs.references)]
        owner_and_name, colon, _ = call.model.partition(":")
        body: dict[str, Any] = {"input": _input(call, images)}
        if colon:
            path, body["version"] = "/v1/predictions", call.model
        else:
            path = f"/v1/models/{owner_and_name}/predictions"
        if self._hook is not None:
            body |= {"webhook": self._hook.url, "webhook_events_filter": ["completed"]}
        wait = self._held(call, deadline)
        response = await self._wire.send(
            "POST",
            path,
            json=body,
            headers=_headers(wait, deadline.left),
            seconds=min(deadline.left, wait + polling.SUBMIT_SECONDS),
        )
        if not response.is_success:
            raise answers.refusal(response, answers.error_in(response, self._key))
        told = await answers.parsed(response)
        handle = self._handle(told)
        if told.get("status") in _FINAL:
            return await self._answer(_ended(told, handle), handle, call, deadline)
        return Accepted(handle, request_id=handle["id"])

    async def collect(self, handle: Handle, call: Call, watcher: Watcher = ignore) -> Answer:  # noqa: ARG002
        deadline = Deadline(call.seconds, self._clock)
        url = self._place(handle, "get")
        told = await polling.follow(
            self._wire,
            url,
            lambda response: _read(response, handle),
            handle=handle,
            call=call,
            deadline=deadline,
            hook=self._hook,
        )
        return await self._answer(told, handle, call, deadline)

    async def cancel(self, handle: Handle) -> Cancellation:
        """A prediction that had begun may be charged for its seconds, which `collect` tells."""
        with polling.of_accepted(handle):
            response = await self._wire.send("POST", self._place(handle, "cancel"), buys=False)
            if not response.is_success:
                raise answers.refusal(response, answers.error_in(response, self._key))
        told = polling.object_of(response)
        if told.get("status") in {"canceled", "aborted"} and not _has_begun(told):
            return "cancelled"
        return "too_late" if told.get("status") in {"succeeded", "failed"} else "impossible"

    async def probe(self) -> None:
        response = await self._wire.send("GET", "/v1/account", buys=False)
        if not response.is_success:
            raise answers.refusal(response, answers.error_in(response, self._key), unsure=())

    async def close(self) -> None:
        await self._wire.close()

    def _authorize(self) -> Mapping[str, str]:
        return {"Authorization": f"Bearer {self._key}"} if self._key else {}

    def _held(self, call: Call, deadline: Deadline) -> int:
        """Seconds for which the request is held."""
        if self._hook is not None or (call.expected is not None and call.expected.usual > self._wait_seconds):
            return 0
        return max(0, min(self._wait_seconds, MAX_WAIT_SECONDS, math.floor(deadline.left / 2)))

    async def _image(self, file: bytes, number: int, deadline: Deadline) -> str:
        if len(file) < MAX_DATA_URL:
            return await asyncio.to_thread(data_url, file)
        try:
            response = await self._wire.send(
                "POST",
                "/v1/files",
                files={"content": (f"image-{number}", file, media_type(file))},
                seconds=deadline.left,
                buys=False,
            )
            if not response.is_success:
                raise answers.refusal(response, answers.error_in(response, self._key), unsure=())
            url = answers.inner(polling.object_of(response), "urls").get("get")
            if not isinstance(url, str):
                raise delivered.bad_answer("the service did not say where it keeps a picture that it was given")
        except ProviderError as error:  # nothing is asked for yet
            error.acceptance, error.billed = "refused", False
            raise
        return url

    def _handle(self, told: Mapping[str, Any]) -> Handle:
        urls = answers.inner(told, "urls")
        kept = {name: urls[name] for name in ("get", "cancel") if isinstance(urls.get(name), str)}
        return {"id": answers.name_in(told, "id"), **kept}

    def _place(self, handle: Handle, name: str) -> str:
        ours = f"/v1/predictions/{handle.get('id')}" + ("/cancel" if name == "cancel" else "")
        return polling.place(self._wire, handle.get(name)) or ours

    async def _answer(self, told: Mapping[str, Any], handle: Handle, call: Call, deadline: Deadline) -> Answer:
        """Of a prediction that succeeded."""
        output = told.get("output")
        pictures = await results.fetched(
            self._wire,
            [output] if isinstance(output, str) else output,
            call.count,
            handle=handle,
            deadline=deadline,
        )
        notes = delivered.size_notes(pictures, call.work.size)
        return Answer(
            pictures,
            seconds=results.seconds_of(answers.inner(told, "metrics").get("predict_time")),
            request_id=str(handle.get("id")),
            notes=(*_shape_notes(call.work, call.model), *notes) if notes else (),
        )


def _headers(wait: int, seconds: float) -> dict[str, str]:
    """Work that nobody waits for any more is ended."""
    headers = {"Cancel-After": f"{max(MIN_CANCEL_SECONDS, math.ceil(seconds))}s"}
    return headers | {"Prefer": f"wait={wait}"} if wait else headers


def _input(call: Call, images: list[str]) -> dict[str, Any]:
    work = call.work
    fields: dict[str, Any] = {"prompt": work.prompt, "seed": work.seed + call.first}
    if not call.model.startswith(_KLEIN):
        return fields
    fields["output_format"] = _FORMATS[work.output_format]
    if work.output_format != "png":
        fields["output_quality"] = work.compression
    if images:
        fields |= {"images": images, "aspect_ratio": "match_input_image"}
    if work.size is not None:
        fields["aspect_ratio"], fields["output_megapixels"] = nearest(work.size)
    return fields


def _shape_notes(work: ImageWork, model: str) -> tuple[str, ...]:
    if work.size is None or not model.startswith(_KLEIN):
        return ()
    ratio, megapixels = nearest(work.size)
    return (f"the service takes shapes, not sizes: {ratio} with {megapixels} megapixels is nearest to {work.size}",)


def _read(response: httpx2.Response, handle: Handle) -> dict[str, Any] | Look:
    told = polling.object_of(response)
    return _ended(told, handle) if told.get("status") in _FINAL else Look.PENDING


def _ended(told: dict[str, Any], handle: Handle) -> dict[str, Any]:
    """A prediction that succeeded, and whose output is still there."""
    match told.get("status"):
        case "failed":
            error = str(told.get("error") or "")
            if _FLAGGED.search(error):
                raise _failed(told, handle, "moderated", answers.IN_OUR_WORDS["moderated"])
            raise _failed(told, handle, "failed", "the service could not make the picture")
        case "canceled" | "aborted":
            raise _failed(told, handle, "cancelled", "the service ended the work before it was done")
        case _:
            if told.get("data_removed") and not told.get("output"):
                raise _removed(handle)
            return told


def _failed(told: Mapping[str, Any], handle: Handle, cause: Cause, message: str) -> ProviderError:
    """What never began costs nothing; whether seconds without a picture are charged, Replicate does not tell."""
    has_begun = _has_begun(told)
    return ProviderError(
        message,
        cause=cause,
        acceptance="accepted" if has_begun else "refused",
        billed=None if has_begun else False,
        handle=handle,
        request_id=str(handle["id"]),
        detail=str(told.get("error") or told.get("status"))[:MAX_DETAIL],
    )


def _removed(handle: Handle) -> ProviderError:
    return ProviderError(
        "the service made the picture and has deleted it since",
        cause="bad_answer",
        acceptance="accepted",
        billed=True,
        handle=handle,
        request_id=str(handle["id"]),
        detail="data_removed",
    )


def _has_begun(told: Mapping[str, Any]) -> bool:
    status = told.get("status")
    if status in {"aborted", "failed"}:
        return bool(status == "failed")
    return bool(told.get("started_at") or answers.inner(told, "metrics").get("predict_time"))
