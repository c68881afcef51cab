"""Whether a request may come in now: the server's queue, and each caller's rates. In memory, one process.

Rates are token buckets: a limit of 60 a minute allows 60 at once, and one a second from then on.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field

from kleinbild.core.callers import Caller, Limits
from kleinbild.gateway.errors import ApiError, too_many

SECONDS = 60.0
USUAL_SECONDS = 1.0  # of a picture, until one has been made
SMOOTHING = 0.2


@dataclass(slots=True)
class Bucket:
    """`level` of `limit` are left."""

    limit: int
    level: float
    updated: float

    def refill(self, now: float) -> None:
        self.level = min(float(self.limit), self.level + (now - self.updated) * self.limit / SECONDS)
        self.updated = now

    def seconds_until(self, amount: float) -> float:
        return max(0.0, (amount - self.level) * SECONDS / self.limit)


@dataclass(frozen=True, slots=True)
class Rate:
    """How a caller stands with one of his limits, for the headers of the answer."""

    name: str
    limit: int
    remaining: int
    reset_seconds: float


@dataclass(slots=True)
class Admission:
    """`defaults` are the limits of callers who have none of their own."""

    max_queue: int
    defaults: Limits = field(default_factory=Limits)
    clock: Callable[[], float] = time.monotonic
    _jobs: dict[str, tuple[frozenset[str], int]] = field(default_factory=dict)  # unfinished: keys, number of pictures
    _buckets: dict[tuple[str, str], Bucket] = field(default_factory=dict)
    _picture_seconds: float = USUAL_SECONDS

    def set_limits(self, max_queue: int, defaults: Limits) -> None:
        self.max_queue, self.defaults = max_queue, defaults

    @property
    def num_jobs(self) -> int:
        return len(self._jobs)

    @property
    def num_pictures(self) -> int:
        return sum(count for _, count in self._jobs.values())

    def expected_seconds(self) -> float:
        """Until what comes in now is done: as long as what is there has taken so far."""
        return self._picture_seconds * (self.num_pictures + 1)

    def admit(self, caller: Caller, job_id: str, num_pictures: int) -> None:
        """Counts the job in until `ended`. Raises ApiError 429 that says which limit, and when to come again."""
        self.require_room(caller, num_pictures)
        for name, bucket in self._buckets_of(caller):
            bucket.level -= _amounts(num_pictures)[name]
        self._jobs[job_id] = (frozenset(key for key, _ in _charged(caller)), num_pictures)

    def require_room(self, caller: Caller, num_pictures: int = 1) -> None:
        """Raises what `admit` would just now: asked before the pictures of a request are fetched and kept, too."""
        if self.num_jobs >= self.max_queue:
            raise too_many(f"the queue is full ({self.max_queue} jobs)", self._drain_seconds(), "queue_full")
        self._check_concurrency(caller)
        self._check_rates(caller, _amounts(num_pictures))

    def resume(self, caller_id: str, job_id: str, num_pictures: int) -> None:
        """Counts a job in that was admitted before, by this process or the one before it; for its own caller alone."""
        self._jobs.setdefault(job_id, (frozenset({caller_id}), num_pictures))

    def ended(self, job_id: str, seconds: float | None = None) -> None:
        """`seconds` that each of its pictures took of the machine, if it made any."""
        self._jobs.pop(job_id, None)
        if seconds is not None:
            self._picture_seconds += SMOOTHING * (seconds - self._picture_seconds)

    def rates(self, caller: Caller) -> list[Rate]:
        """One of each name: where others share it, that which will be reached first."""
        rates: dict[str, Rate] = {}
        for name, bucket in self._buckets_of(caller):
            rate = Rate(name, bucket.limit, int(bucket.level), bucket.seconds_until(bucket.limit))
            if name not in rates or rate.remaining < rates[name].remaining:
                rates[name] = rate
        return list(rates.values())

    def _drain_seconds(self) -> float:
        """Until one job of those in the queue has probably ended."""
        return self._picture_seconds * self.num_pictures / self.num_jobs

    def _check_concurrency(self, caller: Caller) -> None:
        for key, limits in _charged(caller):
            limit = limits.concurrent_jobs or self.defaults.concurrent_jobs
            own = sum(1 for keys, _ in self._jobs.values() if key in keys)
            if limit is not None and own >= limit:
                raise too_many(f"{own} of your jobs are queued or running, allowed are {limit}", self._drain_seconds())

    def _check_rates(self, caller: Caller, wanted: dict[str, int]) -> None:
        for name, bucket in self._buckets_of(caller):
            if wanted[name] > bucket.limit:
                raise ApiError(400, f"n is {wanted[name]}, your key allows {bucket.limit} {name} a minute", param="n")
            if wait := bucket.seconds_until(wanted[name]):
                raise too_many(f"the limit of {bucket.limit} {name} a minute is reached", wait)

    def _buckets_of(self, caller: Caller) -> list[tuple[str, Bucket]]:
        return [
            (name, self._bucket(key, name, limit))
            for key, limits in _charged(caller)
            for name, limit in self._limits(limits)
        ]

    def _limits(self, own: Limits) -> list[tuple[str, int]]:
        general = self.defaults
        limits = {
            "requests": own.requests_per_minute or general.requests_per_minute,
            "images": own.images_per_minute or general.images_per_minute,
        }
        return [(name, limit) for name, limit in limits.items() if limit is not None]

    def _bucket(self, key: str, name: str, limit: int) -> Bucket:
        now = self.clock()
        bucket = self._buckets.get((key, name))
        if bucket is None or bucket.limit != limit:
            bucket = self._buckets[key, name] = Bucket(limit, limit, now)
        bucket.refill(now)
        return bucket


def _amounts(num_pictures: int) -> dict[str, int]:
    """What a request takes of each limit."""
    return {"requests": 1, "images": num_pictures}


def _charged(caller: Caller) -> tuple[tuple[str, Limits], ...]:
    """The keys whose limits hold: the caller's own first."""
    return ((caller.id, caller.limits), *caller.above)
