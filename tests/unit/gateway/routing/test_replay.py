"""What another policy would have done with what was decided."""

from __future__ import annotations

import json
from dataclasses import replace
from decimal import Decimal
from typing import Any

import pytest

from kleinbild.core.deployments import Deployment
from kleinbild.gateway.routing.candidates import Standing
from kleinbild.gateway.routing.policy import COST, LATENCY, QUALITY
from kleinbild.gateway.routing.replay import Outcome, Recorded, replay
from tests.unit.gateway.routing.places import NOW, asked, decided, order, place

CHEAP, GOOD = place("cheap", "0.01", quality=0.5), place("good", "0.05", quality=0.9)
DAY = 24 * 3600


def record(
    went_to: Deployment | None, cost: str = "0", seconds: float | None = 3.0, at: float = NOW, **more: Any
) -> Recorded:
    decision = decided(asked(**{"policy": "quality", **more}), [CHEAP, GOOD], now=at)
    return Recorded(decision, Outcome(None if went_to is None else went_to.name, Decimal(cost), seconds))


def test_the_cheaper_place_is_paid_by_its_price_and_the_same_by_what_it_really_cost() -> None:
    records = [record(GOOD, "0.06") for _ in range(3)]
    cheaper = replay(records, COST)
    assert (cheaper.total.requests, cheaper.total.changed) == (3, 3)
    assert (cheaper.total.cost, cheaper.total.replayed_cost, cheaper.total.saved) == (
        Decimal("0.18"),
        Decimal("0.03"),
        Decimal("0.15"),
    )
    assert cheaper.moves == {("good", "cheap"): 3}
    same = replay(records, QUALITY)
    assert (same.total.changed, same.total.saved, same.moves) == (0, 0, {})


def test_seconds_elsewhere_are_learned_from_the_records_themselves() -> None:
    records = [
        *(record(GOOD, "0.05", 30.0, NOW + second) for second in range(20)),
        *(record(CHEAP, "0.01", 2.0, NOW + second) for second in range(20)),
    ]
    total = replay(records, LATENCY).total
    assert total.seconds == pytest.approx(640)
    assert total.replayed_seconds == pytest.approx(80, rel=0.1)
    assert total.changed == 20


def test_days_are_told_apart_and_summed() -> None:
    records = [record(GOOD, "0.05", at=NOW + DAY), record(GOOD, "0.05", at=NOW), record(CHEAP, "0.01", at=NOW)]
    comparison = replay(records, COST)
    assert [(line.day, line.requests, line.saved) for line in comparison.days] == [
        ("2026-09-21", 2, Decimal("0.04")),
        ("2026-09-22", 1, Decimal("0.04")),
    ]
    assert comparison.total.requests == 3
    assert comparison.total.cost == sum(line.cost for line in comparison.days)


def test_what_came_to_nothing_is_left_out_and_counted() -> None:
    unknown = replace(record(GOOD), outcome=None)
    comparison = replay([record(None, "0.05"), unknown, record(GOOD, "0.05")], COST)
    assert (comparison.total.requests, comparison.left_out) == (1, 2)


def test_where_no_price_is_known_nothing_is_compared() -> None:
    unpriced = place("free?", None, quality=1.0)
    decision = decided(asked(allow_unknown_price=True), [CHEAP, unpriced])
    comparison = replay([Recorded(decision, Outcome("cheap", Decimal("0.01"), 3.0))], QUALITY)
    assert (comparison.total.requests, comparison.left_out) == (0, 1)


def test_other_deployments_and_each_requests_own_policy() -> None:
    bargain = place("bargain", "0.002", quality=0.95)
    comparison = replay([record(GOOD, "0.05")], None, deployments=[CHEAP, GOOD, bargain])
    assert comparison.moves == {("good", "bargain"): 1}
    assert comparison.total.replayed_cost == Decimal("0.002")
    assert comparison.policy == "each request's own"


def test_a_request_that_could_be_served_nowhere_is_in_no_sum() -> None:
    comparison = replay([record(GOOD, "0.05")], COST, deployments=[place("no", max_references=0, tasks=frozenset())])
    assert (comparison.total.requests, comparison.total.nowhere, comparison.total.cost) == (1, 1, 0)


def test_what_was_out_of_order_then_is_not_asked_in_the_replay() -> None:
    decision = decided(asked(policy="quality"), [CHEAP, GOOD], {"cheap": Standing(circuit="open", retry_at=NOW + 9)})
    assert order(decision) == ["good"]
    comparison = replay([Recorded(decision, Outcome("good", Decimal("0.05")))], COST, deployments=[CHEAP, GOOD])
    assert comparison.total.changed == 0


def test_constraints_of_the_request_hold_in_the_replay() -> None:
    comparison = replay([record(GOOD, "0.05", min_quality=0.8)], COST, deployments=[CHEAP, GOOD])
    assert comparison.total.changed == 0


def test_a_comparison_is_json_with_exact_money() -> None:
    body = json.loads(json.dumps(replay([record(GOOD, "0.05")], COST).to_json()))
    assert body["total"] == {
        "day": "all",
        "requests": 1,
        "changed": 1,
        "nowhere": 0,
        "cost": "0.05",
        "replayed_cost": "0.01",
        "saved": "0.04",
        "seconds": 3.0,
        "replayed_seconds": body["total"]["replayed_seconds"],
    }
    assert body["moves"] == [{"from": "good", "to": "cheap", "requests": 1}]
