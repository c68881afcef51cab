"""A stream of events gives a sign of life while nothing happens, and ends what it streams when it is ended."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator

import pytest

from kleinbild.gateway.api.waiting import HEARTBEAT, with_heartbeats

pytestmark = pytest.mark.anyio


async def test_a_comment_comes_whenever_nothing_else_does() -> None:
    async def slow() -> AsyncGenerator[bytes, None]:
        yield b"a"
        await asyncio.sleep(0.25)
        yield b"b"
        yield b"c"

    chunks = [chunk async for chunk in with_heartbeats(slow(), 0.1)]
    assert chunks == [b"a", HEARTBEAT, HEARTBEAT, b"b", b"c"]
    assert HEARTBEAT.startswith(b":")
    assert HEARTBEAT.endswith(b"\n\n")


async def test_what_goes_wrong_is_passed_on() -> None:
    async def broken() -> AsyncGenerator[bytes, None]:
        yield b"a"
        raise ValueError("wrong")

    with pytest.raises(ValueError, match="wrong"):
        [chunk async for chunk in with_heartbeats(broken())]


@pytest.mark.parametrize("waiting", [True, False])
async def test_one_that_is_ended_lets_its_source_clean_up(waiting: bool) -> None:
    ended = asyncio.Event()

    async def endless() -> AsyncGenerator[bytes, None]:
        try:
            yield b"a"
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(0)  # cleaning up may take its time
            ended.set()

    stream = with_heartbeats(endless())
    assert await anext(stream) == b"a"
    if waiting:
        task = asyncio.ensure_future(anext(stream))
        await asyncio.sleep(0.01)
        task.cancel()
        await asyncio.wait((task,))
    else:
        await stream.aclose()
    assert ended.is_set()
