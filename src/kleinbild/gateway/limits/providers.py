"""What each provider allows of our key: so many requests at once, and so many requests and pictures a minute.

Whoever asks for a slot waits for it in line, as long as he has time; who would not get it in time is told so at once, and
may ask elsewhere: nothing was sent.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from kleinbild.gateway.limits.counters import Counters, CountersError, Draw
from kleinbild.gateway.limits.memory import MemoryCounters
from kleinbild.providers.hosted import ProviderError

SHORTEST_WAIT = 0.01  # between two looks at counters that others take from, too


class NoSlotError(ProviderError):
    """It was not asked: its limits, as they are known here, do not allow it in time. That says nothing about the service."""

    def __init__(self, message: str, *, retry_after: float | None = None, detail: str = "") -> None:
        super().__init__(message, cause="rate_limited", acceptance="refused", retry_after=retry_after, detail=detail)


@dataclass(frozen=True, slots=True)
class ProviderLimit:
    """None is no limit. `max_active` holds for this process, the others for all that share the counters."""

    max_active: int | None = None
    requests_per_minute: int | None = None
    images_per_minute: int | None = None


class _Places:
    """So many at once, in the order in which they came; unlike a semaphore's, `most` may change meanwhile."""

    def __init__(self, most: int | None) -> None:
        self.most, self._taken = most, 0
        self._waiting: deque[asyncio.Future[None]] = deque()

    @property
    def is_full(self) -> bool:
        return self.most is not None and self._taken >= self.most

    async def enter(self) -> None:
        if not self.is_full:
            self._taken += 1
            return
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append(turn)
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():  # let in at the same moment
                self.leave()
            raise

    def leave(self) -> None:
        self._taken -= 1
        self._let_in()

    def resize(self, most: int | None) -> None:
        self.most = most
        self._let_in()

    def _let_in(self) -> None:
        while self._waiting and not self.is_full:
            turn = self._waiting.popleft()
            if not turn.done():
                self._taken += 1
                turn.set_result(None)


@dataclass(slots=True, eq=False)
class _Provider:
    limit: ProviderLimit
    places: _Places
    line: asyncio.Lock = field(default_factory=asyncio.Lock)
    active: int = 0
    waiting: int = 0


class ProviderLimits:
    """By the providers' names, or those of their models; those that have none may be asked as often as one likes."""

    def __init__(
        self,
        limits: Mapping[str, ProviderLimit] | None = None,
        counters: Counters | None = None,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._limits, self._counters, self._clock = dict(limits or {}), counters or MemoryCounters(), clock
        self._providers: dict[str, _Provider] = {}

    def become(self, other: ProviderLimits) -> None:
        """Takes over another's limits. What is under way and what waits count on, by the provider's name."""
        self._limits = other._limits
        for name, known in self._providers.items():
            known.limit = self.limit(name)
            known.places.resize(known.limit.max_active)

    def limit(self, provider: str) -> ProviderLimit:
        return self._limits.get(provider, ProviderLimit())

    def are_those_of(self, other: ProviderLimits) -> bool:
        return self._limits == other._limits

    def is_limited(self, provider: str) -> bool:
        return provider in self._limits

    def active(self, provider: str) -> int:
        """Requests that hold a slot."""
        return self._provider(provider).active

    def waiting(self, provider: str) -> int:
        return self._provider(provider).waiting

    @asynccontextmanager
    async def slot(self, provider: str, images: int, deadline: float) -> AsyncIterator[None]:
        """Holds one of the provider's slots. `deadline` is by the clock. Raises NoSlotError where there would be
        none in time."""
        known = self._provider(provider)
        known.waiting += 1
        try:
            await self._enter(known, provider, deadline)
            try:
                await self._in_line(known, provider, images, deadline)
            except BaseException:
                known.places.leave()
                raise
        finally:
            known.waiting -= 1
        known.active += 1
        try:
            yield
        finally:
            known.active -= 1
            known.places.leave()

    async def _enter(self, known: _Provider, provider: str, deadline: float) -> None:
        try:
            async with asyncio.timeout(max(0.0, deadline - self._clock()) if known.places.is_full else None):
                await known.places.enter()
        except TimeoutError as error:
            said = f"{provider} takes {known.limit.max_active} requests at once, and none ended in time"
            raise NoSlotError(said) from error

    async def _in_line(self, known: _Provider, provider: str, images: int, deadline: float) -> None:
        """Waits until the minute's requests and pictures are enough: one after another, so that many small requests do
        not keep a large one waiting for ever."""
        draws = _draws(provider, known.limit, images)
        for what, draw in draws:
            if draw.amount > draw.limit:
                raise NoSlotError(f"{provider} allows {draw.limit} {what} a minute, {draw.amount:g} were asked for")
        if not draws:
            return
        try:
            async with asyncio.timeout(max(0.0, deadline - self._clock()) if known.line.locked() else None):
                await known.line.acquire()
        except TimeoutError as error:
            raise NoSlotError(f"others wait for {provider}, and none was let through in time") from error
        try:
            await self._take(provider, draws, deadline)
        finally:
            known.line.release()

    async def _take(self, provider: str, draws: list[tuple[str, Draw]], deadline: float) -> None:
        while True:
            try:
                drawn = await self._counters.draw([draw for _, draw in draws])
            except CountersError as error:
                raise NoSlotError(f"how often {provider} may be asked is not known", detail=error.hint) from error
            if drawn.taken:
                return
            waits = [
                (draw.seconds_until(level), what, draw) for (what, draw), level in zip(draws, drawn.levels, strict=True)
            ]
            seconds, what, draw = max(waits, key=lambda each: each[0])
            if seconds > deadline - self._clock():
                raise NoSlotError(f"{provider} allows {draw.limit} {what} a minute", retry_after=seconds)
            await asyncio.sleep(max(seconds, SHORTEST_WAIT))

    def _provider(self, name: str) -> _Provider:
        known = self._providers.get(name)
        if known is None:
            limit = self.limit(name)
            known = self._providers[name] = _Provider(limit, _Places(limit.max_active))
        return known


def _draws(provider: str, limit: ProviderLimit, images: int) -> list[tuple[str, Draw]]:
    wanted = (("requests", limit.requests_per_minute, 1), ("images", limit.images_per_minute, images))
    return [
        (what, Draw(f"provider:{provider}:{what}", most, amount)) for what, most, amount in wanted if most is not None
    ]
