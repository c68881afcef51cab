"""Bodies of requests: bounded before they are read, on disk past a megabyte, refused in words.

`LimitBody` wraps the whole application and stops any body that grows too large. Below it, a route reads its own with
`read_json` or `read_form`. Nothing here may hold the event loop up. A thread alone does not help there, since a parser
in C keeps the interpreter to itself wherever it runs: JSON must also be of a kind that is parsed in milliseconds.
"""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass

import anyio
from pydantic_core import from_json
from python_multipart.multipart import parse_options_header
from starlette.datastructures import FormData, Headers, UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from kleinbild.core.errors import RequestError

SPOOL_BYTES = 10**6
"""What is kept in memory of a body, and of each file in it; the rest goes to disk as it arrives."""

_LINGER_SECONDS = 5.0
"""How long the rest of a refused body is read."""
_UTF8 = frozenset({"utf-8", "utf8", "us-ascii"})
_STRUCTURE = (b",", b":", b"[", b"{")
_MAX_STRUCTURE = 200_000
"""Commas, colons and brackets in JSON: megabytes of a string are read in milliseconds, of small values in seconds."""


class BodyError(RequestError):
    """A body that is too large or not what the route takes; `status` is the HTTP status of the answer."""

    def __init__(self, message: str, hint: str = "", *, status: int = 400, param: str | None = None) -> None:
        super().__init__(message, hint)
        self.status = status
        self.param = param


@dataclass(frozen=True)
class FormLimits:
    file_field: str = "image"
    max_files: int = 17  # 16 images and a mask
    max_file_bytes: int = 50 * 10**6
    max_fields: int = 64
    max_field_bytes: int = 256 * 1024


class LimitBody:
    """ASGI middleware: answers 413 to a body of more than `max_bytes`, as soon as its header or its bytes say so. What is
    no form may have `max_other_bytes` (None: as many): it is read into memory whole. Both are asked for each time.

    The answer is sent from here, whatever the application makes of the BodyError that its reading ends with.
    """

    def __init__(
        self, app: ASGIApp, max_bytes: Callable[[], int], max_other_bytes: Callable[[], int] | None = None
    ) -> None:
        self._app, self._max_bytes = app, max_bytes
        self._max_other_bytes = max_other_bytes or max_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        max_bytes = self._max_bytes() if is_form(headers) else self._max_other_bytes()
        declared = headers.get("content-length", "")
        if not declared.isdecimal() or "transfer-encoding" in headers:
            await self._count(scope, receive, send, max_bytes)
        elif int(declared) > max_bytes:
            await _refuse(receive, send, _body_too_large(max_bytes), is_sending=True)
        else:  # the server reads no more than what was declared
            await self._app(scope, receive, send)

    async def _count(self, scope: Scope, receive: Receive, send: Send, max_bytes: int) -> None:
        num_bytes = 0
        started = refused = False

        async def counted() -> Message:
            nonlocal num_bytes, refused
            message = await receive()
            num_bytes += len(message.get("body", b""))
            if num_bytes <= max_bytes:
                return message
            error = _body_too_large(max_bytes)
            if not (started or refused):
                refused = True
                await _refuse(receive, send, error, is_sending=message.get("more_body", False))
            raise error

        async def unless_refused(message: Message) -> None:
            nonlocal started
            started = True
            if not refused:
                await send(message)

        try:
            await self._app(scope, counted, unless_refused)
        except BodyError:
            if not refused:
                raise


def _body_too_large(max_bytes: int) -> BodyError:
    return BodyError(
        f"the request's body is larger than {max_bytes / 1e6:g} MB",
        "send fewer or smaller pictures, or URLs of them",
        status=413,
    )


async def _refuse(receive: Receive, send: Send, error: BodyError, *, is_sending: bool) -> None:
    """OpenAI's error object, and the connection closed. What the client is still sending is read for a while and thrown
    away: most read no answer before they have sent all, and a connection closed upon them would take it from them."""
    message = f"{error.message}: {error.hint}"
    content = {"message": message, "type": "invalid_request_error", "param": None, "code": "request_too_large"}
    body = json.dumps({"error": content}).encode()
    headers = [
        (b"content-type", b"application/json"),
        (b"content-length", b"%d" % len(body)),
        (b"connection", b"close"),
    ]
    await send({"type": "http.response.start", "status": error.status, "headers": headers})
    await send({"type": "http.response.body", "body": body, "more_body": True})
    with anyio.move_on_after(_LINGER_SECONDS):
        while is_sending:
            is_sending = (await receive()).get("more_body", False)
    await send({"type": "http.response.body", "body": b""})


def is_form(headers: Headers) -> bool:
    """Whether a body is declared as one that may hold files."""
    return headers.get("content-type", "").lower().startswith("multipart/form-data")


async def read_json(request: Request) -> dict[str, object]:
    """The JSON object in a body. Raises BodyError.

    The content type must say that it is JSON: a page of any site may have a browser send a form or plain text here,
    but not JSON.
    """
    if _media_type(request) != "application/json":
        raise BodyError("the body is not declared as JSON", "send Content-Type: application/json", status=415)
    chunks: list[bytes] = []
    num_bytes = 0
    stream = request.stream()
    async for chunk in stream:
        chunks.append(chunk)
        num_bytes += len(chunk)
        if num_bytes > SPOOL_BYTES:
            return await anyio.to_thread.run_sync(_parse_json, await _spooled(chunks, stream))
    return _parse_json(b"".join(chunks))


async def _spooled(chunks: list[bytes], stream: AsyncIterator[bytes]) -> bytes:
    """What came and what comes, kept on disk until it is all there: many that come slowly take no memory."""
    async with anyio.TemporaryFile() as file:
        await file.write(b"".join(chunks))
        chunks.clear()
        async for chunk in stream:
            await file.write(chunk)
        await file.seek(0)
        return await file.read()


def _parse_json(body: bytes) -> dict[str, object]:
    if _num_values(body) > _MAX_STRUCTURE:
        raise BodyError("the JSON holds too many values", "send pictures as base64 strings, URLs or file ids")
    try:
        # Not the standard library's: this one is three times as fast with large strings, and takes neither NaN nor
        # half of a surrogate pair, which nothing after it could write.
        value = from_json(body, allow_inf_nan=False)
    except ValueError as error:
        raise BodyError(f"the body is not valid JSON: {error}", "check what is sent") from error
    if not isinstance(value, dict):
        raise BodyError("the body is JSON, but no object", 'send an object, such as {"prompt": "a red fox"}')
    return value


def _num_values(body: bytes) -> int:
    """At most so many. Counted a piece at a time, for between two of them others have the interpreter."""
    starts = range(0, len(body), SPOOL_BYTES)
    return sum(body.count(sign, start, start + SPOOL_BYTES) for start in starts for sign in _STRUCTURE)


async def discard_body(request: Request) -> None:
    """Reads the body for a while and throws it away, as `_refuse` does: who is still sending it would see no answer."""
    with anyio.move_on_after(_LINGER_SECONDS):
        async for _ in request.stream():
            pass


@asynccontextmanager
async def read_form(request: Request, limits: FormLimits = FormLimits()) -> AsyncIterator[FormData]:
    """The fields and files of a multipart body; the files are closed at the end. Raises BodyError."""
    if _media_type(request) != "multipart/form-data":
        raise BodyError("the body is no form", "send Content-Type: multipart/form-data", status=415)
    _require_utf8(request)
    try:
        form = await _FormParser(request.headers, request.stream(), limits).parse()
    except MultiPartException as error:
        if error.message.startswith("Too many files"):
            many = f"the form holds more than {limits.max_files} files"
            raise BodyError(many, "send fewer", param=limits.file_field) from error
        raise BodyError(
            f"the form cannot be read: {error.message}", "check its parts, and how many they are"
        ) from error
    try:
        yield form
    finally:
        await form.close()


def _media_type(request: Request) -> str:
    return request.headers.get("content-type", "").partition(";")[0].strip().lower()


def _require_utf8(request: Request) -> None:
    """Of Python's many codecs some raise what they like, and some make text that nothing after them can write."""
    _, parameters = parse_options_header(request.headers["content-type"])
    charset = parameters.get(b"charset", b"utf-8").decode("latin-1")
    if charset.lower() not in _UTF8:
        raise BodyError(f"the form's charset is {charset[:40]!r}", "send UTF-8, and no charset", status=415)


class _FormParser(MultiPartParser):
    """Starlette's parser with a bound on the size of each file, and no part lost. (Parts' headers are bounded by python-multipart.)"""

    spool_max_size = SPOOL_BYTES

    def __init__(self, headers: Headers, stream: AsyncGenerator[bytes, None], limits: FormLimits) -> None:
        super().__init__(
            headers,
            stream,
            max_files=limits.max_files,
            max_fields=limits.max_fields,
            max_part_size=limits.max_field_bytes,
        )
        self._max_file_bytes = limits.max_file_bytes
        self._file_bytes = 0
        self._has_ended = False

    async def parse(self) -> FormData:
        form = await super().parse()
        if not self._has_ended:  # the last part would be missing from it, silently
            for file in self._files_to_close_on_error:
                file.close()
            raise MultiPartException("It ends before its last boundary.")
        return form

    def on_end(self) -> None:
        self._has_ended = True

    def on_part_begin(self) -> None:
        super().on_part_begin()
        self._file_bytes = 0

    def on_part_data(self, data: bytes, start: int, end: int) -> None:
        if self._current_part.file is not None:
            self._file_bytes += end - start
            if self._file_bytes > self._max_file_bytes:
                raise self._too_large(self._current_part.file)
        super().on_part_data(data, start, end)

    def _too_large(self, file: UploadFile) -> BodyError:
        return BodyError(
            f"{file.filename or 'a file'} is larger than {self._max_file_bytes / 1e6:g} MB",
            "give a smaller file",
            status=413,
            param=self._current_part.field_name,
        )
