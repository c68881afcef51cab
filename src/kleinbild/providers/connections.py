"""Connections to one service: httpx2's requests and answers over aiohttp's sockets.

aiohttp reads HTTP in C. httpx2's own transport, in Python alone, took a quarter of a small request's time here.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager

import aiohttp
import httpx2
from yarl import URL

IDLE_SECONDS = 30.0
_OURS = ("User-Agent", "Accept", "Accept-Encoding", "Content-Type")  # what aiohttp would add where httpx2 added nothing


class Connections(httpx2.AsyncBaseTransport):
    """As many at once as there are requests; those that are free are kept for the next, for a while.

    Raises what httpx2's own transport does: ConnectError and ConnectTimeout alone say that nothing was sent.
    """

    def __init__(self) -> None:
        self._session: aiohttp.ClientSession | None = None

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        if self._session is None:
            self._session = _session()
        seconds = request.extensions.get("timeout", {})
        with _as_httpx(request):
            answer = await self._session.request(
                request.method,
                URL(str(request.url), encoded=True),
                headers=request.headers.multi_items(),
                data=_body(request),
                allow_redirects=False,
                timeout=aiohttp.ClientTimeout(
                    total=None, sock_connect=seconds.get("connect"), sock_read=seconds.get("read")
                ),
            )
        return httpx2.Response(
            answer.status, headers=list(answer.raw_headers), stream=_Stream(answer, request), request=request
        )

    async def aclose(self) -> None:
        if self._session is not None:
            await self._session.close()
            self._session = None


class _Stream(httpx2.AsyncByteStream):
    """An answer's bytes. Its connection is free once all are read, and ends if it is closed before."""

    def __init__(self, answer: aiohttp.ClientResponse, request: httpx2.Request) -> None:
        self._answer, self._request = answer, request

    async def __aiter__(self) -> AsyncIterator[bytes]:
        with _as_httpx(self._request):
            async for chunk in self._answer.content.iter_any():
                yield chunk

    async def aclose(self) -> None:
        self._answer.close()


def _session() -> aiohttp.ClientSession:
    return aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(
            limit=0, keepalive_timeout=IDLE_SECONDS, ssl=httpx2.create_ssl_context(trust_env=False)
        ),
        cookie_jar=aiohttp.DummyCookieJar(),
        auto_decompress=False,
        skip_auto_headers=_OURS,
    )


def _body(request: httpx2.Request) -> bytes | AsyncIterator[bytes] | None:
    try:
        return request.content or None
    except httpx2.RequestNotRead:  # a form, which is made while it is sent
        assert isinstance(request.stream, httpx2.AsyncByteStream)
        return aiter(request.stream)


@contextmanager
def _as_httpx(request: httpx2.Request) -> Iterator[None]:
    """aiohttp's errors as httpx2's."""
    try:
        yield
    except aiohttp.ConnectionTimeoutError as error:
        raise httpx2.ConnectTimeout(str(error), request=request) from error
    except aiohttp.ClientConnectorError as error:
        raise httpx2.ConnectError(str(error), request=request) from error
    except aiohttp.SocketTimeoutError as error:
        raise httpx2.ReadTimeout(str(error), request=request) from error
    except (aiohttp.InvalidURL, aiohttp.NonHttpUrlClientError, ValueError) as error:
        raise httpx2.UnsupportedProtocol(str(error), request=request) from error
    except (aiohttp.ClientPayloadError, aiohttp.ClientOSError) as error:
        raise httpx2.ReadError(str(error), request=request) from error
    except aiohttp.ClientError as error:
        raise httpx2.RemoteProtocolError(str(error), request=request) from error
