"""When a second request may be sent for a slow one."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from kleinbild.gateway.flow.hedging import Hedges, hedge_after


def test_a_place_of_which_too_little_is_known_is_not_hedged() -> None:
    assert hedge_after(None, 600.0) is None


def test_there_is_none_when_the_second_would_have_no_time() -> None:
    assert hedge_after(20.0, 39.0) is None
    assert hedge_after(20.0, 40.0) == 20.0


def test_of_twenty_requests_one_is_hedged() -> None:
    hedges = Hedges()
    fired = 0
    for number in range(1, 201):
        hedges.seen()
        fired += hedges.fired()
        assert fired == number // 20


def test_whoever_was_slower_does_not_fire() -> None:
    hedges = Hedges(share=1.0, burst=1)
    hedges.seen()
    assert hedges.may_fire()
    assert hedges.fired()
    assert not hedges.may_fire()
    assert not hedges.fired()


def test_what_was_withdrawn_can_be_fired_by_another() -> None:
    hedges = Hedges(share=1.0)
    hedges.seen()
    assert hedges.fired()
    hedges.withdrawn()
    assert hedges.fired()
    assert not hedges.fired()


def test_a_long_quiet_time_saves_up_no_more_than_a_burst() -> None:
    hedges = Hedges(share=0.5, burst=3)
    for _ in range(1000):
        hedges.seen()
    assert sum(hedges.fired() for _ in range(10)) == 3


@given(st.lists(st.booleans(), max_size=300), st.sampled_from([0.01, 0.05, 0.3, 1.0]), st.integers(1, 8))
def test_hedges_are_never_more_than_their_share_of_any_run_of_requests(
    slow: list[bool], share: float, burst: int
) -> None:
    hedges = Hedges(share, burst)
    fired = []
    for each in slow:
        hedges.seen()
        fired.append(each and hedges.fired())
    assert sum(fired) <= share * len(fired) + 1e-6
    for start in range(0, len(fired), 7):
        assert sum(fired[start:]) <= share * (len(fired) - start) + burst + 1e-6
