"""Who is asked, and in which order."""

from __future__ import annotations

from dataclasses import replace
from decimal import Decimal

import pytest

from kleinbild.core.prices import Measure, Price
from kleinbild.core.sizes import Size
from kleinbild.gateway.routing.candidates import Standing
from kleinbild.gateway.routing.predict import Predictor
from tests.unit.gateway.routing.places import NOW, asked, decided, order, place, why_not


def test_cost_puts_the_cheapest_by_the_real_price_first() -> None:
    flat = place("flat", Price(per_image=Decimal("0.03")))
    by_area = place("by-area", Price(per_megapixel=Decimal("0.02")))
    small, large = (asked(megapixels=Decimal(megapixels)) for megapixels in ("1", "4"))
    assert order(decided(small, [flat, by_area])) == ["by-area", "flat"]
    assert order(decided(large, [flat, by_area])) == ["flat", "by-area"]


def test_cost_is_exact_to_the_last_digit() -> None:
    dearer, cheaper = place("a", "123.000000000000000002"), place("b", "123.000000000000000001")
    assert order(decided(asked(), [dearer, cheaper])) == ["b", "a"]


def test_more_pictures_than_a_call_makes_pay_for_each_call() -> None:
    each = place("each", Price(per_request=Decimal("0.01"), per_image=Decimal("0.01")))
    at_once = replace(each, name="at-once", can=replace(each.can, max_images=4))
    decision = decided(asked(images=5), [each, at_once])
    assert {one.deployment.name: one.price for one in decision.candidates} == {
        "at-once": Decimal("0.07"),
        "each": Decimal("0.10"),
    }


def test_references_steps_and_quality_are_in_the_price() -> None:
    price = Price(per_input_megapixel=Decimal("0.001"), per_step=Decimal("0.002"), by_quality={"high": Decimal("0.16")})
    wanted = asked(steps=10, quality="high", references=2, input_megapixels=Decimal(3), images=2)
    (candidate,) = decided(wanted, [place("a", price, max_images=4)]).candidates
    assert candidate.price == 2 * (Decimal("0.003") + Decimal("0.02") + Decimal("0.16"))


def test_a_price_by_steps_counts_the_steps_that_are_made() -> None:
    price = Price(per_step=Decimal("0.001"))
    fixed = place("fixed", price, parameters=frozenset(), default_steps=28)
    free = place("free", price)
    decision = decided(asked(steps=8), [fixed, free])
    assert [one.price for one in decision.candidates] == [Decimal("0.008"), Decimal("0.028")]


def test_an_unknown_price_is_never_free() -> None:
    unknown, dear = place("unknown", None), place("dear", "5")
    decision = decided(asked(), [unknown, dear])
    assert order(decision) == ["dear"]
    assert why_not(decision)["unknown"][0] == "unknown_price"
    allowed = decided(asked(allow_unknown_price=True), [unknown, dear])
    assert order(allowed) == ["dear", "unknown"]
    assert allowed.candidates[1].price is None
    assert "unknown price" in allowed.candidates[1].reason
    capped = decided(asked(allow_unknown_price=True, max_price=Decimal(9)), [unknown, dear])
    assert order(capped) == ["dear"]


def test_constraints_tell_their_numbers() -> None:
    places = [place("a", "0.053", quality=0.4, region="us"), place("b", "0.01", kind="local", quality=0.9, region="eu")]
    for given, told in [
        ({"max_price": Decimal("0.02")}, ("max_price", "0.053 > 0.02")),
        ({"min_quality": 0.5}, ("min_quality", "0.4 < 0.5")),
        ({"region": "eu"}, ("region", "us is not eu")),
        ({"on_machine": True}, ("on_machine", "bfl is not on this machine")),
    ]:
        decision = decided(asked(**given), places)
        assert why_not(decision) == {"a": told}
        assert order(decision) == ["b"]


def test_seconds_are_bounded_by_what_is_as_likely_as_not() -> None:
    slow, quick, seen = place("slow"), place("quick"), Predictor()
    for second in range(10):
        seen.observe(slow, Measure(), 40.0, NOW - second, "done")
        seen.observe(quick, Measure(), 2.0, NOW - second, "done")
    decision = decided(asked(max_seconds=10), [slow, quick], predictor=seen)
    assert order(decision) == ["quick"]
    assert why_not(decision)["slow"] == ("max_seconds", "40.0 > 10")
    waiting = {"quick": Standing(waiting_seconds=30)}
    assert order(decided(asked(max_seconds=10), [slow, quick], waiting, seen)) == []


def test_latency_counts_the_queue_of_this_machine() -> None:
    here, there = place("here", kind="local"), place("there")
    assert order(decided(asked(policy="latency"), [here, there])) == ["here", "there"]
    queue = {"here": Standing(waiting_seconds=60)}
    assert order(decided(asked(policy="latency"), [here, there], queue)) == ["there", "here"]


def test_this_machine_makes_calls_one_after_another_and_services_at_once() -> None:
    here, there = place("here", kind="local"), place("there")
    one, four = (
        {each.deployment.name: each.seconds.p50 for each in decided(asked(images=n), [here, there]).candidates}
        for n in (1, 4)
    )
    assert four["here"] == pytest.approx(4 * one["here"])
    assert four["there"] == one["there"]


def test_latency_avoids_what_fails() -> None:
    flaky, steady, seen = place("a-flaky"), place("steady"), Predictor()
    for second in range(20):
        seen.observe(flaky, Measure(), 3.0, NOW - second, "done" if second % 2 else "failed")
        seen.observe(steady, Measure(), 4.0, NOW - second, "done")
    assert order(decided(asked(policy="latency"), [flaky, steady], predictor=seen)) == ["steady", "a-flaky"]


def test_quality_puts_the_best_first_and_those_of_whom_nobody_said_between() -> None:
    places = [place("bad", quality=0.2), place("unsaid"), place("good", quality=0.9)]
    assert order(decided(asked(policy="quality"), places)) == ["good", "unsaid", "bad"]


def test_balanced_takes_much_better_for_a_little_dearer_but_not_for_much_dearer() -> None:
    good, cheap = place("good", "0.02", quality=0.9), place("cheap", "0.015", quality=0.5)
    assert order(decided(asked(policy="balanced"), [good, cheap])) == ["good", "cheap"]
    good = place("good", "2", quality=0.9)
    assert order(decided(asked(policy="balanced"), [good, cheap])) == ["cheap", "good"]


def test_a_tie_is_broken_by_weight_and_then_by_name() -> None:
    places = [place("c"), place("b"), place("a"), place("heavy", weight=2)]
    assert order(decided(asked(), places)) == ["heavy", "a", "b", "c"]


def test_a_model_means_its_deployments_and_a_deployment_itself() -> None:
    places = [place("a", model="klein"), place("b", model="klein"), place("c", model="pro")]
    assert order(decided(asked("klein"), places)) == ["a", "b"]
    assert order(decided(asked("b"), places)) == ["b"]
    assert order(decided(asked("auto"), places)) == order(decided(asked(None), places)) == ["a", "b", "c"]
    assert decided(asked("nobody"), places).candidates == ()


def test_pins_are_asked_alone_and_in_their_order() -> None:
    places = [place("cheap", "0.01"), place("dear", "1"), place("middle", "0.1"), place("other", model="pro")]
    decision = decided(asked("klein", pins=("dear", "cheap", "other", "gone")), places)
    assert order(decision) == ["dear", "cheap"]
    assert why_not(decision) == {
        "gone": ("pins", "there is no such deployment"),
        "other": ("pins", "it does not serve klein"),
    }


def test_a_place_whose_circuit_is_open_is_left_alone_until_it_may_be_asked_again() -> None:
    standing = {"a": Standing(circuit="open", retry_at=NOW + 12)}
    decision = decided(asked(), [place("a"), place("b")], standing)
    assert order(decision) == ["b"]
    (exclusion,) = decision.excluded
    assert (exclusion.rule, exclusion.until) == ("circuit", NOW + 12)
    assert "12 s" in exclusion.reason
    assert order(decided(asked(), [place("a"), place("b")], standing, now=NOW + 12)) == ["a", "b"]


def test_a_place_that_limits_us_is_left_alone_until_it_does_not() -> None:
    standing = {"a": Standing(rate_limited_until=NOW + 5)}
    decision = decided(asked(), [place("a")], standing)
    assert [(each.rule, each.until) for each in decision.excluded] == [("rate_limited", NOW + 5)]
    assert order(decided(asked(), [place("a")], standing, now=NOW + 6)) == ["a"]


def test_a_place_without_a_free_one_comes_last_but_is_not_refused() -> None:
    decision = decided(asked(), [place("a", "0.01"), place("b", "1")], {"a": Standing(active=8, max_active=8)})
    assert order(decision) == ["b", "a"]
    assert "all 8 places taken" in decision.candidates[1].reason


def test_scores_are_doublings_from_the_best() -> None:
    decision = decided(asked(), [place("a", "0.099"), place("b", "0.199"), place("c", "0.399")])
    assert [candidate.score for candidate in decision.candidates] == pytest.approx([0, 1, 2])


def test_the_policy_and_who_chose_it_are_in_the_decision() -> None:
    decision = decided(asked(policy="latency", policy_source="key"), [place("a")])
    assert (decision.policy.name, decision.policy_source) == ("latency", "key")


def test_a_size_that_is_made_otherwise_is_priced_as_it_is_made() -> None:
    by_area = place("a", Price(per_megapixel=Decimal(1)))
    (candidate,) = decided(asked(size=Size(1000, 1000), megapixels=Decimal(1)), [by_area]).candidates
    assert candidate.price == Decimal(992 * 992) / 1_000_000
    assert [str(loss) for loss in candidate.losses] == ["size 1000x1000 becomes 992x992"]
