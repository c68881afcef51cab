"""A real uvicorn server in this event loop, on a port of its own."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass

import uvicorn


@asynccontextmanager
async def serving(app) -> AsyncIterator[str]:
    config = uvicorn.Config(app, port=0, log_level="error", lifespan="off", http="h11")
    server = uvicorn.Server(config)
    with server.capture_signals():
        task = asyncio.create_task(server._serve())
        while not server.started:  # noqa: ASYNC110  (uvicorn has no event for it)
            await asyncio.sleep(0.01)
        try:
            yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
        finally:
            server.should_exit = True
            await task


@dataclass
class Stall:
    seconds: float = 0.0


@contextmanager
def measured_stall() -> Iterator[Stall]:
    """The longest time that the event loop did not come round, beyond the 2 ms that it was asked to wait."""
    stall = Stall()

    async def watch() -> None:
        while True:
            started = time.perf_counter()
            await asyncio.sleep(0.002)
            stall.seconds = max(stall.seconds, time.perf_counter() - started - 0.002)

    task = asyncio.get_running_loop().create_task(watch())
    try:
        yield stall
    finally:
        task.cancel()
