"""Seconds that are learned, and how often a place succeeds."""

from __future__ import annotations

import json
from decimal import Decimal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kleinbild.core.prices import Measure
from kleinbild.gateway.routing.predict import MOST_SECONDS, Ending, Predictor
from tests.unit.gateway.routing.places import NOW, place

SMALL = Measure(images=1, megapixels=Decimal(512 * 512) / 1_000_000)
LARGE = Measure(images=4, megapixels=Decimal(2048 * 2048) / 1_000_000)
HERE = place("a", max_images=4)
DAY = 24 * 3600


def seen(*calls: tuple[Measure, float], ending: Ending = "done") -> Predictor:
    predictor = Predictor()
    for number, (measure, seconds) in enumerate(calls):
        predictor.observe(HERE, measure, seconds, NOW - len(calls) + number, ending)
    return predictor


@settings(max_examples=60, deadline=None)
@given(
    small=st.floats(0.3, 30),
    large=st.floats(1, 3600),
    few=st.integers(5, 20),
    many=st.integers(1, 60),
)
def test_large_calls_never_poison_the_estimate_of_small_ones(small: float, large: float, few: int, many: int) -> None:
    predictor = seen(*[(SMALL, small)] * few)
    before = predictor.predict(HERE, SMALL, NOW).p50
    for number in range(many):
        predictor.observe(HERE, LARGE, large, NOW - many + number, "done")
    after = predictor.predict(HERE, SMALL, NOW).p50
    assert after == pytest.approx(before, rel=0.15)
    assert after == pytest.approx(small, rel=0.3)


@settings(max_examples=40, deadline=None)
@given(st.floats(0.5, 120), st.integers(6, 20), st.lists(st.floats(1e-9, 1e12), max_size=5))
def test_outliers_do_not_move_it_far(usual: float, times: int, wild: list[float]) -> None:
    predictor = seen(*[(SMALL, usual)] * times, *[(SMALL, seconds) for seconds in wild])
    assert predictor.predict(HERE, SMALL, NOW).p50 == pytest.approx(usual, rel=0.5)
    assert predictor.predict(HERE, SMALL, NOW).high <= 2 * MOST_SECONDS


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.sampled_from([SMALL, LARGE, Measure()]), st.floats(0.01, 5000)), max_size=30),
    st.sampled_from([SMALL, LARGE, Measure(images=2)]),
)
def test_a_prediction_is_a_range_around_its_middle(calls: list[tuple[Measure, float]], measure: Measure) -> None:
    prediction = seen(*calls).predict(HERE, measure, NOW)
    assert 0 < prediction.low <= prediction.p50 <= prediction.high < float("inf")


def test_nothing_seen_follows_the_prior_with_a_wide_range() -> None:
    prediction = Predictor().predict(HERE, SMALL, NOW)
    assert prediction.samples == 0
    assert prediction.high / prediction.low > 5
    assert Predictor().predict(HERE, LARGE, NOW).p50 > 2 * prediction.p50


def test_one_observation_says_more_than_the_prior() -> None:
    assert seen((SMALL, 300.0)).predict(HERE, SMALL, NOW).p50 > 100


def test_what_was_seen_of_one_size_scales_to_another() -> None:
    predictor, plain = seen(*[(Measure(), 50.0)] * 20), Predictor()
    factor = predictor.predict(HERE, Measure(), NOW).p50 / plain.predict(HERE, Measure(), NOW).p50
    large = predictor.predict(HERE, LARGE, NOW).p50 / plain.predict(HERE, LARGE, NOW).p50
    assert large == pytest.approx(factor, rel=0.5)


def test_the_range_narrows_to_what_is_seen_and_holds_nine_of_ten() -> None:
    times = [1.0 + 0.1 * (number % 10) for number in range(24)]
    prediction = seen(*[(SMALL, seconds) for seconds in times]).predict(HERE, SMALL, NOW)
    assert prediction.samples == 24
    assert sum(prediction.low <= seconds <= prediction.high for seconds in times) >= 21
    assert prediction.high < 3.5


def test_a_place_that_became_slow_is_found_out() -> None:
    predictor = seen(*[(SMALL, 1.0)] * 24, *[(SMALL, 10.0)] * 16)
    assert predictor.predict(HERE, SMALL, NOW).p50 == pytest.approx(10, rel=0.2)


def test_a_timeout_counts_as_at_least_its_seconds() -> None:
    calls = [(SMALL, 2.0)] * 8
    cut_late = seen(*calls)
    for number in range(10):
        cut_late.observe(HERE, SMALL, 60.0, NOW + number, "timed_out")
    assert cut_late.predict(HERE, SMALL, NOW).p50 > 10
    cut_early = seen(*calls)
    for number in range(10):
        cut_early.observe(HERE, SMALL, 0.1, NOW + number, "timed_out")
    assert cut_early.predict(HERE, SMALL, NOW).p50 == pytest.approx(2.0, rel=0.1)


def test_a_quick_refusal_does_not_look_quick() -> None:
    predictor = seen(*[(SMALL, 5.0)] * 8)
    for number in range(20):
        predictor.observe(HERE, SMALL, 0.05, NOW + number, "failed")
    assert predictor.predict(HERE, SMALL, NOW).p50 == pytest.approx(5.0, rel=0.2)


def test_old_evidence_fades_until_the_prior_speaks_again() -> None:
    predictor, prior = seen(*[(SMALL, 200.0)] * 20), Predictor().predict(HERE, SMALL, NOW).p50
    assert predictor.predict(HERE, SMALL, NOW + DAY).p50 > 100
    assert predictor.predict(HERE, SMALL, NOW + 30 * DAY).p50 == pytest.approx(prior, rel=0.1)


def test_new_evidence_outweighs_what_is_days_old() -> None:
    predictor = Predictor()
    for number in range(20):
        predictor.observe(HERE, SMALL, 20.0, NOW - 5 * DAY + number, "done")
    for number in range(3):
        predictor.observe(HERE, SMALL, 2.0, NOW - number, "done")
    assert predictor.predict(HERE, SMALL, NOW).p50 == pytest.approx(2.0, rel=0.3)


def test_steps_references_and_pictures_of_a_call_make_it_longer() -> None:
    predictor = Predictor()
    base = predictor.predict(HERE, Measure(), NOW).p50
    for more in (Measure(steps=50), Measure(references=3), Measure(images=4), Measure(megapixels=Decimal(4))):
        assert predictor.predict(HERE, more, NOW).p50 > base


def test_steps_that_a_place_does_not_take_do_not_count() -> None:
    fixed = place("b", parameters=frozenset())
    assert Predictor().predict(fixed, Measure(steps=50), NOW) == Predictor().predict(fixed, Measure(), NOW)


def test_reliability_is_learned_and_fades() -> None:
    good, bad = seen(*[(SMALL, 1.0)] * 50), seen(*[(SMALL, 1.0)] * 50, ending="failed")
    assert Predictor().reliability("a", NOW) == pytest.approx(0.95)
    assert good.reliability("a", NOW) > 0.98
    assert bad.reliability("a", NOW) < 0.2
    assert bad.reliability("a", NOW + 2 * DAY) == pytest.approx(0.95, abs=0.01)
    assert bad.reliability("another", NOW) == pytest.approx(0.95)


def test_what_was_seen_outlives_the_process() -> None:
    before = seen((SMALL, 3.0), (LARGE, 40.0), (SMALL, 4.0))
    before.observe(HERE, SMALL, 1.0, NOW, "failed")
    state = json.loads(json.dumps(before.to_json()))
    after = Predictor()
    after.merge(state)
    after.merge(state)
    assert after.to_json() == before.to_json()
    for measure in (SMALL, LARGE):
        assert after.predict(HERE, measure, NOW) == before.predict(HERE, measure, NOW)
    assert after.reliability("a", NOW) == before.reliability("a", NOW)


def test_the_state_stays_small() -> None:
    predictor = Predictor()
    for number in range(3000):
        predictor.observe(HERE, SMALL if number % 2 else LARGE, 1 + number % 7, NOW + number, "done")
    assert len(json.dumps(predictor.to_json())) < 10_000
