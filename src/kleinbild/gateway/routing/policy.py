"""What counts when several places can serve: a policy is how much weight cost, latency and quality have.

Scores are in doublings: twice the price counts as much as twice the seconds, and as a tenth of quality. A score depends
on nobody else's, so that another place, however bad or far off, never changes the order of those that were there.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from decimal import Decimal

from kleinbild.core.errors import RequestError

PRICE_FLOOR = 0.001  # dollars that are added to every price: free is a few doublings better than cheap, not infinitely
SECONDS_FLOOR = 0.1
DOUBLINGS_OF_QUALITY = 10.0  # what the whole way from 0 to 1 is worth
UNSAID_QUALITY = 0.5
UNSAID_PRICE = 1.0  # dollars: unknown is dear, never free
PARTS = ("cost", "latency", "quality")


@dataclass(frozen=True, slots=True)
class Policy:
    """Weights, 0 to 1, that sum to 1."""

    name: str
    cost: float = 0.0
    latency: float = 0.0
    quality: float = 0.0

    def score(self, price: Decimal | None, seconds: float, reliability: float, quality: float | None) -> float:
        """Lower is better. The seconds are those until a picture is there: a place that fails is asked again, or another."""
        score = 0.0
        if self.cost:
            score += self.cost * math.log2((UNSAID_PRICE if price is None else float(price)) + PRICE_FLOOR)
        if self.latency:
            score += self.latency * math.log2(seconds / reliability + SECONDS_FLOOR)
        if self.quality:
            score -= self.quality * DOUBLINGS_OF_QUALITY * (UNSAID_QUALITY if quality is None else quality)
        return score


COST = Policy("cost", cost=1.0)
LATENCY = Policy("latency", latency=1.0)
QUALITY = Policy("quality", quality=1.0)
BALANCED = Policy("balanced", cost=0.4, latency=0.3, quality=0.3)
POLICIES: Mapping[str, Policy] = {policy.name: policy for policy in (COST, LATENCY, QUALITY, BALANCED)}


def policy_text(given: str | Mapping[str, object]) -> str:
    """What `read_policy` reads, in one line: a name, or weights as JSON. Raises RequestError for what it does not."""
    read_policy(given)
    return given if isinstance(given, str) else json.dumps(dict(given))


def read_policy(given: str | Mapping[str, object]) -> Policy:
    """A policy by its name, or weights such as {"cost": 0.5, "latency": 0.3, "quality": 0.2}, of any sum above 0; those may
    be JSON, too. Raises RequestError."""
    if isinstance(given, str) and given.startswith("{"):
        try:
            given = json.loads(given)
        except ValueError as error:
            raise RequestError(f"the weights {given!r} are no JSON", 'write {"cost": 0.5, "latency": 0.5}') from error
    if isinstance(given, str):
        if given not in POLICIES:
            raise RequestError(
                f"{given!r} is no policy", f"use {', '.join(POLICIES)}, or weights of {', '.join(PARTS)}"
            )
        return POLICIES[given]
    if unknown := [name for name in given if name not in PARTS]:
        raise RequestError(f"a policy has no weight {unknown[0]!r}", f"weights are {', '.join(PARTS)}")
    weights: dict[str, float] = {}
    for name, weight in given.items():
        if isinstance(weight, bool) or not isinstance(weight, int | float) or not 0 <= weight < math.inf:
            raise RequestError(f"the weight {name} must not be {weight!r}", "write a number from 0 on")
        weights[name] = float(weight)
    total = sum(weights.values())
    if not total or math.isinf(total):
        raise RequestError("a policy needs a weight above 0", 'for example {"cost": 0.5, "latency": 0.5}')
    return Policy("weights", **{name: weight / total for name, weight in weights.items()})
