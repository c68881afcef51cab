"""Together AI: pictures in the request, asked for as `base64` and answered as `b64_json`; references go as data URLs."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

import httpx2

from kleinbild.core.deployments import Can, Parameter
from kleinbild.core.formats import PictureFormat
from kleinbild.core.jobs import Task
from kleinbild.core.sizes import SizeRange
from kleinbild.providers import answers, delivered
from kleinbild.providers.answers import Said
from kleinbild.providers.delivered import bad_answer
from kleinbild.providers.given import data_url
from kleinbild.providers.hosted import Answer, Call, Cancellation, Cause, Handle, ProviderError, Watcher, ignore
from kleinbild.providers.wire import Wire
from kleinbild.safety.fetch import Fetcher

DEFAULT_URL = "https://api.together.ai/v1"
NUM_SEEDS = 2**32

_GENERATE: frozenset[Task] = frozenset({"image.generate"})
_EDIT: frozenset[Task] = frozenset({"image.generate", "image.edit"})
_FORMATS: frozenset[PictureFormat] = frozenset({"png", "jpeg"})
_SIZES = SizeRange(min_side=256, max_side=2048, max_pixels=2048 * 2048, multiple=16)
_OLDER_SIZES = SizeRange(min_side=256, max_side=1440, max_pixels=1440 * 1440, multiple=32)
"""Of FLUX.1."""
_BARE: frozenset[Parameter] = frozenset({"size", "seed"})
_OPEN: frozenset[Parameter] = frozenset({"size", "seed", "steps", "guidance"})
"""Of models whose weights are open; the others settle these themselves."""
_MODERATED = ("nsfw", "moderat", "safety", "content_policy", "content policy", "flagged")
"""What an error of the service's filter holds. Its codes are not documented."""


def capabilities(model: str) -> Can:
    """By the names of the FLUX families. Of a model of another name nothing is assumed but the API's own fields.

    The service makes several in one call, but of one seed: so that each picture's is known, one is asked for at a time.
    """
    name = model.lower()
    if "flux.2" in name:
        return Can(_EDIT, _BARE if _is_closed(name) else _OPEN, _FORMATS, _SIZES, max_references=8)
    if "kontext" in name:
        return Can(_EDIT, _BARE, _FORMATS, _OLDER_SIZES, max_references=1)
    if "schnell" in name:
        parameters: frozenset[Parameter] = _BARE | {"steps"}
        return Can(_GENERATE, parameters, _FORMATS, _OLDER_SIZES, default_steps=4)
    if "flux.1" in name:
        return Can(_GENERATE, _BARE if _is_closed(name) else _OPEN, _FORMATS, _OLDER_SIZES)
    return Can(_GENERATE, _OPEN, _FORMATS, _SIZES)


def _is_closed(name: str) -> bool:
    return any(part in name for part in ("pro", "max", "flex"))


class Together:
    def __init__(
        self,
        key: str | None,
        *,
        base_url: str = DEFAULT_URL,
        fetcher: Fetcher | None = None,
        transport: httpx2.AsyncBaseTransport | None = None,
    ) -> None:
        self._key = key
        self._wire = Wire(base_url, self._authorize, fetcher=fetcher, transport=transport)

    def can(self, model: str) -> Can:
        return capabilities(model)

    async def start(self, call: Call, watcher: Watcher = ignore) -> Answer:  # noqa: ARG002 - it tells of no progress
        seed = (call.work.seed + call.first) % NUM_SEEDS
        body = await asyncio.to_thread(_body, call, seed)
        response = await self._wire.send("POST", "/images/generations", json=body, seconds=call.seconds)
        if not response.is_success:
            raise self._refusal(response)
        answer = await answers.parsed(response)
        pictures = await delivered.checked(await self._files(answer, call), call.count, [seed])
        return Answer(
            pictures,
            request_id=response.headers.get("x-request-id") or _id(answer),
            notes=delivered.size_notes(pictures, call.work.size),
        )

    async def collect(self, handle: Handle, call: Call, watcher: Watcher = ignore) -> Answer:  # noqa: ARG002
        raise answers.no_handles()

    async def cancel(self, handle: Handle) -> Cancellation:  # noqa: ARG002
        return "impossible"

    async def probe(self) -> None:
        response = await self._wire.send("GET", "/models", buys=False)
        if not response.is_success:
            raise self._refusal(response)

    async def close(self) -> None:
        await self._wire.close()

    def _authorize(self) -> Mapping[str, str]:
        return {"Authorization": f"Bearer {self._key}"} if self._key else {}

    def _refusal(self, response: httpx2.Response) -> ProviderError:
        told = answers.error_in(response, self._key)
        return answers.refusal(response, told, cause=_cause(response.status_code, told))

    async def _files(self, answer: Mapping[str, Any], call: Call) -> list[bytes]:
        items = answer.get("data")
        if not isinstance(items, list) or len(items) != call.count or not all(isinstance(item, dict) for item in items):
            raise bad_answer("the service did not give the pictures that were asked for", f"not {call.count}")
        files = []
        for item in sorted(items, key=_index):
            url = item.get("url")
            if isinstance(url, str) and not item.get("b64_json"):
                files.append(await self._wire.picture(url))
            else:
                files.append(await delivered.decoded(item.get("b64_json")))
        return files


def _body(call: Call, seed: int) -> dict[str, Any]:
    """One seed for all: of several pictures only the first is known by it."""
    work = call.work
    body: dict[str, Any] = {
        "model": call.model,
        "prompt": work.prompt,
        "n": call.count,
        "seed": seed,
        "response_format": "base64",
        "output_format": "jpeg" if work.output_format == "jpeg" else "png",
    }
    if work.size is not None:
        body |= {"width": work.size.width, "height": work.size.height}
    if work.steps is not None:
        body["steps"] = work.steps
    if work.guidance is not None:
        body["guidance_scale"] = work.guidance
    if references := [data_url(file) for file in call.inputs.references]:
        body |= {"reference_images": references} if "flux.2" in call.model.lower() else {"image_url": references[0]}
    return body


def _cause(status: int, told: Said) -> Cause | None:
    text = str(told).lower()
    if status in {400, 403, 422} and any(word in text for word in _MODERATED):
        return "moderated"
    if told.type == "credit_limit" or told.code == "credit_limit_exceeded":
        return "credit"
    if told.code == "model_not_available":
        return "not_found"
    return None


def _index(item: Mapping[str, Any]) -> int:
    index = item.get("index")
    return index if isinstance(index, int) else 0


def _id(answer: Mapping[str, Any]) -> str | None:
    name = answer.get("id")
    return name if isinstance(name, str) else None
