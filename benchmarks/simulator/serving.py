"""HTTP/1.1 by hand, so that an answer can go wrong in every way that one does: cut off, cut in half, dripping, or never.

One `Connection` reads requests and answers them one after the other. Work goes on when a client has left, as it does at
real services; whoever answers nothing waits for `Request.gone`.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any, Literal
from urllib.parse import parse_qsl, unquote

DRIP_BYTES = 64
DRIPS = 40
"""At most so many pieces: a large answer drips in larger ones."""


@dataclass(slots=True)
class Request:
    """`base` is where the account is reached, without a path of its own; `path` is below it."""

    method: str
    path: str
    query: dict[str, str]
    headers: dict[str, str]
    body: bytes
    base: str
    gone: asyncio.Event

    def json(self) -> dict[str, Any]:
        """Empty if it is none."""
        try:
            found = json.loads(self.body or b"{}")
        except ValueError:
            return {}
        return found if isinstance(found, dict) else {}

    def form(self) -> tuple[dict[str, str], dict[str, list[bytes]]]:
        """Fields and files of a multipart body."""
        fields: dict[str, str] = {}
        files: dict[str, list[bytes]] = {}
        _, _, boundary = self.headers.get("content-type", "").partition("boundary=")
        for part in self.body.split(b"--" + boundary.strip('"').encode())[1:-1] if boundary else ():
            head, _, content = part.removeprefix(b"\r\n").partition(b"\r\n\r\n")
            content = content.removesuffix(b"\r\n")
            told = head.decode("latin-1")
            name = told.partition('name="')[2].partition('"')[0]
            if "filename=" in told:
                files.setdefault(name, []).append(content)
            else:
                fields[name] = content.decode()
        return fields, files


@dataclass(slots=True)
class Reply:
    """`chunks` go one by one, `pause` seconds apart, instead of `body`. `ending`: "half" breaks off in the middle, "none"
    closes without an answer. `drip` are the seconds that the body takes, in small pieces."""

    status: int = 200
    body: bytes = b""
    media_type: str = "application/json"
    headers: dict[str, str] = field(default_factory=dict)
    ending: Literal["whole", "half", "none"] = "whole"
    drip: float = 0.0
    chunks: tuple[bytes, ...] = ()
    pause: float = 0.0


Handler = Callable[[Request], Awaitable[Reply]]
_REASONS = {status.value: status.phrase for status in HTTPStatus}


def told(content: object, status: int = 200, **headers: str) -> Reply:
    """JSON. Names of headers have `_` for `-`."""
    names = {name.replace("_", "-"): value for name, value in headers.items()}
    return Reply(status, json.dumps(content, separators=(",", ":")).encode(), headers=names)


def no_answer() -> Reply:
    return Reply(ending="none")


class Connection(asyncio.Protocol):
    def __init__(self, handler: Handler, others: set[Connection]) -> None:
        self._handler, self._others = handler, others
        self._buffer = bytearray()
        self._gone = asyncio.Event()
        self._transport: asyncio.Transport | None = None
        self._task: asyncio.Task[None] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        self._others.add(self)

    def connection_lost(self, _: Exception | None) -> None:
        self._gone.set()
        self._others.discard(self)

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        if self._task is None:
            self._next()

    def abort(self) -> None:
        """Ends it as a crash does."""
        if self._transport is not None:
            self._transport.abort()

    def _next(self) -> None:
        request = self._parsed()
        if request is not None:
            self._task = asyncio.ensure_future(self._answer(request))
            self._task.add_done_callback(self._done)

    def _done(self, task: asyncio.Task[None]) -> None:
        self._task = None
        if not task.cancelled() and (error := task.exception()) is not None:
            self.abort()
            raise error
        if not self._gone.is_set():
            self._next()

    def _parsed(self) -> Request | None:
        end = self._buffer.find(b"\r\n\r\n")
        if end < 0:
            return None
        first, *lines = self._buffer[:end].decode("latin-1").split("\r\n")
        headers = {}
        for line in lines:
            name, _, value = line.partition(":")
            headers[name.lower()] = value.strip()
        if "transfer-encoding" in headers:
            body, length = _unchunked(self._buffer, end + 4)
            if body is None:
                return None
        else:
            length = end + 4 + int(headers.get("content-length", 0))
            if len(self._buffer) < length:
                return None
            body = bytes(self._buffer[end + 4 : length])
        del self._buffer[:length]
        method, target, _ = first.split(" ", 2)
        path, _, query = target.partition("?")
        base = f"http://{headers.get('host', '')}"
        return Request(
            method,
            unquote(path) if "%" in path else path,
            dict(parse_qsl(query)) if query else {},
            headers,
            body,
            base,
            self._gone,
        )

    async def _answer(self, request: Request) -> None:
        reply = await self._handler(request)
        transport = self._transport
        if transport is None or transport.is_closing():
            return
        if reply.ending == "none":
            transport.close()
        elif reply.chunks:
            await self._write_chunks(transport, reply)
        else:
            await self._write(transport, reply)

    async def _write(self, transport: asyncio.Transport, reply: Reply) -> None:
        head = _head(reply, f"content-length: {len(reply.body)}")
        if reply.ending == "half":
            transport.write(head + reply.body[: len(reply.body) // 2])
            transport.close()
        elif reply.drip:
            transport.write(head)
            step = max(DRIP_BYTES, -(-len(reply.body) // DRIPS))
            pieces = [reply.body[at : at + step] for at in range(0, len(reply.body), step)]
            for piece in pieces:
                await asyncio.sleep(reply.drip / len(pieces))
                transport.write(piece)
        else:
            transport.write(head + reply.body)

    async def _write_chunks(self, transport: asyncio.Transport, reply: Reply) -> None:
        transport.write(_head(reply, "transfer-encoding: chunked"))
        whole = reply.ending == "whole"
        for chunk in reply.chunks if whole else reply.chunks[: len(reply.chunks) // 2]:
            transport.write(b"%x\r\n%b\r\n" % (len(chunk), chunk))
            await asyncio.sleep(reply.pause)
        if whole:
            transport.write(b"0\r\n\r\n")
        else:
            transport.close()


def _head(reply: Reply, length: str) -> bytes:
    lines = [f"HTTP/1.1 {reply.status} {_REASONS.get(reply.status, '')}", f"content-type: {reply.media_type}", length]
    lines += [f"{name}: {value}" for name, value in reply.headers.items()]
    return ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1")


def _unchunked(buffer: bytearray, at: int) -> tuple[bytes | None, int]:
    """The body, None while some of it is missing, and where it ends."""
    body = bytearray()
    while True:
        end = buffer.find(b"\r\n", at)
        if end < 0:
            return None, at
        size = int(bytes(buffer[at:end]).split(b";")[0], 16)
        if len(buffer) < end + 4 + size:
            return None, at
        body += buffer[end + 2 : end + 2 + size]
        at = end + 4 + size
        if size == 0:
            return bytes(body), at
