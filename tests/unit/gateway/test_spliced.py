"""JSON with pictures in it: what comes out is what a serialiser would have made of it, large or small."""

from __future__ import annotations

import base64
import json
from typing import Any

import pytest
from starlette.responses import Response, StreamingResponse

from kleinbild.gateway.spliced import PIECE, InBase64, in_base64, response, spliced

pytestmark = pytest.mark.anyio
FILES = [b"", b"\x89PNG", bytes(range(256)) * 700]


async def test_pictures_stand_where_they_were_put() -> None:
    files = [await in_base64(file) for file in FILES]
    made = b"".join(
        spliced({"data": [{"b64_json": each, "n": n} for n, each in enumerate(files)], "prompt": 'a "fox"\n'})
    )
    data = json.loads(made)
    assert [base64.b64decode(each["b64_json"]) for each in data["data"]] == FILES
    assert [each["n"] for each in data["data"]] == [0, 1, 2]
    assert data["prompt"] == 'a "fox"\n'


@pytest.mark.parametrize("value", [{"a": 'é\u2028"\\'}, {}, [], {"a": [None, True, 1.5, {"b": "c"}]}])
def test_without_pictures_it_is_json(value: Any) -> None:
    assert json.loads(b"".join(spliced(value))) == value


def test_what_has_no_form_is_refused() -> None:
    with pytest.raises(Exception, match="object has no form in JSON"):
        spliced({"a": object()})


async def body_of(made: Response) -> bytes:
    if not isinstance(made, StreamingResponse):
        return bytes(made.body)
    pieces = [bytes(each) async for each in made.body_iterator]  # type: ignore[arg-type]  # they are all of bytes
    assert max(map(len, pieces)) <= PIECE
    return b"".join(pieces)


@pytest.mark.parametrize("num_bytes", [10, PIECE - 100, 3 * PIECE + 7])
async def test_an_answer_is_whole_and_says_how_long_it_is(num_bytes: int) -> None:
    made = response({"b64_json": InBase64(b"A" * num_bytes)}, {"x-one": "1"})
    body = await body_of(made)
    assert isinstance(made, StreamingResponse) is (num_bytes > PIECE)
    assert json.loads(body) == {"b64_json": "A" * num_bytes}
    assert made.headers["content-length"] == str(len(body))
    assert made.headers["content-type"] == "application/json"
    assert made.headers["x-one"] == "1"
