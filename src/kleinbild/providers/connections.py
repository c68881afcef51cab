"""Connections to one service, each in a pool of its own.

httpcore looks at every idle connection of its pool for every request and every answer; with dozens of them that was a
quarter of a small request's time. Pools of one connection, the last used first, know nothing of each other.
"""

from __future__ import annotations

from collections.abc import AsyncIterator

import httpx2

MAX_IDLE = 64
IDLE_SECONDS = 30.0


class Connections(httpx2.AsyncBaseTransport):
    """As many at once as there are requests; up to `MAX_IDLE` are kept for the next."""

    def __init__(self) -> None:
        self._idle: list[httpx2.AsyncHTTPTransport] = []

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        transport = self._idle.pop() if self._idle else _one()
        try:
            response = await transport.handle_async_request(request)
        except BaseException:
            await self._back(transport)
            raise
        assert isinstance(response.stream, httpx2.AsyncByteStream)
        response.stream = _Held(response.stream, self, transport)
        return response

    async def aclose(self) -> None:
        while self._idle:
            await self._idle.pop().aclose()

    async def _back(self, transport: httpx2.AsyncHTTPTransport) -> None:
        if len(self._idle) < MAX_IDLE:
            self._idle.append(transport)
        else:
            await transport.aclose()


class _Held(httpx2.AsyncByteStream):
    """An answer's bytes; once it is closed, its connection is free."""

    def __init__(
        self, stream: httpx2.AsyncByteStream, connections: Connections, transport: httpx2.AsyncHTTPTransport
    ) -> None:
        self._stream, self._connections, self._transport = stream, connections, transport
        self._closed = False

    async def __aiter__(self) -> AsyncIterator[bytes]:
        async for chunk in self._stream:
            yield chunk

    async def aclose(self) -> None:
        if self._closed:
            return
        self._closed = True
        try:
            await self._stream.aclose()
        finally:
            await self._connections._back(self._transport)  # noqa: SLF001 - one class in two parts


def _one() -> httpx2.AsyncHTTPTransport:
    limits = httpx2.Limits(max_connections=1, max_keepalive_connections=1, keepalive_expiry=IDLE_SECONDS)
    return httpx2.AsyncHTTPTransport(trust_env=False, limits=limits)
