"""Load on a gateway: a closed loop of so many connections, or arrivals at a rate whether or not others are answered.

Answers are counted, not kept: what comes is read into one buffer, so that the generator costs little beside the gateway.
"""

from __future__ import annotations

import asyncio
import random
import re
import time
from collections import Counter
from dataclasses import dataclass, field

BUFFER = 1 << 18
STATUS = re.compile(rb"HTTP/1\.1 (\d+)")
LENGTH = re.compile(rb"(?i)\r\ncontent-length: *(\d+)")
CHUNKED = re.compile(rb"(?i)\r\ntransfer-encoding: *chunked")
LAST_CHUNK = b"0\r\n\r\n"
PATIENCE_S = 60.0


@dataclass(frozen=True, slots=True)
class Target:
    """Where requests go, with what headers; `request` is the whole of one, as it goes over the wire."""

    port: int
    request: bytes
    min_bytes: int
    """What a good answer has at least: a gateway that loses pictures is not to look fast."""


@dataclass(slots=True)
class Measured:
    """`seconds` of each good answer; what else came, by status."""

    wall: float = 0.0
    seconds: list[float] = field(default_factory=list)
    wrong: Counter[str] = field(default_factory=Counter)

    @property
    def rps(self) -> float:
        return len(self.seconds) / self.wall

    def percentile_ms(self, percent: float) -> float:
        ordered = sorted(self.seconds)
        return 1000 * ordered[min(len(ordered) - 1, int(len(ordered) * percent / 100))] if ordered else float("inf")


def target(port: int, path: str, headers: dict[str, str], media_type: str, body: bytes, min_bytes: int) -> Target:
    said = {"host": f"127.0.0.1:{port}", "content-type": media_type, "content-length": str(len(body)), **headers}
    head = f"POST {path} HTTP/1.1\r\n" + "".join(f"{name}: {value}\r\n" for name, value in said.items())
    return Target(port, head.encode() + b"\r\n" + body, min_bytes)


async def closed_loop(target: Target, concurrency: int, seconds: float, *, warm: float = 0.0) -> Measured:
    """Each of `concurrency` connections asks again once it is answered, and once at least after the first `warm` seconds,
    which are not counted."""
    found, counted_since = Measured(), float("inf")
    begin = time.perf_counter() + warm
    until = begin + seconds

    async def ask() -> None:
        nonlocal counted_since
        connection, counted = await connect(target), False
        while (sent := time.perf_counter()) < until or not counted:
            counted = sent >= begin
            if counted:
                counted_since = min(counted_since, sent)
            connection = await _once(connection, target, sent, found if counted else Measured())
        connection.close()

    await asyncio.gather(*(ask() for _ in range(concurrency)))
    found.wall = time.perf_counter() - counted_since  # the last requests are waited for, and counted
    return found


async def open_loop(target: Target, rate: float, seconds: float, *, seed: int = 0) -> Measured:
    """Arrivals as of many callers who know nothing of each other (Poisson). Time counts from when one should be sent."""
    found, rng = Measured(), random.Random(seed)
    idle: list[Connection] = []
    running: set[asyncio.Task[None]] = set()

    async def ask(due: float) -> None:
        connection = idle.pop() if idle else await connect(target)
        idle.append(await _once(connection, target, due, found))

    begin = due = time.perf_counter()
    while (due := due + rng.expovariate(rate)) < begin + seconds:
        if (wait := due - time.perf_counter()) > 0:
            await asyncio.sleep(wait)
        task = asyncio.create_task(ask(due))
        running.add(task)
        task.add_done_callback(running.discard)
    await asyncio.gather(*running)
    found.wall = max(seconds, time.perf_counter() - begin)
    for connection in idle:
        connection.close()
    return found


async def _once(connection: Connection, target: Target, since: float, found: Measured) -> Connection:
    """The connection for the next request: another, if this one broke."""
    try:
        async with asyncio.timeout(PATIENCE_S):
            status, num_bytes = await connection.ask(target.request)
    except (OSError, TimeoutError) as error:
        found.wrong[type(error).__name__] += 1
        connection.close()
        return await connect(target)
    if status == 200 and num_bytes >= target.min_bytes:
        found.seconds.append(time.perf_counter() - since)
    else:
        found.wrong[str(status) if status != 200 else "200, too short"] += 1
    if connection.closed:
        return await connect(target)
    return connection


async def connect(target: Target) -> Connection:
    _, connection = await asyncio.get_running_loop().create_connection(Connection, "127.0.0.1", target.port)
    return connection


class Connection(asyncio.BufferedProtocol):
    """One request at a time. `head` and `start` are the beginning of the last answer, for a look at it."""

    def __init__(self) -> None:
        self._buffer = memoryview(bytearray(BUFFER))
        self._answered: asyncio.Future[tuple[int, int]] | None = None
        self._reset()
        self.closed = False
        self.start = b""

    def _reset(self) -> None:
        self.head, self._begun, self._num_bytes, self._tail = b"", b"", 0, b""
        self._length: int | None = None
        self._chunked = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    async def ask(self, request: bytes) -> tuple[int, int]:
        """Status and number of bytes of the answer's body. Raises OSError when the connection ends before it does."""
        self._reset()
        self.start = b""
        if self.closed:
            raise ConnectionResetError
        self._answered = asyncio.get_running_loop().create_future()
        self._transport.write(request)
        return await self._answered

    def close(self) -> None:
        self._transport.close()

    def get_buffer(self, sizehint: int) -> memoryview:  # noqa: ARG002 - asyncio's
        return self._buffer

    def buffer_updated(self, nbytes: int) -> None:
        if not self.head:
            self._begun += self._buffer[:nbytes]
            head, found, rest = self._begun.partition(b"\r\n\r\n")
            if not found:
                return
            self.head = head
            length = LENGTH.search(head)
            self._length = int(length[1]) if length else None
            self._chunked = CHUNKED.search(head) is not None
            self._take(rest)
        else:
            self._take(bytes(self._buffer[max(0, nbytes - 8) : nbytes]), nbytes)

    def _take(self, data: bytes, num_bytes: int | None = None) -> None:
        """`data` is all that came, or the end of it where only `num_bytes` matter."""
        if num_bytes is None:
            self.start = data[: 1 << 14]
        self._num_bytes += len(data) if num_bytes is None else num_bytes
        self._tail = (self._tail + data)[-8:]
        over = self._tail.endswith(LAST_CHUNK) if self._chunked else self._num_bytes >= (self._length or 0)
        if over and self._answered is not None and not self._answered.done():
            status = STATUS.match(self.head)
            self._answered.set_result((int(status[1]) if status else 0, self._num_bytes))

    def connection_lost(self, exc: Exception | None) -> None:
        self.closed = True
        if self._answered is not None and not self._answered.done():
            self._answered.set_exception(exc or ConnectionResetError("the connection was closed"))
