"""How long to wait before the next try: full jitter, so that many who failed together do not come back together."""

from __future__ import annotations

from random import Random

BASE_SECONDS = 0.5
MAX_SECONDS = 30.0
MAX_RETRY_AFTER_SECONDS = 120.0
"""A service that asks for more is asked again all the same after this time, by whoever has the time to wait for it."""


def delay(
    attempt_number: int,
    retry_after: float | None,
    rng: Random,
    *,
    base: float = BASE_SECONDS,
    longest: float = MAX_SECONDS,
    longest_retry_after: float = MAX_RETRY_AFTER_SECONDS,
) -> float:
    """Seconds after the failure of try `attempt_number`, the first of which is 1.

    Anything up to the ceiling, which doubles with each try; never less than `retry_after`, as far as that is not beyond
    `longest_retry_after`: the service says when, and the jitter comes on top.
    """
    jitter = rng.random() * ceiling(attempt_number, base=base, longest=longest)
    return jitter + min(max(retry_after or 0.0, 0.0), longest_retry_after)


def ceiling(attempt_number: int, *, base: float = BASE_SECONDS, longest: float = MAX_SECONDS) -> float:
    doublings = min(max(attempt_number - 1, 0), 32)  # beyond, nothing is below `longest`
    return float(min(longest, base * 2**doublings))
