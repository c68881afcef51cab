"""JSON with whole pictures in it, in pieces: a picture's base64 is put between them as it is.

A serialiser would copy it and look for what must be escaped, 50 ms for 32 MB, and nothing else goes on meanwhile.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any

import pybase64
from pydantic_core import to_json
from starlette.responses import Response, StreamingResponse

from kleinbild.core.ids import random_bytes
from kleinbild.core.threads import on_bytes

PIECE = 2**20
JSON = "application/json"


class InBase64:
    """A string of base64, which no JSON escapes. (No dataclass: serialisers know what to do with those.)"""

    __slots__ = ("text",)

    def __init__(self, text: bytes) -> None:
        self.text = text


async def in_base64(file: bytes) -> InBase64:
    return InBase64(await on_bytes(len(file), lambda: pybase64.b64encode(file)))


def spliced(value: Any) -> list[bytes]:
    """`value` as JSON, whose pieces are to be read one after the other. `InBase64` may stand anywhere in it."""
    mark = random_bytes(16).hex()  # nobody can have written it
    texts: list[bytes] = []

    def stand_in(unknown: Any) -> str:
        if not isinstance(unknown, InBase64):
            raise TypeError(f"{type(unknown).__name__} has no form in JSON")
        texts.append(unknown.text)
        return mark

    first, *rest = to_json(value, fallback=stand_in).split(b'"%s"' % mark.encode())
    pieces = [first]
    for text, after in zip(texts, rest, strict=True):
        pieces += (b'"', text, b'"' + after)
    return pieces


def response(value: Any, headers: Mapping[str, str]) -> Response:
    """An answer of `spliced`; a large one in pieces, for what is written to a slow client in one go is kept once more."""
    pieces = spliced(value)
    num_bytes = sum(map(len, pieces))
    if num_bytes <= PIECE:
        return Response(b"".join(pieces), headers=headers, media_type=JSON)
    length = {"content-length": str(num_bytes)}
    return StreamingResponse(_sliced(pieces), headers={**headers, **length}, media_type=JSON)


async def _sliced(pieces: Sequence[bytes]) -> AsyncIterator[memoryview]:
    for piece in pieces:
        view = memoryview(piece)
        for start in range(0, len(piece), PIECE):
            yield view[start : start + PIECE]
