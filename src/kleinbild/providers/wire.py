"""HTTP to one service: who may see its key, what a failure of the network means, and pictures that it serves by URL.

A request that never left was not accepted; one whose answer got lost may have been. `send` says which, as ProviderError.
Answers come back whatever their status: what those mean is the service's own, and stands in its file; `usual_error` is
what most of them have in common.
"""

from __future__ import annotations

import asyncio
import email.utils
import math
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import httpx2

from kleinbild import __version__
from kleinbild.core.errors import DestinationError, FetchError
from kleinbild.providers.connections import Connections
from kleinbild.providers.hosted import Acceptance, Cause, ProviderError
from kleinbild.safety.fetch import Fetcher

CONNECT_SECONDS = 5.0
MAX_ANSWER_BYTES = 256 * 10**6  # ten pictures of 4 megapixels as base64, generously
MAX_DETAIL = 500
UNSURE = (500, 502, 504, 520, 524)
"""After these the service itself may have gone on: broken under way, or cut off by what stands before it."""
NEVER_SENT = (httpx2.ConnectError, httpx2.ConnectTimeout, httpx2.PoolTimeout, httpx2.UnsupportedProtocol)
USUAL = {"User-Agent": f"kleinbild/{__version__}", "Accept": "*/*", "Accept-Encoding": "gzip, deflate"}
Authorize = Callable[[], Mapping[str, str]]


class Wire:
    """Connections to the service at `base_url`. `authorize` gives the headers that hold the key: they go to the host of
    `base_url` and to `own_hosts` (names, and all names below them) and nowhere else, over TLS alone except to this machine.

    `transport` is where tests take the network away. `fetcher` gets pictures from hosts that are not the service's own.
    """

    def __init__(
        self,
        base_url: str,
        authorize: Authorize,
        *,
        own_hosts: tuple[str, ...] = (),
        fetcher: Fetcher | None = None,
        transport: httpx2.AsyncBaseTransport | None = None,
    ) -> None:
        self.base_url = base_url.rstrip("/")
        self._authorize, self._fetcher = authorize, fetcher
        self._base = httpx2.URL(self.base_url)
        self._own_hosts = (self._base.host, *own_hosts)
        self._transport = transport or Connections()

    def is_own(self, url: str) -> bool:
        """Whether the service's key may go to that address."""
        try:
            parsed = httpx2.URL(url)
        except (httpx2.InvalidURL, ValueError):
            return False
        own = any(parsed.host == host or parsed.host.endswith(f".{host}") for host in self._own_hosts if host)
        return own and (parsed.scheme == "https" or _origin(parsed) == _origin(self._base))

    async def send(
        self,
        method: str,
        path: str,
        *,
        json: Any = None,
        data: Mapping[str, Any] | None = None,
        files: Any = None,
        headers: Mapping[str, str] | None = None,
        params: Mapping[str, str] | None = None,
        seconds: float = 60.0,
        buys: bool = True,
        read: Callable[[httpx2.Response], Awaitable[None]] | None = None,
    ) -> httpx2.Response:
        """The whole answer, of any status. `path` is below `base_url`, or a URL that the service gave, of its own hosts.
        `seconds` are for all of it but the connecting. `buys`: it may cost something, so that a lost answer leaves us not
        knowing; one that begins well and breaks off is of work that was taken on. `read` takes the body in, `read_whole`
        unless something else is to be done with it as it arrives. Raises ProviderError."""
        url = path if "://" in path else f"{self.base_url}{path}"
        if "://" in path and not self.is_own(url):
            raise ProviderError(
                "the service named an address that is not its own",
                cause="bad_answer",
                acceptance="unknown" if buys else "accepted",
                billed=None,
                detail=f"it is {url[:MAX_DETAIL].partition('?')[0]!r}",
            )
        connect = min(seconds, CONNECT_SECONDS)
        request = httpx2.Request(
            method,
            url,
            json=json,
            data=data,
            files=files,
            params=params,
            headers={**USUAL, **(headers or {}), **self._authorize()},
            extensions={"timeout": {"connect": connect, "read": seconds, "write": seconds, "pool": seconds}},
        )
        response: httpx2.Response | None = None
        try:
            async with asyncio.timeout(connect + seconds):
                # Without httpx2's client, which would follow redirects and keep cookies if it were not told otherwise.
                response = await self._transport.handle_async_request(request)
                response.request = request
                try:
                    await (read or read_whole)(response)
                finally:
                    await response.aclose()
        except (httpx2.RequestError, TimeoutError) as error:
            if response is None:
                raise _of_transport(error, buys=buys) from error
            if response.is_success:
                raise _broken_off(error, buys=buys) from error
        return response  # also if it broke off and is a refusal, which its status tells

    async def picture(self, url: str, *, seconds: float = 60.0) -> bytes:
        """What is at a result's URL, soon after it was given: it expires. Raises ProviderError, "bad_answer", of work that
        was accepted and is done, and so most likely billed."""
        try:
            if self.is_own(url):
                response = await self.send("GET", url, seconds=seconds, buys=False)
                if response.status_code != httpx2.codes.OK:
                    raise _no_picture(f"status {response.status_code}")
                return response.content
            if self._fetcher is None:
                raise _no_picture("on a host that is not the service's own")
            async with await self._fetcher.fetch(url) as fetched:
                return await fetched.read()
        except (DestinationError, FetchError) as error:
            raise _no_picture(error.message) from error
        except ProviderError as error:  # of a request that bought nothing: what it is for was bought before
            raise _no_picture(error.detail) from error

    async def close(self) -> None:
        await self._transport.aclose()


def usual_error(
    response: httpx2.Response,
    message: str,
    *,
    cause: Cause | None = None,
    unsure: tuple[int, ...] = UNSURE,
    detail: str = "",
) -> ProviderError:
    """What an HTTP status of 400 or more means nearly everywhere, for an answer to what buys. After the `unsure` ones
    nobody knows whether the work was taken on. `cause`: what the service says that it is."""
    status = response.status_code
    cause = cause or cause_of(status)
    acceptance: Acceptance = "unknown" if status in unsure else "refused"
    return ProviderError(
        message[:MAX_DETAIL],
        cause=cause,
        acceptance=acceptance,
        billed=None if acceptance == "unknown" else False,
        status=status,
        retry_after=retry_after(response.headers),
        request_id=response.headers.get("x-request-id"),
        detail=detail[:MAX_DETAIL],
    )


def cause_of(status: int) -> Cause:
    return _CAUSES.get(status, "overloaded" if status >= 500 else "invalid")


def retry_after(headers: Mapping[str, str]) -> float | None:
    """Seconds, from `retry-after-ms` or `Retry-After` as seconds or a date; None for nothing that can be read."""
    try:
        if (ms := headers.get("retry-after-ms")) is not None:
            return _waiting(float(ms) / 1000)
        if (text := headers.get("retry-after")) is None:
            return None
        return _waiting(float(text))
    except ValueError:
        parsed = email.utils.parsedate_tz(headers.get("retry-after", ""))
        return max(0.0, email.utils.mktime_tz(parsed) - time.time()) if parsed else None


def _waiting(seconds: float) -> float | None:
    return max(0.0, seconds) if math.isfinite(seconds) else None


_CAUSES: Mapping[int, Cause] = {
    401: "credentials",
    402: "credit",
    403: "credentials",
    404: "not_found",
    408: "timeout",
    429: "rate_limited",
    504: "timeout",
}


async def read_whole(response: httpx2.Response) -> None:
    """Into memory, up to a bound; as much as came, if it breaks off."""
    size = 0
    chunks = []
    try:
        async for chunk in response.aiter_bytes():
            size += len(chunk)
            if size > MAX_ANSWER_BYTES:
                raise httpx2.ReadError("the answer is too large")
            chunks.append(chunk)
    finally:
        response._content = b"".join(chunks)  # noqa: SLF001 - what its own `aread` does, without a bound


def _broken_off(error: Exception, *, buys: bool) -> ProviderError:
    """Of an answer that began as one of success."""
    if not buys:
        return _of_transport(error, buys=False)
    return ProviderError(
        "the service's answer broke off",
        cause="bad_answer",
        acceptance="accepted",
        billed=None,
        detail=f"{type(error).__name__}: {error}"[:MAX_DETAIL],
    )


def _of_transport(error: Exception, *, buys: bool) -> ProviderError:
    never = isinstance(error, NEVER_SENT)
    timed_out = isinstance(error, httpx2.TimeoutException | TimeoutError)
    acceptance: Acceptance = "refused" if never else "unknown" if buys else "accepted"
    return ProviderError(
        "the service cannot be reached" if never else "the service's answer was lost",
        cause="timeout" if timed_out else "connection",
        acceptance=acceptance,
        billed=False if never else None,
        detail=f"{type(error).__name__}: {error}"[:MAX_DETAIL],
    )


def _no_picture(why: str) -> ProviderError:
    return ProviderError(
        "the service's picture could not be fetched", cause="bad_answer", acceptance="accepted", billed=None, detail=why
    )


def _origin(url: httpx2.URL) -> tuple[str, str, int | None]:
    return url.scheme, url.host, url.port
