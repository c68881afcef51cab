"""Counters in this process, gone with it."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from kleinbild.gateway.limits.counters import ROUNDING, SECONDS, Draw, Drawn


@dataclass(slots=True)
class Bucket:
    """`level` of `limit` are left."""

    limit: int
    level: float
    updated: float

    def refill(self, now: float) -> None:
        self.level = min(float(self.limit), self.level + (now - self.updated) * self.limit / SECONDS)
        self.updated = now


class MemoryCounters:
    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._buckets: dict[str, Bucket] = {}

    async def draw(self, draws: Sequence[Draw]) -> Drawn:
        """Never waits: nothing else runs in between."""
        buckets = [self._bucket(draw) for draw in draws]
        taken = all(draw.amount <= bucket.level + ROUNDING for draw, bucket in zip(draws, buckets, strict=True))
        if taken:
            for draw, bucket in zip(draws, buckets, strict=True):
                bucket.level -= draw.amount
        return Drawn(taken, tuple(bucket.level for bucket in buckets))

    async def close(self) -> None:
        """There is nothing to close."""

    def _bucket(self, draw: Draw) -> Bucket:
        now = self._clock()
        bucket = self._buckets.get(draw.bucket)
        if bucket is None or bucket.limit != draw.limit:
            bucket = self._buckets[draw.bucket] = Bucket(draw.limit, draw.limit, now)
        bucket.refill(now)
        return bucket
