"""Asking again and again how work is going that a service took on: when it may be done, then less and less often.

How soon and how often follows from what such work took before (`pace_of`): what takes a minute is not asked about every
second, and what takes half a second is not looked at after two. A webhook that tells of the work wakes who asks.

A poll that fails tells nothing about the work, so asking goes on until the time is up; what the service says of the work
ends it. A service may not know its own work for a moment, on another of its machines: only when it says so several times
is it believed.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from enum import Enum, auto
from typing import Any, TypeVar

import httpx2

from kleinbild.providers.hooks import Hook, woken
from kleinbild.providers.hosted import Call, Cause, Expected, Handle, ProviderError
from kleinbild.providers.wire import Wire, cause_of, retry_after

FIRST_SECONDS = 0.4
LONGEST_SECONDS = 5.0
FACTOR = 1.5
SHORTEST_SECONDS = 0.1
LATEST_FIRST_SECONDS = 30.0
"""Until the first poll, however long such work took before: it may be otherwise now."""
LOOKS = 4
"""Between the time at which one of 20 is done, and that at which half are."""
HOOKED_SECONDS = 2.0
"""Between polls, at first, where a webhook is to come: if it does, none of them is needed."""
LONGEST_HOOKED_SECONDS = 15.0
ANSWER_SECONDS = 15.0
"""For the answer to one poll; then it has failed, and the next one follows."""
SUBMIT_SECONDS = 60.0
"""For the answer to what is asked for, which comes at once."""
BELIEVED_MISSING = 3
"""As often in a row a service must say that it does not know the work."""

_PASSING: frozenset[Cause] = frozenset({"connection", "timeout", "rate_limited", "overloaded"})
_MISSING = frozenset({httpx2.codes.NOT_FOUND, httpx2.codes.GONE})
T = TypeVar("T")


class Look(Enum):
    """What a poll may say that ends nothing."""

    PENDING = auto()
    MISSING = auto()


@dataclass(frozen=True, slots=True)
class Clock:
    """Where tests put a time of their own."""

    now: Callable[[], float] = time.monotonic
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep


CLOCK = Clock()


@dataclass(frozen=True, slots=True)
class Pace:
    """Seconds until the first poll, and between it and the second; then they grow, up to `longest`."""

    first: float = FIRST_SECONDS
    interval: float = FIRST_SECONDS
    longest: float = LONGEST_SECONDS


USUAL_PACE = Pace()
AT_ONCE = Pace(first=0.0)


def pace_of(expected: Expected | None, *, hooked: bool = False) -> Pace:
    """Of work that is `expected` to take so long. `hooked`: a webhook will probably tell of its end before."""
    first, interval, longest = FIRST_SECONDS, FIRST_SECONDS, LONGEST_SECONDS
    if expected is not None:
        first = min(max(expected.soonest, SHORTEST_SECONDS), LATEST_FIRST_SECONDS)
        interval = min(max((expected.usual - expected.soonest) / LOOKS, SHORTEST_SECONDS), LONGEST_SECONDS)
    if hooked:
        return Pace(max(first, HOOKED_SECONDS), max(interval, HOOKED_SECONDS), LONGEST_HOOKED_SECONDS)
    return Pace(first, interval, longest)


class Deadline:
    """The end of a call that has so many seconds left."""

    def __init__(self, seconds: float, clock: Clock = CLOCK) -> None:
        self._clock, self._end = clock, clock.now() + seconds

    @property
    def left(self) -> float:
        return max(0.0, self._end - self._clock.now())

    async def wait(self, seconds: float, woken: asyncio.Event | None = None) -> bool:
        """Whether it was `woken` before the seconds had passed."""
        sleep = self._clock.sleep(min(seconds, self.left))
        if woken is None:
            await sleep
            return False
        sleeping, waking = asyncio.ensure_future(sleep), asyncio.ensure_future(woken.wait())
        try:
            await asyncio.wait((sleeping, waking), return_when=asyncio.FIRST_COMPLETED)
        finally:
            sleeping.cancel()
            waking.cancel()
        was_woken = woken.is_set()
        woken.clear()
        return was_woken


Ask = Callable[[float], Awaitable[httpx2.Response]]
"""Sends one poll, whose answer may take so many seconds."""


def succeeded(response: httpx2.Response) -> bool:
    return response.is_success


async def poll(
    ask: Ask,
    read: Callable[[httpx2.Response], T | Look],
    *,
    handle: Handle,
    deadline: Deadline,
    pace: Pace = USUAL_PACE,
    woken: asyncio.Event | None = None,
    readable: Callable[[httpx2.Response], bool] = succeeded,
) -> T:
    """What `read` makes of the first answer that tells how the work ended. It gets the `readable` ones.

    Whoever sets `woken` has heard that there is something to be asked about: it is asked at once, and soon again. Raises
    ProviderError: what `read` raises; of the cause "timeout" at the deadline, after a last look; or of a service that does
    not let us look, or does not know the work. All have the `handle`.
    """
    try:
        return await _poll(ask, lambda response: _look(response, read, readable), handle, deadline, pace, woken)
    except ProviderError as error:
        error.handle = handle
        raise


async def follow(
    wire: Wire,
    url: str,
    read: Callable[[httpx2.Response], T | Look],
    *,
    handle: Handle,
    call: Call,
    deadline: Deadline,
    hook: Hook | None,
    params: Mapping[str, str] | None = None,
) -> T:
    """`poll` at the work's own address: when it may be done by what such work takes, and at once when the service calls back."""
    with woken(hook, handle) as event:
        return await poll(
            lambda seconds: wire.send("GET", url, params=params, seconds=seconds, buys=False),
            read,
            handle=handle,
            deadline=deadline,
            pace=pace_of(call.expected, hooked=event is not None),
            woken=event,
        )


async def _poll(
    ask: Ask,
    look: Callable[[httpx2.Response], T | Look],
    handle: Handle,
    deadline: Deadline,
    pace: Pace,
    woken: asyncio.Event | None,
) -> T:
    wait, interval, missing = pace.first, pace.interval, 0
    while True:
        if await deadline.wait(wait, woken):
            interval = FIRST_SECONDS
        is_last, after = deadline.left <= 0, None
        try:
            response = await ask(min(ANSWER_SECONDS, max(deadline.left, 1.0)))
        except ProviderError as error:
            if error.cause not in _PASSING:
                raise
            told = error.detail
        else:
            found = look(response)
            if not isinstance(found, Look):
                return found
            missing = missing + 1 if found is Look.MISSING else 0
            if missing == BELIEVED_MISSING:
                raise lost(handle)
            told, after = f"status {response.status_code}", retry_after(response.headers)
        if is_last:
            raise late(handle, f"of the last poll: {told}")
        wait = max(interval, after or 0.0)
        interval = min(interval * FACTOR, pace.longest)


def place(wire: Wire, url: object) -> str | None:
    """The address that the service gave; None if it is none of its own, which is not asked: that which we know ourselves
    may know the work."""
    return url if isinstance(url, str) and wire.is_own(url) else None


def object_of(response: httpx2.Response) -> dict[str, Any]:
    """The JSON object that was answered; empty if it was none, which tells nothing."""
    try:
        body = response.json()
    except (ValueError, RecursionError):
        return {}
    return body if isinstance(body, dict) else {}


@contextmanager
def of_accepted(handle: Handle) -> Iterator[None]:
    """What fails within tells nothing of the work, which may go on."""
    try:
        yield
    except ProviderError as error:
        error.acceptance, error.billed, error.handle = "accepted", None, handle
        raise


def late(handle: Handle, detail: str = "") -> ProviderError:
    return ProviderError(
        "the service did not finish in time",
        cause="timeout",
        acceptance="accepted",
        billed=None,
        handle=handle,
        detail=detail,
    )


def lost(handle: Handle, detail: str = "") -> ProviderError:
    return ProviderError(
        "the service does not know the work that it took on",
        cause="not_found",
        acceptance="unknown",
        billed=None,
        handle=handle,
        detail=detail,
    )


def _look(
    response: httpx2.Response, read: Callable[[httpx2.Response], T | Look], readable: Callable[[httpx2.Response], bool]
) -> T | Look:
    if readable(response):
        return read(response)
    if response.status_code in _MISSING:
        return Look.MISSING
    cause = cause_of(response.status_code)
    if cause in _PASSING:
        return Look.PENDING
    raise ProviderError(
        "the service does not tell how the work is going",
        cause=cause if cause == "credentials" else "bad_answer",
        acceptance="accepted",
        billed=None,
        status=response.status_code,
    )
