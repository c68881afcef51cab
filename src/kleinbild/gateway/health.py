"""Whether places can be reached, found out by checks that buy no picture; and when one may be bought to find out.

A place is checked while one of its circuits is not closed, and when nothing has come from there for a while: where
requests go and pictures come, those say all there is to know.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass
from decimal import Decimal

from kleinbild.core.deployments import Deployment
from kleinbild.gateway.flow.circuits import Circuits
from kleinbild.providers.hosted import Hosted, ProviderError

QUIET_SECONDS = 300.0
PROBE_SECONDS = 15.0
HOUR = 3600.0
log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Probe:
    """`at` is in seconds since 1970, `seconds` is what it took; `error` is None if the service lets us in."""

    at: float
    seconds: float
    error: ProviderError | None


class HealthChecks:
    """Of all `places`, by provider, but the engine here, which is watched where it runs. `every` so many seconds, more or
    less: servers that were started together are not to ask together."""

    def __init__(
        self,
        places: Mapping[str, Hosted],
        deployments: Iterable[Deployment],
        circuits: Circuits,
        *,
        every: float,
        quiet: float = QUIET_SECONDS,
        timeout: float = PROBE_SECONDS,
        clock: Callable[[], float] = time.monotonic,
        rng: Callable[[], float] = random.random,
        sleep: Callable[[float], Awaitable[object]] = asyncio.sleep,
    ) -> None:
        self._circuits = circuits
        self._every, self._quiet, self._timeout = every, quiet, timeout
        self._clock, self._rng, self._sleep = clock, rng, sleep
        self._began = clock()
        self._probes: dict[str, Probe] = {}
        self.watch(places, deployments)

    def watch(self, places: Mapping[str, Hosted], deployments: Iterable[Deployment]) -> None:
        """These from now on."""
        self._places = places
        self._deployments: dict[str, list[str]] = {}
        for each in deployments:
            if not each.on_machine:
                self._deployments.setdefault(each.provider, []).append(each.name)

    async def run(self) -> None:
        """For ever."""
        while True:
            await self._sleep(self._every * (0.5 + self._rng()))
            await self.check()

    async def check(self) -> None:
        """All that are due, at the same time."""
        await asyncio.gather(*(self._check(provider) for provider in self._deployments if self.is_due(provider)))

    def is_due(self, provider: str) -> bool:
        names = self._deployments.get(provider, [])
        if any(self._circuits.state(name) != "closed" for name in names):
            return True
        heard = max((at for name in names if (at := self._circuits.heard_at(name)) is not None), default=self._began)
        return bool(names) and self._clock() - heard >= self._quiet

    def last(self, provider: str) -> Probe | None:
        return self._probes.get(provider)

    async def _check(self, provider: str) -> None:
        at, began = time.time(), time.perf_counter()
        try:
            error = await self._probe(self._places[provider])
        except Exception:
            log.exception("the check of %s failed by a bug", provider)
            return
        self._probes[provider] = Probe(at, time.perf_counter() - began, error)
        for name in self._deployments[provider]:
            self._circuits.probed(name, error)

    async def _probe(self, place: Hosted) -> ProviderError | None:
        try:
            async with asyncio.timeout(self._timeout):
                await place.probe()
        except ProviderError as error:
            return error
        except TimeoutError:
            said = f"it did not answer within {self._timeout:g} seconds"
            return ProviderError(said, cause="timeout", acceptance="refused")
        return None


def canary_is_due(
    now: float,
    last_at: float | None,
    *,
    every_hours: float | None,
    spent: Decimal,
    budget: Decimal,
    price: Decimal | None,
) -> bool:
    """Whether a picture may be bought at a place, only to see whether it is made: if that was asked for (`every_hours`), if
    it is time, and if all of it would cost no more than `budget`. `spent` is what canaries have cost within the budget's
    window. A price that is not known is no price to spend."""
    if every_hours is None or price is None or spent + price > budget:
        return False
    return last_at is None or now - last_at >= every_hours * HOUR
