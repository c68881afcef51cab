"""What would it have cost? Decisions that were kept are taken again by another policy, and compared with what came of them.

Nothing is asked of anybody. Where the same place would have been first, what really came of it counts; elsewhere the price
function and the predictions of today, learned from the very records, in hindsight.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from decimal import Decimal
from typing import Any

from kleinbild.core.deployments import Deployment
from kleinbild.core.money import ZERO, written
from kleinbild.gateway.routing.candidates import Candidate, fit
from kleinbild.gateway.routing.decision import Decision, decide
from kleinbild.gateway.routing.policy import Policy
from kleinbild.gateway.routing.predict import Predictor
from kleinbild.gateway.routing.rules import Rule

PASSING = ("circuit", "rate_limited")  # what kept a deployment away then, whatever the policy


@dataclass(frozen=True, slots=True)
class Outcome:
    """What really came of a decision: `cost` of all attempts, `deployment` that made the pictures, None if none did."""

    deployment: str | None
    cost: Decimal
    seconds: float | None = None


@dataclass(frozen=True, slots=True)
class Recorded:
    """`outcome` is None of a decision that has not come to its end, or of which nothing is known."""

    decision: Decision
    outcome: Outcome | None


@dataclass(frozen=True, slots=True)
class Line:
    """Of a day (UTC), or of all. `changed` would have gone elsewhere; `nowhere` could not have been served, and are in no
    sum, so that sums are of the same requests on both sides. `seconds` are those of requests that tell theirs."""

    day: str
    requests: int = 0
    changed: int = 0
    nowhere: int = 0
    cost: Decimal = ZERO
    replayed_cost: Decimal = ZERO
    seconds: float = 0.0
    replayed_seconds: float = 0.0

    @property
    def saved(self) -> Decimal:
        return self.cost - self.replayed_cost


@dataclass(frozen=True, slots=True)
class Comparison:
    """`moves` count the requests by where they went and where they would have gone. `left_out` are decisions of which
    nothing is known that could be compared, and those that would go where no price is known."""

    policy: str
    days: tuple[Line, ...]
    total: Line
    moves: Mapping[tuple[str, str], int] = field(default_factory=dict)
    left_out: int = 0

    def to_json(self) -> dict[str, Any]:
        return {
            "policy": self.policy,
            "days": [_line(line) for line in self.days],
            "total": _line(self.total),
            "moves": [{"from": then, "to": now, "requests": number} for (then, now), number in self.moves.items()],
            "left_out": self.left_out,
        }


def replay(
    records: Sequence[Recorded],
    policy: Policy | None,
    *,
    deployments: Sequence[Deployment] | None = None,
    rules: Sequence[Rule] = (),
    predictor: Predictor | None = None,
) -> Comparison:
    """`policy` None keeps each request's own, for what other `deployments`, prices or `rules` would have done. Without
    `deployments`, each decision's candidates, at their prices of then, are those that it is taken among."""
    predictor = predictor or learned(records)
    days: dict[str, Line] = {}
    moves: Counter[tuple[str, str]] = Counter()
    left_out = 0
    for record in records:
        decision, outcome = record.decision, record.outcome
        if outcome is None or outcome.deployment is None:
            left_out += 1
            continue
        first = _again(decision, policy, deployments, rules, predictor)
        if first is not None and first.price is None and first.deployment.name != outcome.deployment:
            left_out += 1
            continue
        day = time.strftime("%Y-%m-%d", time.gmtime(decision.at))
        days[day] = _add(days.get(day, Line(day)), outcome, first)
        if first is not None and first.deployment.name != outcome.deployment:
            moves[outcome.deployment, first.deployment.name] += 1
    ordered = tuple(days[day] for day in sorted(days))
    return Comparison(
        policy="each request's own" if policy is None else policy.name,
        days=ordered,
        total=_sum(ordered),
        moves=dict(moves.most_common()),
        left_out=left_out,
    )


def learned(records: Iterable[Recorded]) -> Predictor:
    """A predictor that has seen what came of these."""
    predictor = Predictor()
    for record in records:
        decision, outcome = record.decision, record.outcome
        if outcome is None or outcome.seconds is None:
            continue
        for candidate in decision.candidates:
            if candidate.deployment.name == outcome.deployment:
                _learn(predictor, decision, candidate.deployment, outcome.seconds)
    return predictor


def _learn(predictor: Predictor, decision: Decision, deployment: Deployment, seconds: float) -> None:
    fits = fit(replace(decision.asked, losses="drop", required=frozenset()), deployment)
    calls = getattr(fits, "calls", ())
    if calls:
        each = seconds / len(calls) if deployment.on_machine else seconds
        predictor.observe(deployment, calls[0], each, decision.at, "done")


def _again(
    decision: Decision,
    policy: Policy | None,
    deployments: Sequence[Deployment] | None,
    rules: Sequence[Rule],
    predictor: Predictor,
) -> Candidate | None:
    """Who would have been first."""
    asked = decision.asked
    if policy is not None:
        asked = replace(asked, policy=policy, policy_source="replay")
    if deployments is None:
        among = [candidate.deployment for candidate in decision.candidates]
    else:
        away = {exclusion.deployment for exclusion in decision.excluded if exclusion.rule in PASSING}
        among = [deployment for deployment in deployments if deployment.name not in away]
    again = decide(asked, among, {}, predictor, rules, decision.at, decision_id=decision.id)
    return next(iter(again.candidates), None)


def _add(line: Line, outcome: Outcome, first: Candidate | None) -> Line:
    if first is None:
        return replace(line, requests=line.requests + 1, nowhere=line.nowhere + 1)
    same = first.deployment.name == outcome.deployment
    cost = outcome.cost if same or first.price is None else first.price
    then = outcome.seconds
    now = then if same else first.seconds.p50
    return replace(
        line,
        requests=line.requests + 1,
        changed=line.changed + (not same),
        cost=line.cost + outcome.cost,
        replayed_cost=line.replayed_cost + cost,
        seconds=line.seconds + (then or 0.0),
        replayed_seconds=line.replayed_seconds + (0.0 if then is None or now is None else now),
    )


def _sum(lines: Iterable[Line]) -> Line:
    total = Line("all")
    for line in lines:
        total = Line(
            "all",
            total.requests + line.requests,
            total.changed + line.changed,
            total.nowhere + line.nowhere,
            total.cost + line.cost,
            total.replayed_cost + line.replayed_cost,
            total.seconds + line.seconds,
            total.replayed_seconds + line.replayed_seconds,
        )
    return total


def _line(line: Line) -> dict[str, Any]:
    return {
        "day": line.day,
        "requests": line.requests,
        "changed": line.changed,
        "nowhere": line.nowhere,
        "cost": written(line.cost),
        "replayed_cost": written(line.replayed_cost),
        "saved": written(line.saved),
        "seconds": round(line.seconds, 3),
        "replayed_seconds": round(line.replayed_seconds, 3),
    }
