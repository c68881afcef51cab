"""How long a place will take, learned from what it took: by amount of work, with bounds, and deaf to outliers.

Each kind of provider has a prior: seconds = a + b · megapixels · steps · pictures of the call + c · references. What is
learned is the factor between that and what was seen, from the last observations near to the amount of work in question:
their weighted median and quantiles. So a call of four large pictures says little about one small picture as long as
small ones were seen, half of the observations may be wild, and what nobody has seen follows the prior's shape. Old
observations fade; with them gone the prior speaks again.

Whether it succeeds is a Beta distribution, which fades too.
"""

from __future__ import annotations

import math
from bisect import insort
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from kleinbild.core.deployments import Deployment, ProviderKind
from kleinbild.core.prices import Measure

Ending = Literal["done", "timed_out", "failed"]
"""Made; not made within the seconds, so that it takes at least these; failed by its own fault, however quickly."""

HALF_LIFE = 24 * 3600.0
RELIABILITY_HALF_LIFE = 3600.0
KEPT = 24  # observations for each doubling of work: enough for quantiles, few enough to weigh at every question
REACH = 0.5  # of an observation, in natural logarithms of work: one of twice the work counts 40 %
FAR = 0.5  # what all together count beyond their reach: less than one that is near, more than the prior
MOST_SECONDS = 100_000.0
FRESH = 60.0  # seconds for which a prediction is kept if nothing new was seen
PRIOR = ((-1.4, 0.01), (-0.7, 0.04), (0.0, 0.1), (0.7, 0.04), (1.4, 0.01))  # factors (logarithms) and their weights
SUCCESSES, FAILURES = 9.5, 0.5  # of the Beta prior


@dataclass(frozen=True, slots=True)
class Shape:
    """Seconds: of a call, of a megapixel where steps are not known, of a step of a megapixel, of a reference."""

    call: float
    megapixel: float
    step: float
    reference: float


HOSTED = Shape(call=2.0, megapixel=2.0, step=0.12, reference=0.7)
SHAPES: Mapping[ProviderKind, Shape] = {
    "local": Shape(call=0.3, megapixel=1.2, step=0.3, reference=0.3),
    "openai": Shape(call=10.0, megapixel=10.0, step=0.5, reference=3.0),
    "stability": Shape(call=3.0, megapixel=3.0, step=0.12, reference=0.7),
}


@dataclass(frozen=True, slots=True)
class Prediction:
    """Seconds: nine of ten calls lie between `low` and `high`. `samples` were seen of about this amount of work."""

    low: float
    p50: float
    high: float
    samples: int = 0

    def after(self, seconds: float, times: int = 1) -> Prediction:
        """Of so many in a row, begun after `seconds`."""
        if not seconds and times == 1:
            return self
        return Prediction(
            seconds + times * self.low, seconds + times * self.p50, seconds + times * self.high, self.samples
        )


@dataclass(slots=True)
class _Seen:
    """Of one deployment. `calls` by doublings of work: (when, logarithm of work, logarithm of the factor)."""

    calls: dict[int, list[tuple[float, float, float]]] = field(default_factory=dict)
    successes: float = 0.0
    failures: float = 0.0
    at: float = 0.0
    kept: dict[float, tuple[float, Prediction]] = field(default_factory=dict)


class Predictor:
    """What was seen of every deployment. Times are told, in seconds since 1970."""

    def __init__(self) -> None:
        self._seen: dict[str, _Seen] = {}

    def predict(self, deployment: Deployment, measure: Measure, now: float) -> Prediction:
        """Of one call."""
        work = work_of(deployment, measure)
        seen = self._seen.get(deployment.name)
        if seen is None:
            return _of(work, (), 0)
        kept = seen.kept.get(work)
        if kept is not None and abs(now - kept[0]) < FRESH:
            return kept[1]
        prediction = _predict(work, seen, now)
        if len(seen.kept) >= 64:
            seen.kept.clear()
        seen.kept[work] = (now, prediction)
        return prediction

    def observe(self, deployment: Deployment, measure: Measure, seconds: float, at: float, ending: Ending) -> None:
        """One call that ended. `seconds` that a call failed after tell nothing of those that it would have taken."""
        seen = self._seen.setdefault(deployment.name, _Seen())
        seen.successes, seen.failures = _faded(seen, at)
        seen.at = max(seen.at, at)
        if ending == "done":
            seen.successes += 1
        else:
            seen.failures += 1
        if ending == "failed":
            return
        work = work_of(deployment, measure)
        if ending == "timed_out":
            seconds = max(seconds, _predict(work, seen, at).p50)
        factor = math.log(min(max(seconds, 0.001), MOST_SECONDS) / work)
        kept = seen.calls.setdefault(round(math.log2(work)), [])
        insort(kept, (at, math.log(work), factor))
        del kept[:-KEPT]
        seen.kept.clear()

    def heard_at(self, deployment: str) -> float | None:
        """When a call last ended in a way that tells of the place."""
        seen = self._seen.get(deployment)
        return None if seen is None else seen.at

    def reliability(self, deployment: str, now: float) -> float:
        """The expected share of calls that succeed, above 0 and below 1."""
        seen = self._seen.get(deployment)
        successes, failures = (0.0, 0.0) if seen is None else _faded(seen, now)
        return (SUCCESSES + successes) / (SUCCESSES + FAILURES + successes + failures)

    def to_json(self) -> dict[str, Any]:
        return {
            name: {
                "calls": [call for kept in seen.calls.values() for call in kept],
                "successes": seen.successes,
                "failures": seen.failures,
                "at": seen.at,
            }
            for name, seen in self._seen.items()
        }

    def merge(self, state: Mapping[str, Any]) -> None:
        """Adds what was seen before a restart, or by another process: what `to_json` gave. Old evidence counts what is left
        of it. Calls that are known already count once, and so does the very same state; of a state that grew since it was
        merged, successes and failures count again, so merge each once."""
        for name, told in state.items():
            seen = self._seen.setdefault(name, _Seen())
            at, told_at = seen.at, float(told["at"])
            newest = max(at, told_at)
            if (told_at, told["successes"], told["failures"]) != (at, seen.successes, seen.failures):
                fade, told_fade = (0.5 ** ((newest - then) / RELIABILITY_HALF_LIFE) for then in (at, told_at))
                seen.successes = seen.successes * fade + float(told["successes"]) * told_fade
                seen.failures = seen.failures * fade + float(told["failures"]) * told_fade
                seen.at = newest
            for when, work, factor in told["calls"]:
                kept = seen.calls.setdefault(round(float(work) / math.log(2)), [])
                if (call := (float(when), float(work), float(factor))) not in kept:
                    insort(kept, call)
                    del kept[:-KEPT]
            seen.kept.clear()


def work_of(deployment: Deployment, measure: Measure) -> float:
    """The work of one call, in the seconds that the prior gives it."""
    shape = SHAPES.get(deployment.kind, HOSTED)
    honoured = measure.steps is not None and "steps" in deployment.can.parameters
    steps = measure.steps if honoured else deployment.can.default_steps
    each = shape.megapixel if steps is None else shape.step * steps
    return shape.call + each * float(measure.megapixels) * measure.images + shape.reference * measure.references


def _faded(seen: _Seen, now: float) -> tuple[float, float]:
    fade = 0.5 ** (max(0.0, now - seen.at) / RELIABILITY_HALF_LIFE)
    return seen.successes * fade, seen.failures * fade


def _predict(work: float, seen: _Seen, now: float) -> Prediction:
    place, near, freshness = math.log(work), 0, 0.0
    weighed = []
    for kept in seen.calls.values():
        for at, there, factor in kept:
            distance = (there - place) / REACH
            nearness = math.exp(-0.5 * distance * distance)
            near += nearness > 0.5
            fresh = 0.5 ** (max(0.0, now - at) / HALF_LIFE)
            freshness += fresh
            weighed.append((factor, nearness, fresh))
    far = FAR / max(1.0, freshness)
    return _of(work, [(factor, (nearness + far) * fresh) for factor, nearness, fresh in weighed], near)


def _of(work: float, weighed: Iterable[tuple[float, float]], samples: int) -> Prediction:
    factors = sorted((*weighed, *PRIOR))
    low, middle, high = (work * math.exp(factor) for factor in _quantiles(factors, (0.05, 0.5, 0.95)))
    return Prediction(low, middle, high, samples)


def _quantiles(sorted_weighed: list[tuple[float, float]], shares: Iterable[float]) -> list[float]:
    """Between the observations, by the middles of their weights."""
    total = sum(weight for _, weight in sorted_weighed)
    found, index, passed = [], 0, 0.0
    for share in shares:
        wanted = share * total
        while index < len(sorted_weighed) - 1 and passed + sorted_weighed[index][1] < wanted:
            passed += sorted_weighed[index][1]
            index += 1
        found.append(_between(sorted_weighed, index, passed, wanted))
    return found


def _between(weighed: list[tuple[float, float]], index: int, passed: float, wanted: float) -> float:
    factor, weight = weighed[index]
    offset = wanted - (passed + weight / 2)
    other = index + (1 if offset > 0 else -1)
    if not 0 <= other < len(weighed):
        return factor
    gap = (weight + weighed[other][1]) / 2
    return factor + abs(offset) / gap * (weighed[other][0] - factor)
