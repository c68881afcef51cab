"""What tests of services that take work on share: a clock of their own, calls, a small server, and what errors say."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from typing import Any

import httpx2
import pytest

from kleinbild.core.jobs import ImageWork
from kleinbild.core.sizes import Size
from kleinbild.providers.base import Inputs
from kleinbild.providers.hooks import Hook
from kleinbild.providers.hosted import Call, ProviderError
from kleinbild.providers.polling import Clock
from kleinbild.safety.fetch import Fetcher
from tests.unit.providers.service import Whole

KEY = "key-4711"
Handler = Callable[[httpx2.Request], httpx2.Response]


class Time:
    """It passes only while somebody sleeps."""

    def __init__(self) -> None:
        self.seconds, self.waits = 0.0, []
        self.clock = Clock(now=lambda: self.seconds, sleep=self.sleep)

    async def sleep(self, seconds: float) -> None:
        self.waits.append(seconds)
        self.seconds += seconds


class Server:
    """Answers by method and path, and keeps what it was asked. An answer is a status and JSON, a response, an exception to
    raise, or a list of such: one after the other, the last for good."""

    def __init__(self, **routes: Any) -> None:
        self.routes: dict[str, Any] = routes
        self.requests: list[httpx2.Request] = []
        self.transport = httpx2.MockTransport(self.answer)

    async def answer(self, request: httpx2.Request) -> httpx2.Response:
        await request.aread()
        self.requests.append(request)
        path = f"{request.method} {request.url.path}"
        if path not in self.routes:
            return httpx2.Response(404, json={"detail": "Not Found"})
        answer = self.routes[path]
        if isinstance(answer, list):
            answer = answer.pop(0) if len(answer) > 1 else answer[0]
        if isinstance(answer, Exception):
            raise answer
        if isinstance(answer, httpx2.Response):
            return httpx2.Response(answer.status_code, headers=answer.headers, stream=Whole(answer.content))
        status, body = answer
        return httpx2.Response(status, stream=Whole(json.dumps(body).encode()))

    def asked(self, path: str) -> list[httpx2.Request]:
        return [request for request in self.requests if f"{request.method} {request.url.path}" == path]


def fetcher_to(server: Server) -> Fetcher:
    """The guarded one, with a network that leads to `server` alone."""

    async def resolver(host: str, port: int) -> list[str]:
        return ["93.184.216.34"]

    return Fetcher(resolver=resolver, transport=server.transport)


def call(model: str, *, references: int = 0, file: bytes = b"", seconds: float = 60.0, **changes: Any) -> Call:
    given = {name: changes.pop(name) for name in ("first", "count", "expected") if name in changes}
    work = ImageWork(
        "image.edit" if references else "image.generate",
        **{"prompt": "a cat", "model": "klein-4b", "seed": 7, "n": 1, "size": Size(32, 24), **changes},
    )
    return Call("attempt-1", model, work, Inputs(references=(file,) * references), seconds=seconds, **given)


def run(coroutine: Any) -> Any:
    return asyncio.run(coroutine)


def through_json(handle: dict[str, Any]) -> dict[str, Any]:
    text = json.dumps(handle)
    assert KEY not in text
    return json.loads(text)


def failing(coroutine: Any) -> ProviderError:
    """What it fails with, whose message is fit for callers."""
    with pytest.raises(ProviderError) as caught:
        run(coroutine)
    error = caught.value
    for secret in (KEY, "http", "sig=", ".bfl.", "replicate", "fal.", "127.0.0.1"):
        assert secret not in error.message
    return error


def told(error: ProviderError) -> tuple[str, str, bool | None]:
    return error.cause, error.acceptance, error.billed


class Hooked:
    """A hook of a service, and the time in which its polls sleep."""

    def __init__(self, secret: str | None = None) -> None:
        self.hook = Hook("service", "https://gateway.example.com/hooks/service", _never_asked, secret)
        self.asleep = asyncio.Event()
        self.clock = Clock(now=lambda: 0.0, sleep=self._sleep)

    async def _sleep(self, seconds: float) -> None:
        self.asleep.set()
        await asyncio.sleep(60.0 if seconds else 0.0)

    async def until(self, collecting: Any, work: str) -> Any:
        """What comes of it, once it is told of."""
        task = asyncio.ensure_future(collecting)
        await self.asleep.wait()
        assert self.hook.bells.ring("service", work)
        async with asyncio.timeout(10):
            return await task


async def _never_asked(body: bytes, headers: Any) -> str:
    raise AssertionError
