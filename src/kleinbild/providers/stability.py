"""Stability AI's Stable Diffusion 3.5: one picture in the request, of about a megapixel, in one of nine shapes.

A picture that its filter has blurred comes with status 200; here it is an error, as what it is. Failures are not charged.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import httpx2

from kleinbild.core.deployments import Can, Parameter
from kleinbild.core.formats import PictureFormat
from kleinbild.core.jobs import Task
from kleinbild.core.sizes import Size, parse_aspect
from kleinbild.providers import answers, delivered
from kleinbild.providers.answers import Said
from kleinbild.providers.given import part
from kleinbild.providers.hosted import Answer, Call, Cancellation, Cause, Handle, ProviderError, Watcher, ignore
from kleinbild.providers.wire import UNSURE, Wire
from kleinbild.safety.fetch import Fetcher

DEFAULT_URL = "https://api.stability.ai"
RATIOS = ("1:1", "16:9", "21:9", "2:3", "3:2", "4:5", "5:4", "9:16", "9:21")
STRENGTH = 0.7
"""How far a picture may go from the one given, which the service wants to be told, where nobody said: far enough for an
edit to be seen."""
LAST_SEED = 4_294_967_294
BLOCKED_SECONDS = 60.0
"""For which the service shuts out whoever was too fast."""
MAX_PROMPT = 10_000

Part = tuple[str, tuple[None, str] | tuple[str, bytes, str]]
"""A field's name, and its text or its file."""

_TASKS: frozenset[Task] = frozenset({"image.generate", "image.edit"})
_PARAMETERS: frozenset[Parameter] = frozenset({"seed", "guidance", "strength", "user"})
_FORMATS: frozenset[PictureFormat] = frozenset({"png", "jpeg", "webp"})


def capabilities(model: str) -> Can:  # noqa: ARG001 - all of the family can do the same
    return Can(_TASKS, _PARAMETERS, _FORMATS, ratios=RATIOS, max_references=1, max_prompt=MAX_PROMPT)


def nearest_ratio(size: Size) -> str:
    wanted = math.log(size.width / size.height)
    return min(RATIOS, key=lambda ratio: abs(math.log(parse_aspect(ratio)) - wanted))


class Stability:
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
        _check(call)
        seed = (call.work.seed + call.first) % (LAST_SEED + 1) or LAST_SEED  # 0 stands for any
        headers = {"Accept": "application/json"}
        if call.user is not None:
            headers["stability-client-user-id"] = call.user
        response = await self._wire.send(
            "POST",
            "/v2beta/stable-image/generate/sd3",
            files=_form(call, seed),
            headers=headers,
            seconds=call.seconds,
        )
        if not response.is_success:
            raise self._refusal(response)
        file, finish, told = await _result(response)
        if finish != "SUCCESS":
            raise _unfinished(finish)
        pictures = await delivered.checked([file], 1, [seed if told is None else told])
        return Answer(
            pictures,
            request_id=response.headers.get("x-request-id"),
            notes=delivered.size_notes(pictures, call.work.size),
        )

    async def collect(self, handle: Handle, call: Call, watcher: Watcher = ignore) -> Answer:  # noqa: ARG002
        raise answers.no_handles()

    async def cancel(self, handle: Handle) -> Cancellation:  # noqa: ARG002
        return "impossible"

    async def probe(self) -> None:
        response = await self._wire.send("GET", "/v1/user/balance", buys=False)
        if not response.is_success:
            raise self._refusal(response)
        credits_left = (await answers.parsed(response)).get("credits")
        if isinstance(credits_left, int | float) and credits_left <= 0:
            raise ProviderError(answers.IN_OUR_WORDS["credit"], cause="credit", acceptance="refused")

    async def close(self) -> None:
        await self._wire.close()

    def _authorize(self) -> Mapping[str, str]:
        return {"Authorization": f"Bearer {self._key}"} if self._key else {}

    def _refusal(self, response: httpx2.Response) -> ProviderError:
        told = answers.error_in(response, self._key)
        # What fails is free, if it is the service itself that says so, and not something that stands before it.
        unsure = tuple(status for status in UNSURE if status != 500 or not told.code)
        error = answers.refusal(response, told, cause=_cause(told), unsure=unsure)
        if error.cause == "rate_limited" and error.retry_after is None:
            error.retry_after = BLOCKED_SECONDS
        return error


def _check(call: Call) -> None:
    """What the gateway has seen to, said once more where a mistake would cost money."""
    if call.count != 1 or len(call.inputs.references) > 1 or call.inputs.mask is not None:
        raise ProviderError(
            "the service makes one picture at a time, from one at most, without a mask",
            cause="invalid",
            acceptance="refused",
        )


def _form(call: Call, seed: int) -> list[Part]:
    """All of it as parts: the service takes no other kind of form, also where there is no file."""
    work = call.work
    fields: dict[str, Any] = {
        "model": call.model,
        "prompt": work.prompt,
        "seed": seed,
        "output_format": work.output_format,
        "mode": "image-to-image" if call.inputs.references else "text-to-image",
    }
    if work.guidance is not None:
        fields["cfg_scale"] = work.guidance
    if call.inputs.references:
        fields["strength"] = STRENGTH if work.strength is None else work.strength
    elif work.size is not None:
        fields["aspect_ratio"] = nearest_ratio(work.size)
    parts: list[Part] = [(name, (None, str(value))) for name, value in fields.items()]
    return [*parts, *(("image", part("image", file)) for file in call.inputs.references)]


async def _result(response: httpx2.Response) -> tuple[bytes, str, int | None]:
    """The file, how it finished, and the seed if it is told; from JSON, or from headers where the bytes came bare."""
    if response.headers.get("content-type", "").startswith("image/"):
        headers = response.headers
        return response.content, headers.get("finish-reason", "SUCCESS"), _seed(headers.get("seed"))
    body = await answers.parsed(response)
    finish = body.get("finish_reason", "SUCCESS")
    if finish != "SUCCESS":
        return b"", str(finish), None
    return await delivered.decoded(body.get("image")), finish, _seed(body.get("seed"))


def _unfinished(finish: str) -> ProviderError:
    if finish == "CONTENT_FILTERED":
        return ProviderError(answers.IN_OUR_WORDS["moderated"], cause="moderated", acceptance="accepted", billed=False)
    return ProviderError(
        "the service could not make the picture",
        cause="failed",
        acceptance="accepted",
        billed=None,
        detail=f"finish_reason {finish[:100]!r}",
    )


def _cause(told: Said) -> Cause | None:
    if "moderation" in told.code or told.code == "public_figure":
        return "moderated"
    return None


def _seed(value: object) -> int | None:
    """As the service tells it, a number or, in a header, its digits."""
    if isinstance(value, str) and len(value) <= len(str(LAST_SEED)) and value.isdecimal():
        value = int(value)
    return value if isinstance(value, int) and 0 <= value <= LAST_SEED else None
