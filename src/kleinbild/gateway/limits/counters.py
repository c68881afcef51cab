"""What limits by the minute are counted with: token buckets. A limit of 60 a minute allows 60 at once, and one a second
from then on; within any minute that is never more than twice the limit, and over time never more than the limit."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from kleinbild.core.errors import KleinbildError

SECONDS = 60.0
ROUNDING = 1e-9
"""What a level may lack of an amount: it is the sum of many fractions."""


class CountersError(KleinbildError):
    """It is not known how much is left."""

    exit_code = 5


@dataclass(frozen=True, slots=True)
class Draw:
    """`amount` out of `bucket`, which holds `limit` and fills up within a minute; an amount of 0 only looks."""

    bucket: str
    limit: int
    amount: float = 0.0

    def seconds_until(self, level: float, amount: float | None = None) -> float:
        """Until there is enough, from `level` on, if nobody else takes any."""
        lacking = (self.amount if amount is None else amount) - level
        return lacking * SECONDS / self.limit if lacking > ROUNDING else 0.0


@dataclass(frozen=True, slots=True)
class Drawn:
    """`levels` are those after it, in the order of the draws; of a refusal, those that were too low, and others."""

    taken: bool
    levels: tuple[float, ...]


class Counters(Protocol):
    """Buckets that are not known yet are full; so is one whose limit has changed."""

    async def draw(self, draws: Sequence[Draw]) -> Drawn:
        """Takes all amounts or, where one bucket holds too little, none. Raises CountersError."""
        ...

    async def close(self) -> None: ...
