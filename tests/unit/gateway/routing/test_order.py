"""What holds for every decision, whatever is asked of whomever."""

from __future__ import annotations

import json
from dataclasses import replace
from decimal import Decimal
from random import Random

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kleinbild.core.deployments import Deployment
from kleinbild.core.money import ZERO
from kleinbild.core.prices import Price
from kleinbild.gateway.routing.asked import Asked
from kleinbild.gateway.routing.candidates import Standing
from kleinbild.gateway.routing.decision import Decision
from tests.unit.gateway.routing.places import NOW, decided, fleets, order, policies, requests, standings

quick = settings(max_examples=120, deadline=None, suppress_health_check=[HealthCheck.too_slow])


@quick
@given(requests, fleets, standings, st.randoms(use_true_random=False))
def test_the_order_is_the_same_in_whatever_order_the_places_come(
    asked: Asked, fleet: list[Deployment], standing: dict[str, Standing], random: Random
) -> None:
    before = decided(asked, fleet, standing)
    random.shuffle(fleet)
    assert decided(asked, fleet, standing) == before


@quick
@given(requests, fleets, standings)
def test_every_place_meant_is_either_a_candidate_or_excluded_with_a_reason(
    asked: Asked, fleet: list[Deployment], standing: dict[str, Standing]
) -> None:
    decision = decided(asked, fleet, standing)
    named = [*order(decision), *(exclusion.deployment for exclusion in decision.excluded)]
    assert sorted(named) == sorted(deployment.name for deployment in fleet if asked.means(deployment))
    assert all(exclusion.rule and exclusion.reason for exclusion in decision.excluded)


@quick
@given(requests, fleets, standings)
def test_no_candidate_violates_a_constraint(
    asked: Asked, fleet: list[Deployment], standing: dict[str, Standing]
) -> None:
    for candidate in decided(asked, fleet, standing).candidates:
        place, can = candidate.deployment, candidate.deployment.can
        assert asked.task in can.tasks
        assert asked.measure.references <= can.max_references
        assert asked.prompt_chars <= can.max_prompt
        assert candidate.price is not None or (asked.allow_unknown_price and asked.max_price is None)
        assert asked.max_price is None or (candidate.price or ZERO) <= asked.max_price
        assert asked.max_seconds is None or candidate.seconds.p50 <= asked.max_seconds
        assert asked.min_quality is None or (place.quality or 0) >= asked.min_quality
        assert asked.region in (None, place.region)
        assert place.on_machine or not asked.on_machine
        lost = {loss.parameter for loss in candidate.losses}
        assert not lost & {"mask", *asked.required}
        assert not lost or asked.losses != "strict"
        ignored = {name for name in asked.parameters if name not in can.parameters}
        assert ignored - lost <= {"steps"}
        until = standing.get(place.name, Standing()).rate_limited_until
        assert until is None or until <= NOW


@quick
@given(requests, fleets, standings)
def test_the_cheapest_is_first_among_those_that_lose_as_little(
    asked: Asked, fleet: list[Deployment], standing: dict[str, Standing]
) -> None:
    fleet = [replace(deployment, price=replace(deployment.price, per_image=Decimal("0.01"))) for deployment in fleet]
    asked = replace(asked, policy=replace(asked.policy, cost=1.0, latency=0.0, quality=0.0), losses="drop")
    prices = [each.price for each in decided(asked, fleet).candidates if each.price is not None]
    assert prices == sorted(prices)


@quick
@given(requests, fleets, policies, st.integers(0, 5))
def test_another_place_that_is_worse_does_not_change_who_is_first(
    asked: Asked, fleet: list[Deployment], policy: object, index: int
) -> None:
    asked = replace(asked, policy=policy)  # type: ignore[arg-type]
    before = decided(asked, fleet)
    if not before.candidates:
        return
    model = before.candidates[index % len(before.candidates)].deployment
    worse = replace(
        model,
        name=f"{model.name}-worse",
        price=replace(model.price, per_request=(model.price.per_request or ZERO) + 1)
        if model.price.is_known
        else Price(),
        quality=None if model.quality is None else model.quality / 2,
        weight=model.weight / 2,
    )
    after = decided(asked, [*fleet, worse])
    assert [name for name in order(after) if name != worse.name] == order(before)
    assert order(after)[0] == order(before)[0]


@quick
@given(requests, fleets, standings)
def test_a_decision_comes_back_from_json_as_it_was(
    asked: Asked, fleet: list[Deployment], standing: dict[str, Standing]
) -> None:
    decision = decided(asked, fleet, standing)
    text = json.dumps(decision.to_json(), allow_nan=False)
    assert Decision.from_json(json.loads(text)) == decision
