"""The guarded way out: GET a picture that a caller named by URL, POST to a webhook that a caller registered.

1. The URL is read once, by one parser, and must be plain: http or https, a permitted port, no user name, no odd host.
2. Its host is resolved once; every address must be one that may be reached (`kleinbild.safety.addresses`).
3. The connection is made to a checked address itself, with the URL's host as `Host` and in TLS, so that no second
   look-up can answer differently.
4. The answer is bounded: bytes, seconds for the whole exchange, no redirects, no cookies, no proxy.

Requests go straight to a transport: there is no client that could follow, remember or read the environment. Errors
tell the caller about the URL that he gave, never what was found there: no address, no status, no answer.
"""

from __future__ import annotations

import re
import socket
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, replace
from ipaddress import IPv4Address, IPv6Address

import anyio
import httpx2

from kleinbild import __version__
from kleinbild.core.errors import DestinationError, FetchError
from kleinbild.safety.addresses import METADATA_NAMES, Address, Network, may_reach, parse_address

Resolver = Callable[[str, int], Awaitable[Sequence[str]]]
"""A host name and a port to the addresses it has, as text. Raises OSError if there are none."""

WEBHOOK_SECONDS = 15.0
MAX_URL_CHARS = 4096

_PORTS = {"http": 80, "https": 443}
_NAME = re.compile(
    r"(?=.{1,253}\.?$)[a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9_])?(\.[a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9_])?)*\.?"
)
_AUTHORITY = re.compile(r"[/?#]")
_NUMBER = re.compile(r"[0-9]+|0x[0-9a-f]*")
_CONNECT_SECONDS = 5.0
"""To one address; the next one is tried after it."""


@dataclass(frozen=True)
class Reach:
    """Where requests may go. The server's owner sets this, never a caller."""

    networks: tuple[Network, ...] = ()
    """Networks beside the public internet, such as the one that an own object store is in."""
    ports: frozenset[int] = frozenset({80, 443})


@dataclass(frozen=True)
class FetchLimits:
    max_bytes: int = 50 * 10**6
    seconds: float = 20.0
    """For the whole of it: look-up, connection, answer."""
    spool_bytes: int = 10**6
    """What is kept in memory; a larger file goes to disk as it arrives."""


async def resolve(host: str, port: int) -> Sequence[str]:
    """The machine's own resolver, in a thread."""
    found = await anyio.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return [str(sockaddr[0]) for *_, sockaddr in found]


def check_url(text: str, ports: frozenset[int] = Reach.ports) -> httpx2.URL:
    """A caller's URL, read once. Raises DestinationError unless it is plain; whom its host belongs to is not yet known."""
    url = _parse(text)
    if url.scheme not in _PORTS or not url.host:
        raise DestinationError("the URL does not begin with http:// or https:// and a host", "give a whole URL")
    if "@" in _AUTHORITY.split(text, maxsplit=3)[2]:  # an empty name, too, which the parser drops
        raise DestinationError("the URL holds a user name or a password", "give one without")
    if (port := _port(url)) not in ports:
        raise DestinationError(f"port {port} is not allowed", f"allowed: {', '.join(map(str, sorted(ports)))}")
    _check_host(url)
    return url


def _parse(text: str) -> httpx2.URL:
    if len(text) > MAX_URL_CHARS:
        raise DestinationError(f"the URL has {len(text)} characters", f"give one of at most {MAX_URL_CHARS}")
    if "\\" in text or text != text.strip():  # parsers part ways over these
        raise DestinationError("the URL has a backslash in it or spaces around it", "write it as a plain URL")
    try:
        return httpx2.URL(text)
    except (httpx2.InvalidURL, ValueError) as error:
        raise DestinationError("not a URL", "give an http:// or https:// URL") from error


def _check_host(url: httpx2.URL) -> None:
    host = url.raw_host.decode("ascii")
    if ":" in host:
        valid = "%" not in host and isinstance(parse_address(host), IPv6Address)
    elif _NUMBER.fullmatch(host.rstrip(".").rpartition(".")[2]):
        valid = isinstance(parse_address(host), IPv4Address)  # 127.1, 0x7f.1 and 2130706433 are refused
    else:
        valid = _NAME.fullmatch(host) is not None
    if not valid:
        raise DestinationError(f"{url.host!r} is not a host name", "give a name, or an address such as 192.0.2.1")


def _port(url: httpx2.URL) -> int:
    return url.port or _PORTS[url.scheme]


def connections(tls: ssl.SSLContext | None = None) -> httpx2.AsyncHTTPTransport:
    """What carries a request once its address is checked. `tls` is for those who have their own certificate authority."""
    # No connection is kept: the pool knows them by address, and one that was checked for a host's certificate must not
    # serve another host. HTTP/2 would share them too.
    limits = httpx2.Limits(max_connections=64, max_keepalive_connections=0)
    return httpx2.AsyncHTTPTransport(verify=tls or True, trust_env=False, http2=False, limits=limits)


class GuardedTransport(httpx2.AsyncBaseTransport):
    """Sends a request to a checked address of its host. Raises DestinationError where there is no such address."""

    def __init__(self, reach: Reach, resolver: Resolver, transport: httpx2.AsyncBaseTransport) -> None:
        self.reach = reach
        self._resolve = resolver
        self._transport = transport

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        url = check_url(str(request.url), self.reach.ports)
        addresses = await self._addresses(url)
        for address in addresses[:-1]:
            try:
                return await self._send(request, address)
            except (httpx2.ConnectError, httpx2.ConnectTimeout):
                continue  # nothing was sent
        return await self._send(request, addresses[-1])

    async def aclose(self) -> None:
        await self._transport.aclose()

    async def _addresses(self, url: httpx2.URL) -> list[Address]:
        host = url.raw_host.decode("ascii").lower().rstrip(".")
        literal = parse_address(host)
        found = [str(literal)] if literal else await self._look_up(host, _port(url))
        addresses = [parse_address(text) for text in found]
        checked = [address for address in addresses if address and may_reach(address, self.reach.networks)]
        if not checked or len(checked) < len(addresses):
            # One sentence for all reasons: which internal names exist is nobody's business.
            raise DestinationError(f"{url.host} does not lead to the public internet", "give a public URL")
        return checked

    async def _look_up(self, host: str, port: int) -> Sequence[str]:
        if host in METADATA_NAMES:
            return []
        try:
            return await self._resolve(host, port)
        except (OSError, UnicodeError):
            return []

    async def _send(self, request: httpx2.Request, address: Address) -> httpx2.Response:
        name = request.url.raw_host.decode("ascii").rstrip(".")
        pinned = httpx2.Request(
            request.method,
            request.url.copy_with(host=str(address)),
            headers=request.headers,  # with the Host of the URL
            stream=request.stream,
            extensions={**request.extensions, "sni_hostname": name},
        )
        return await self._transport.handle_async_request(pinned)


class Fetcher:
    """Gets pictures from and posts events to URLs of callers. One for the server; close it with `aclose`."""

    def __init__(
        self,
        reach: Reach = Reach(),
        limits: FetchLimits = FetchLimits(),
        *,
        resolver: Resolver = resolve,
        transport: httpx2.AsyncBaseTransport | None = None,
    ) -> None:
        self._limits = limits
        self._transport = GuardedTransport(reach, resolver, transport or connections())

    def set_limits(self, reach: Reach, limits: FetchLimits) -> None:
        """For what is asked for from now on; what is under way goes on as it began."""
        self._transport.reach, self._limits = reach, limits

    def check(self, url: str) -> None:
        """Raises DestinationError for a URL that is refused without a look-up: what can be said at registration."""
        check_url(url, self._transport.reach.ports)

    async def fetch(
        self, url: str, *, accept: str = "image/*", max_bytes: int | None = None
    ) -> anyio.SpooledTemporaryFile[bytes]:
        """The file at `url`, at its beginning; the caller closes it. `max_bytes` are fewer than those of a picture. Raises
        DestinationError or FetchError."""
        request, limits = self._request("GET", url, {"accept": accept}, b""), self._limits
        if max_bytes is not None:
            limits = replace(limits, max_bytes=min(max_bytes, limits.max_bytes))
        file = anyio.SpooledTemporaryFile(max_size=limits.spool_bytes)
        try:
            async with self._exchange(request, limits.seconds) as response:
                _check_answer(response, limits)
                await _spool(response, file, limits)
            await file.seek(0)
        except BaseException:
            with anyio.CancelScope(shield=True):
                await file.aclose()
            raise
        return file

    async def post(self, url: str, body: bytes, headers: Mapping[str, str], seconds: float = WEBHOOK_SECONDS) -> int:
        """Post to `url` and give the status of the answer, which is not read. Raises DestinationError or FetchError."""
        request = self._request("POST", url, headers, body)
        async with self._exchange(request, seconds) as response:
            return response.status_code

    async def aclose(self) -> None:
        await self._transport.aclose()

    def _request(self, method: str, url: str, headers: Mapping[str, str], body: bytes) -> httpx2.Request:
        plain = {"user-agent": f"kleinbild/{__version__}", "accept-encoding": "identity", **headers}
        return httpx2.Request(
            method,
            check_url(url, self._transport.reach.ports),
            headers=plain,
            content=body,
            extensions={"timeout": {"connect": _CONNECT_SECONDS}},
        )

    @asynccontextmanager
    async def _exchange(self, request: httpx2.Request, seconds: float) -> AsyncIterator[httpx2.Response]:
        with _in_words(request.url.host, seconds), anyio.fail_after(seconds):
            response = await self._transport.handle_async_request(request)
            response.request = request
            try:
                yield response
            finally:
                await response.aclose()


async def _spool(response: httpx2.Response, file: anyio.SpooledTemporaryFile[bytes], limits: FetchLimits) -> None:
    num_bytes = 0
    async for chunk in response.aiter_raw():
        num_bytes += len(chunk)
        if num_bytes > limits.max_bytes:
            raise _too_large(limits)
        await file.write(chunk)


@contextmanager
def _in_words(host: str, seconds: float) -> Iterator[None]:
    try:
        yield
    except TimeoutError as error:
        raise FetchError(f"{host} did not finish within {seconds:g} s", "try again, or send the file itself") from error
    except (httpx2.TransportError, httpx2.StreamError) as error:
        raise FetchError(f"{host} cannot be reached, or broke off", "check the URL") from error


def _check_answer(response: httpx2.Response, limits: FetchLimits) -> None:
    host = response.request.url.host
    if response.has_redirect_location or 300 <= response.status_code < 400:
        raise FetchError(f"{host} redirects, which is not followed", "give the URL that it leads to")
    if response.status_code != 200:
        raise FetchError(f"{host} did not give the file", "check that the URL can be read by anybody")
    if response.headers.get("content-encoding", "identity") != "identity":
        raise FetchError(f"{host} gave a compressed answer", "give a URL that answers with the file as it is")
    declared = response.headers.get("content-length", "0")
    if declared.isdecimal() and int(declared) > limits.max_bytes:
        raise _too_large(limits)


def _too_large(limits: FetchLimits) -> FetchError:
    return FetchError(f"the file is larger than {limits.max_bytes / 1e6:g} MB", "give a smaller one")
