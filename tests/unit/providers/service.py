"""A service without a network: it answers with what it is given, and keeps what it was asked."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, TypeVar

import httpx2
import pytest

from kleinbild.core.jobs import ImageWork
from kleinbild.providers.base import Inputs
from kleinbild.providers.hosted import Answer, Call, Hosted, ProviderError, Watcher, ignore
from kleinbild.safety.fetch import Fetcher

KEY = "sk-test-0123456789abcdef"
Result = TypeVar("Result")
Handler = Callable[[httpx2.Request], httpx2.Response]


class Service:
    """`answer` is what it says to all, or what to do with a request; a whole request is kept before that."""

    def __init__(self, answer: httpx2.Response | Exception | Handler) -> None:
        self.answer = answer
        self.requests: list[httpx2.Request] = []
        self.transport = httpx2.MockTransport(self._handle)

    @property
    def request(self) -> httpx2.Request:
        assert len(self.requests) == 1
        return self.requests[0]

    async def _handle(self, request: httpx2.Request) -> httpx2.Response:
        await request.aread()
        self.requests.append(request)
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer if isinstance(self.answer, httpx2.Response) else self.answer(request)


class Whole(httpx2.AsyncByteStream):
    """A body that comes as it does over a network; a Response's `content` is read before anybody asks for it."""

    def __init__(self, body: bytes) -> None:
        self.body = body

    async def __aiter__(self) -> AsyncIterator[bytes]:
        yield self.body


class Broken(httpx2.AsyncByteStream):
    """A body that comes to its middle, and then `error`, or nothing for longer than anybody waits."""

    def __init__(self, body: bytes, error: Exception | None) -> None:
        self.body, self.error = body, error

    async def __aiter__(self) -> AsyncIterator[bytes]:
        yield self.body
        if self.error is None:
            await asyncio.sleep(30)
        else:
            raise self.error


def work(**changed: Any) -> ImageWork:
    fields = {"task": "image.generate", "prompt": "a zeppelin at dawn", "model": "any", "seed": 41, **changed}
    return ImageWork(**fields)


def call(model: str, *, references: tuple[bytes, ...] = (), mask: bytes | None = None, **changed: Any) -> Call:
    names = {"id", "first", "count", "seconds", "user"}
    own = {name: value for name, value in changed.items() if name in names}
    task = "image.edit" if references else "image.generate"
    settled = work(**{"task": task, **{name: value for name, value in changed.items() if name not in names}})
    return Call(**{"id": "att_1", **own}, model=model, work=settled, inputs=Inputs(references, mask))


def used(
    kind: Any, service: Service, do: Callable[[Hosted], Awaitable[Result]], *, key: str | None = KEY, **options: Any
) -> Result:
    """What `do` gives with a provider of `kind`, opened and closed for it."""

    async def run() -> Result:
        provider = kind(key, transport=service.transport, **options)
        try:
            return await do(provider)
        finally:
            await provider.close()

    return asyncio.run(run())


def started(kind: Any, service: Service, asked: Call, watcher: Watcher = ignore, **options: Any) -> Answer:
    answer = used(kind, service, lambda provider: provider.start(asked, watcher), **options)
    assert isinstance(answer, Answer)
    return answer


def failed(kind: Any, service: Service, asked: Call, watcher: Watcher = ignore, **options: Any) -> ProviderError:
    """The error of `start`, whose message gives nothing away."""
    with pytest.raises(ProviderError) as caught:
        started(kind, service, asked, watcher, **options)
    error = caught.value
    assert str(error) == error.message
    assert error.message
    for secret in (KEY, "://", "openai.com", "together.ai", "stability.ai", "Signature"):
        assert secret not in error.message
    assert KEY not in error.detail
    return error


def outcome(error: ProviderError) -> tuple[str, str, bool | None]:
    return error.cause, error.acceptance, error.billed


def fetching(service: Service) -> Fetcher:
    """Fetches from any host, which are all `service`."""

    async def resolver(_: str, __: int) -> list[str]:
        return ["93.184.215.14"]

    return Fetcher(resolver=resolver, transport=service.transport)
