"""OpenAI's images API, and every server that speaks it: another base URL is all that they take.

OpenAI's own models (gpt-image and its kin) answer base64 alone, stream previews and count tokens. Of any other model
nothing is assumed but the API's first fields, and base64 is asked for; a URL as the answer is followed. Other servers
are taken to know seeds, which OpenAI does not, unless the configuration says otherwise.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import urlsplit

import httpx2
from pydantic_core import from_json

from kleinbild.core.deployments import Can, Parameter
from kleinbild.core.formats import PictureFormat
from kleinbild.core.jobs import Task
from kleinbild.core.prices import BilledTokens
from kleinbild.core.sizes import SizeRange
from kleinbild.core.threads import on_bytes
from kleinbild.providers import answers, delivered
from kleinbild.providers.answers import Said, said
from kleinbild.providers.delivered import bad_answer
from kleinbild.providers.given import data_url, part
from kleinbild.providers.hosted import Answer, Call, Cancellation, Cause, Handle, ProviderError, Watcher, ignore
from kleinbild.providers.wire import Wire, read_whole
from kleinbild.safety.fetch import Fetcher

DEFAULT_URL = "https://api.openai.com/v1"
WITHOUT_SEEDS = ("api.openai.com", ".openai.azure.com")
"""Hosts whose API has no field for them and refuses it."""
RETIRED: Mapping[str, str] = {
    "dall-e-2": "gpt-image-1-mini",
    "dall-e-3": "gpt-image-2",
    "gpt-image-1": "gpt-image-1.5",
}
"""Models that OpenAI has shut down, and what stands in for each."""
MAX_IMAGES = 10
MAX_REFERENCES = 16
MAX_PARTIAL_IMAGES = 3
MAX_EVENT_BYTES = 64 * 2**20
MAX_DATA_URL_BYTES = 15_000_000
"""Of a picture in JSON: its data URL may have 20,971,520 letters."""
PICTURE_SECONDS = 60.0
MAX_TOKENS = 10**7
"""Of one request; more are a mistake, and no bill."""

_TASKS: frozenset[Task] = frozenset({"image.generate", "image.edit"})
_OF_OPENAI: frozenset[Parameter] = frozenset(
    {"size", "quality", "background", "mask", "output_compression", "partial_images", "user", "moderation"}
)
_FIDELITY: frozenset[Parameter] = frozenset({"input_fidelity"})
_OF_OTHERS: frozenset[Parameter] = frozenset({"size", "mask", "user"})
_FORMATS: frozenset[PictureFormat] = frozenset({"png", "jpeg", "webp"})
_EXACT = ("1024x1024", "1536x1024", "1024x1536")
_ANY = SizeRange(min_side=256, max_side=3840, max_pixels=3840 * 2160, multiple=16)
_OTHERS = SizeRange(min_side=64, max_side=4096, max_pixels=4096 * 4096, multiple=1)
"""Nobody says what another server makes. It refuses what it does not, and a size made instead becomes a note."""
_CAUSES: Mapping[str, Cause] = {
    "moderation_blocked": "moderated",
    "content_policy_violation": "moderated",
    "content_filter": "moderated",
    "insufficient_quota": "credit",
    "billing_hard_limit_reached": "credit",
    "invalid_api_key": "credentials",
    "model_not_found": "not_found",
}


def capabilities(model: str, base_url: str = DEFAULT_URL) -> Can:
    if not is_openais(model):
        seeds = not (urlsplit(base_url).hostname or "").endswith(WITHOUT_SEEDS)
        return Can(
            _TASKS,
            _OF_OTHERS | {"seed"} if seeds else _OF_OTHERS,
            sizes=_OTHERS,
            max_images=MAX_IMAGES,
            max_references=MAX_REFERENCES,
            one_seed=seeds,
        )
    fidelity = _only_fidelity(model)
    return Can(
        _TASKS,
        _OF_OPENAI if fidelity else _OF_OPENAI | _FIDELITY,
        formats=_FORMATS,
        sizes=_ANY if _takes_any_size(model) else None,
        exact_sizes=() if _takes_any_size(model) else _EXACT,
        max_images=MAX_IMAGES,
        max_references=MAX_REFERENCES,
        always=(("input_fidelity", fidelity),) if fidelity else (),
        previews=True,
    )


def is_openais(model: str) -> bool:
    """Whether it is one of OpenAI's that are not retired, which have more fields, and one less: `response_format`."""
    return model.startswith(("gpt-image-", "chatgpt-image-"))


def _takes_any_size(model: str) -> bool:
    version = re.match(r"gpt-image-(\d+)", model)
    return version is not None and int(version[1]) >= 2


def _only_fidelity(model: str) -> str | None:
    """The input fidelity of models that have but one, and refuse to be told."""
    if _takes_any_size(model):
        return "high"
    return "low" if "-mini" in model else None


class OpenAI:
    def __init__(
        self,
        key: str | None,
        *,
        base_url: str = DEFAULT_URL,
        fetcher: Fetcher | None = None,
        transport: httpx2.AsyncBaseTransport | None = None,
    ) -> None:
        self._key, self._base_url = key, base_url
        self._wire = Wire(base_url, self._authorize, fetcher=fetcher, transport=transport)

    def can(self, model: str) -> Can:
        return capabilities(model, self._base_url)

    async def start(self, call: Call, watcher: Watcher = ignore) -> Answer:
        _check(call)
        events = Events(watcher, self._key)
        response = await self._wire.send(
            "POST",
            "/images/edits" if call.inputs.references else "/images/generations",
            **(await on_bytes(_num_bytes(call), lambda: _body(call, call.can or self.can(call.model)))),
            headers={"X-Client-Request-Id": call.id, "Idempotency-Key": call.id},
            seconds=call.seconds,
            read=events.read,
        )
        if not response.is_success:
            raise self._refusal(response, call.model)
        body = await answers.parsed(response) if events.final is None else events.final
        if body.get("error"):
            raise _failed(said(body, self._key))
        pictures = await delivered.checked(await self._files(body, call), call.count)
        return Answer(
            pictures,
            tokens=_tokens(body.get("usage")),
            seconds=_seconds(response.headers.get("openai-processing-ms")),
            request_id=response.headers.get("x-request-id"),
            notes=(*_unmoderated(call), *delivered.size_notes(pictures, call.work.size)),
        )

    async def collect(self, handle: Handle, call: Call, watcher: Watcher = ignore) -> Answer:  # noqa: ARG002
        raise answers.no_handles()

    async def cancel(self, handle: Handle) -> Cancellation:  # noqa: ARG002
        return "impossible"

    async def probe(self) -> None:
        response = await self._wire.send("GET", "/models", buys=False)
        unlisted = response.status_code in {httpx2.codes.NOT_FOUND, httpx2.codes.METHOD_NOT_ALLOWED}
        if not response.is_success and not unlisted:  # servers that speak the API need not list their models
            raise self._refusal(response)

    async def close(self) -> None:
        await self._wire.close()

    def _authorize(self) -> Mapping[str, str]:
        return {"Authorization": f"Bearer {self._key}"} if self._key else {}

    def _refusal(self, response: httpx2.Response, model: str = "") -> ProviderError:
        told = answers.error_in(response, self._key)
        error = answers.refusal(response, told, cause=_cause(told))
        if error.cause == "moderated" and told.stage == "output":  # it was made, then held back
            error.acceptance, error.billed = "accepted", None
        if error.cause == "not_found" and model in RETIRED:
            error.hint = f"{model!r} is retired; {RETIRED[model]!r} stands in for it"
        return error

    async def _files(self, body: Mapping[str, Any], call: Call) -> list[bytes]:
        items = body.get("data")
        if not isinstance(items, list) or len(items) != call.count:
            given = len(items) if isinstance(items, list) else 0
            raise bad_answer("the service did not give the pictures that were asked for", f"{given} of {call.count}")
        seconds = min(PICTURE_SECONDS, call.seconds)
        try:
            async with asyncio.TaskGroup() as group:
                files = [group.create_task(self._file(item, seconds)) for item in items]
        except* ProviderError as several:
            raise several.exceptions[0] from None
        return [file.result() for file in files]

    async def _file(self, item: object, seconds: float) -> bytes:
        fields = item if isinstance(item, dict) else {}
        url = fields.get("url")
        if fields.get("b64_json") or not isinstance(url, str):
            return await delivered.decoded(fields.get("b64_json"))
        if url.startswith("data:"):
            return await delivered.decoded(url)
        return await self._wire.picture(url, seconds=seconds)


class Events:
    """Reads an answer: a stream of events, whose previews the watcher sees and whose last becomes `final` in the form of
    an answer that was not streamed; or, where `final` stays None, anything else."""

    def __init__(self, watcher: Watcher, secret: str | None) -> None:
        self._watcher, self._secret = watcher, secret
        self.final: dict[str, Any] | None = None

    async def read(self, response: httpx2.Response) -> None:
        if not response.is_success or not response.headers.get("content-type", "").startswith("text/event-stream"):
            await read_whole(response)
            return
        async for message in httpx2.EventSource(response, MAX_EVENT_BYTES):
            if message.data == "[DONE]":
                break
            event = await _event(message.data)
            kind = str(event.get("type", message.event))
            if event.get("error") or kind == "error":
                raise _failed(said(event, self._secret))
            if kind.endswith(".partial_image"):
                await self._show(event)
            elif kind.endswith(".completed"):
                self.final = {"data": [event], "usage": event.get("usage")}
                return  # the end of the stream is not worth waiting for
        raise bad_answer("the service's answer broke off", "the stream ended without a picture")

    async def _show(self, event: Mapping[str, Any]) -> None:
        try:
            file = await delivered.decoded(event.get("b64_json"))
        except ProviderError:
            return  # the picture itself may still come
        if (shown := await delivered.preview(file)) is not None:
            self._watcher(None, shown)


async def _event(data: str) -> dict[str, Any]:
    try:
        event = await on_bytes(len(data), lambda: from_json(data))
    except ValueError as error:
        raise bad_answer("the service's answer cannot be read", "an event is no JSON") from error
    if not isinstance(event, dict):
        raise bad_answer("the service's answer cannot be read", "an event is no object")
    return event


def _check(call: Call) -> None:
    """What the gateway has seen to, said once more where a mistake would cost money."""
    if call.inputs.mask is not None and not call.inputs.references:
        raise ProviderError("a mask needs a picture", cause="invalid", acceptance="refused")


def _body(call: Call, can: Can) -> dict[str, Any]:
    """The arguments of `Wire.send`: JSON, or a form with the pictures as files, which has all fields but `moderation`."""
    inputs = call.inputs
    if not inputs.references:
        return {"json": _fields(call, can)}
    if _is_json(call):
        mask = {} if inputs.mask is None else {"mask": _source(inputs.mask)}
        return {"json": {**_fields(call, can), "images": [_source(file) for file in inputs.references], **mask}}
    form = {
        name: str(value).lower() if isinstance(value, bool) else str(value)
        for name, value in _fields(call, can).items()
    }
    return {"data": form, "files": _files(call.inputs.references, call.inputs.mask)}


def _fields(call: Call, can: Can) -> dict[str, Any]:
    work, openais = call.work, is_openais(call.model)
    fields: dict[str, Any] = {"model": call.model, "prompt": work.prompt, "n": call.count}
    if work.size is not None:
        fields["size"] = str(work.size)
    if call.user is not None:
        fields["user"] = call.user
    if "seed" in can.parameters and call.count == 1:  # of several, some servers would make the same picture each time
        fields["seed"] = work.seed + call.first
    if not openais:
        return {**fields, "response_format": "b64_json"}
    fields |= {"output_format": work.output_format, "background": work.background, "quality": work.quality}
    if work.moderation != "auto" and _is_json(call):
        fields["moderation"] = work.moderation
    if work.input_fidelity is not None and call.inputs.references and _only_fidelity(call.model) is None:
        fields["input_fidelity"] = work.input_fidelity
    if work.output_format != "png" and work.compression < 100:
        fields["output_compression"] = work.compression
    if work.num_previews and call.count == 1:  # the events of several pictures do not tell which one they are of
        fields |= {"stream": True, "partial_images": min(work.num_previews, MAX_PARTIAL_IMAGES)}
    return fields


def _is_json(call: Call) -> bool:
    """Pictures go as files, which are a quarter smaller, unless a field wants JSON, which holds smaller ones only."""
    inputs, openais = call.inputs, is_openais(call.model)
    files = (*inputs.references, *((inputs.mask,) if inputs.mask else ()))
    return not files or (
        openais and call.work.moderation != "auto" and all(len(file) <= MAX_DATA_URL_BYTES for file in files)
    )


def _num_bytes(call: Call) -> int:
    """Of the pictures in it."""
    return sum(map(len, (*call.inputs.references, call.inputs.mask or b"")))


def _source(file: bytes) -> dict[str, str]:
    return {"image_url": data_url(file)}


def _unmoderated(call: Call) -> tuple[str, ...]:
    if not is_openais(call.model) or call.work.moderation == "auto" or _is_json(call):
        return ()
    return (f"moderation: {call.work.moderation} is not honoured with pictures as large as these",)


def _files(references: Sequence[bytes], mask: bytes | None) -> list[tuple[str, tuple[str, bytes, str]]]:
    name = "image" if len(references) == 1 else "image[]"
    files = [(name, part(f"image{index}", file)) for index, file in enumerate(references)]
    return files if mask is None else [*files, ("mask", part("mask", mask))]


def _cause(told: Said) -> Cause | None:
    return _CAUSES.get(told.code) or _CAUSES.get(told.type)


def _failed(told: Said) -> ProviderError:
    """An error after the service had begun to answer well."""
    cause = _cause(told) or "failed"
    return ProviderError(
        answers.IN_OUR_WORDS.get(cause, "the service could not make the picture"),
        cause=cause,
        acceptance="accepted",
        billed=False if told.stage == "input" else None,
        detail=str(told),
    )


def _tokens(usage: object) -> BilledTokens | None:
    """None where it cannot be told what the picture took: part of a bill is worse than a quote."""
    if not isinstance(usage, dict):
        return None
    given, made = usage.get("input_tokens_details"), usage.get("output_tokens_details")
    given, made = given if isinstance(given, dict) else {}, made if isinstance(made, dict) else {}
    tokens = BilledTokens(
        _count(given.get("text_tokens", usage.get("input_tokens"))),
        _count(given.get("image_tokens")),
        _count(made.get("image_tokens", usage.get("output_tokens"))),
    )
    return tokens if tokens.output_image else None


def _count(value: object) -> int:
    return value if isinstance(value, int) and 0 < value <= MAX_TOKENS else 0


def _seconds(milliseconds: str | None) -> float | None:
    return int(milliseconds) / 1000 if milliseconds and re.fullmatch(r"[0-9]{1,9}", milliseconds) else None
