"""Whether a request may come in now: the server's queue, and each caller's rates and jobs at once.

What is queued is known to this process alone; rates are counted by `gateway.limits`, for several servers if need be.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from kleinbild.core.callers import Caller, Limits
from kleinbild.core.jobs import ImageWork
from kleinbild.gateway.errors import ApiError, too_many
from kleinbild.gateway.limits.counters import Counters, CountersError, Draw
from kleinbild.gateway.limits.memory import MemoryCounters

USUAL_SECONDS = 1.0  # of a picture, until one has been made
USUAL_PIXELS = 1024 * 1024  # of a picture whose size is left to the model
MEGAPIXEL = 1_000_000
SMOOTHING = 0.2


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
    counters: Counters = field(default_factory=MemoryCounters)
    _jobs: dict[str, tuple[frozenset[str], int]] = field(default_factory=dict)  # unfinished: keys, number of pictures
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

    def waiting_seconds(self) -> float:
        """Until this machine is done with what is there, as long as that has taken so far."""
        return self._picture_seconds * self.num_pictures

    async def admit(self, caller: Caller, job_id: str, num_pictures: int, megapixels: float = 0.0) -> None:
        """Counts the job in until `ended`. Raises ApiError 429 that says which limit, and when to come again; 503 where
        the rates cannot be told."""
        self._require_place(caller)
        draws = self._draws(caller, _amounts(num_pictures, megapixels))
        self._jobs[job_id] = (frozenset(key for key, _ in _charged(caller)), num_pictures)
        try:
            await self._draw(draws, take=True)
        except BaseException:
            self.ended(job_id)
            raise

    async def require_room(self, caller: Caller, num_pictures: int = 1) -> None:
        """Raises what `admit` would just now: asked before the pictures of a request are fetched and kept, too."""
        self._require_place(caller)
        await self._draw(self._draws(caller, _amounts(num_pictures, 0.0)), take=False)

    def resume(self, caller_id: str, job_id: str, num_pictures: int) -> None:
        """Counts a job in that was admitted before, by this process or the one before it; for its own caller alone."""
        self._jobs.setdefault(job_id, (frozenset({caller_id}), num_pictures))

    def ended(self, job_id: str, seconds: float | None = None) -> None:
        """`seconds` that each of its pictures took of the machine, if it made any."""
        self._jobs.pop(job_id, None)
        if seconds is not None:
            self._picture_seconds += SMOOTHING * (seconds - self._picture_seconds)

    async def rates(self, caller: Caller) -> list[Rate]:
        """One of each name: where others share it, that which will be reached first. None where they cannot be told: no
        answer is to be lost by that."""
        named = self._draws(caller, {})
        if not named:
            return []
        try:
            levels = (await self.counters.draw([draw for _, draw in named])).levels
        except CountersError:
            return []
        rates: dict[str, Rate] = {}
        for (name, draw), level in zip(named, levels, strict=True):
            rate = Rate(name, draw.limit, int(level), draw.seconds_until(level, draw.limit))
            if name not in rates or rate.remaining < rates[name].remaining:
                rates[name] = rate
        return list(rates.values())

    def _drain_seconds(self) -> float:
        """Until one job of those in the queue has probably ended."""
        return self._picture_seconds * self.num_pictures / self.num_jobs

    def _require_place(self, caller: Caller) -> None:
        if self.num_jobs >= self.max_queue:
            raise too_many(f"the queue is full ({self.max_queue} jobs)", self._drain_seconds(), "queue_full")
        for key, limits in _charged(caller):
            limit = limits.concurrent_jobs or self.defaults.concurrent_jobs
            own = sum(1 for keys, _ in self._jobs.values() if key in keys)
            if limit is not None and own >= limit:
                raise too_many(f"{own} of your jobs are queued or running, allowed are {limit}", self._drain_seconds())

    async def _draw(self, named: Sequence[tuple[str, Draw]], *, take: bool) -> None:
        for name, draw in named:
            if draw.amount > draw.limit:
                raise _never(name, draw)
        if not named:
            return
        draws = [draw for _, draw in named]
        try:
            drawn = await self.counters.draw(draws if take else [Draw(draw.bucket, draw.limit) for draw in draws])
        except CountersError as error:
            raise ApiError(
                503, error.message, type="server_error", code="limits_unavailable", headers={"Retry-After": "5"}
            ) from error
        for (name, draw), level in zip(named, drawn.levels, strict=True):
            if (wait := draw.seconds_until(level)) and not (take and drawn.taken):
                raise too_many(f"the limit of {draw.limit} {name} a minute is reached", wait)
        if take and not drawn.taken:  # by less than can be told
            raise too_many("a limit by the minute is reached", 1.0)

    def _draws(self, caller: Caller, amounts: dict[str, float]) -> list[tuple[str, Draw]]:
        return [
            (name, Draw(f"{key}:{name}", limit, amounts.get(name, 0.0)))
            for key, limits in _charged(caller)
            for name, limit in self._limits(limits)
        ]

    def _limits(self, own: Limits) -> list[tuple[str, int]]:
        general = self.defaults
        limits = {
            "requests": own.requests_per_minute or general.requests_per_minute,
            "images": own.images_per_minute or general.images_per_minute,
            "megapixels": own.megapixels_per_minute or general.megapixels_per_minute,
        }
        return [(name, limit) for name, limit in limits.items() if limit is not None]


def megapixels(work: ImageWork) -> float:
    """Of all its pictures. One whose size is left to the model is counted as a usual one."""
    return work.n * (work.size.area if work.size else USUAL_PIXELS) / MEGAPIXEL


def _amounts(num_pictures: int, megapixels: float) -> dict[str, float]:
    """What a request takes of each limit."""
    return {"requests": 1, "images": num_pictures, "megapixels": megapixels}


def _never(name: str, draw: Draw) -> ApiError:
    """For what no waiting helps."""
    if name == "megapixels":
        what, param = f"the pictures have {draw.amount:.3g} megapixels", "size"
    else:
        what, param = f"n is {draw.amount:g}", "n"
    return ApiError(400, f"{what}, your key allows {draw.limit} {name} a minute", param=param)


def _charged(caller: Caller) -> tuple[tuple[str, Limits], ...]:
    """The keys whose limits hold: the caller's own first."""
    return ((caller.id, caller.limits), *caller.above)
