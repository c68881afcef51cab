"""When a place is left alone, and how it is tried again."""

from __future__ import annotations

import logging
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kleinbild.gateway.flow.circuits import OF_THE_OPERATOR, OF_THE_SERVICE, Circuits, Permit, Tolerance
from kleinbild.gateway.limits.providers import NoSlotError
from kleinbild.providers.hosted import Cause, ProviderError

TOLERANCE = Tolerance(open_seconds=10, max_open_seconds=60, operator_open_seconds=500)
PLACE = "klein at somebody's"
CAUSES: tuple[Cause, ...] = (
    "connection",
    "timeout",
    "rate_limited",
    "overloaded",
    "credentials",
    "credit",
    "invalid",
    "not_found",
    "moderated",
    "failed",
    "bad_answer",
    "cancelled",
)


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


class Drawn(Random):
    """Draws always the same."""

    def __init__(self, value: float) -> None:
        super().__init__()
        self.value = value

    def random(self) -> float:
        return self.value


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def circuits(clock: Clock) -> Circuits:
    return Circuits(TOLERANCE, clock=clock, rng=Drawn(1.0))


def error(cause: Cause = "overloaded", retry_after: float | None = None) -> ProviderError:
    return ProviderError("it is down", cause=cause, acceptance="refused", retry_after=retry_after)


def ask(circuits: Circuits, *causes: Cause | None) -> None:
    """Requests one after another, each with its failure or None."""
    for cause in causes:
        permit = circuits.allow(PLACE)
        assert permit is not None
        circuits.succeeded(permit) if cause is None else circuits.failed(permit, error(cause))


def permit(circuits: Circuits) -> Permit:
    given = circuits.allow(PLACE)
    assert given is not None
    return given


def test_a_place_of_which_nothing_is_known_may_be_asked(circuits: Circuits) -> None:
    assert circuits.state(PLACE) == "closed"
    assert circuits.allow(PLACE)


def test_failures_in_a_row_open_it_and_a_success_between_starts_the_row_anew(circuits: Circuits) -> None:
    ask(circuits, *["overloaded"] * 4, None, *["overloaded"] * 4)
    assert circuits.state(PLACE) == "closed"
    ask(circuits, "overloaded")
    assert circuits.state(PLACE) == "open"
    assert circuits.allow(PLACE) is None
    assert circuits.allow("another place")


def test_a_share_of_failures_opens_it_though_they_are_not_in_a_row(circuits: Circuits) -> None:
    ask(circuits, *[None, "timeout"] * 4, None)
    assert circuits.state(PLACE) == "closed"
    ask(circuits, "timeout")
    assert circuits.state(PLACE) == "open"


def test_failures_of_more_than_a_window_ago_are_forgotten(circuits: Circuits, clock: Clock) -> None:
    ask(circuits, *[None, "timeout"] * 4)
    clock.now += 61
    ask(circuits, None, "timeout")
    standing = circuits.standing(PLACE)
    assert (standing.state, standing.num_outcomes, standing.success_share) == ("closed", 2, 0.5)


@pytest.mark.parametrize("cause", sorted(set(CAUSES) - OF_THE_SERVICE))
def test_what_says_nothing_about_the_service_never_opens_it(circuits: Circuits, cause: Cause) -> None:
    ask(circuits, *[cause] * 100)
    assert circuits.state(PLACE) == "closed"
    assert circuits.standing(PLACE).num_outcomes == 0


@pytest.mark.parametrize("cause", sorted(OF_THE_SERVICE - OF_THE_OPERATOR))
def test_what_says_something_about_it_opens_it(circuits: Circuits, cause: Cause) -> None:
    ask(circuits, *[cause] * 5)
    assert circuits.state(PLACE) == "open"
    assert circuits.standing(PLACE).cause == cause


@pytest.mark.parametrize("cause", sorted(OF_THE_OPERATOR))
def test_what_the_operator_must_mend_opens_it_at_once_for_long_and_is_logged(
    circuits: Circuits, clock: Clock, cause: Cause, caplog: pytest.LogCaptureFixture
) -> None:
    ask(circuits, cause)
    assert [record.levelno for record in caplog.records] == [logging.ERROR]
    assert "the operator must mend that" in caplog.text
    clock.now += 499
    assert circuits.state(PLACE) == "open"
    clock.now += 12
    assert circuits.state(PLACE) == "half_open"


def test_our_own_limits_say_nothing_about_the_service(circuits: Circuits, clock: Clock) -> None:
    for _ in range(9):
        circuits.failed(permit(circuits), NoSlotError("it allows 10 requests a minute", retry_after=30))
    assert circuits.state(PLACE) == "closed"
    assert circuits.heard_at(PLACE) is None
    ask(circuits, *["overloaded"] * 5)
    clock.now += 10
    circuits.failed(permit(circuits), NoSlotError("it allows 10 requests a minute"))
    assert circuits.allow(PLACE)


def test_half_open_one_request_tries_it_and_if_that_goes_well_all_may(circuits: Circuits, clock: Clock) -> None:
    ask(circuits, *["overloaded"] * 5)
    clock.now += 10
    assert circuits.state(PLACE) == "half_open"
    assert circuits.would_allow(PLACE)
    trial = permit(circuits)
    assert trial.trial
    assert not circuits.would_allow(PLACE)
    assert circuits.allow(PLACE) is None
    circuits.succeeded(trial)
    assert circuits.state(PLACE) == "closed"
    assert not permit(circuits).trial


def test_a_trial_that_fails_leaves_it_alone_for_longer_up_to_a_bound(circuits: Circuits, clock: Clock) -> None:
    ask(circuits, *["overloaded"] * 5)
    opened = []
    for _ in range(5):
        opened.append(circuits.standing(PLACE).retry_seconds)
        clock.now += opened[-1]
        ask(circuits, "timeout")
    assert opened == [10, 20, 40, 60, 60]


def test_the_time_is_drawn_so_that_not_all_come_back_together(clock: Clock) -> None:
    seconds = []
    for drawn in (0.1, 0.5, 0.9):
        circuits = Circuits(TOLERANCE, clock=clock, rng=Drawn(drawn))
        ask(circuits, *["overloaded"] * 5)
        seconds.append(round(circuits.standing(PLACE).retry_seconds, 6))
    assert seconds == [1, 5, 9]


def test_a_trial_that_tells_nothing_makes_way_for_another(circuits: Circuits, clock: Clock) -> None:
    ask(circuits, *["overloaded"] * 5)
    clock.now += 10
    circuits.failed(permit(circuits), error("moderated"))
    circuits.released(permit(circuits))
    assert circuits.state(PLACE) == "half_open"
    circuits.succeeded(permit(circuits))
    assert circuits.state(PLACE) == "closed"


def test_a_trial_that_is_never_heard_of_is_given_up_and_its_late_answer_is_old_news(
    circuits: Circuits, clock: Clock
) -> None:
    ask(circuits, *["overloaded"] * 5)
    clock.now += 10
    lost = permit(circuits)
    clock.now += TOLERANCE.trial_seconds
    second = permit(circuits)
    circuits.released(lost)
    circuits.succeeded(lost)
    assert circuits.state(PLACE) == "half_open"
    assert circuits.allow(PLACE) is None
    circuits.succeeded(second)
    assert circuits.state(PLACE) == "closed"


def test_answers_of_requests_from_before_it_opened_change_nothing(circuits: Circuits, clock: Clock) -> None:
    early = [permit(circuits) for _ in range(9)]
    for each in early[:5]:
        circuits.failed(each, error())
    retry_seconds = circuits.standing(PLACE).retry_seconds
    circuits.failed(early[5], error())
    circuits.succeeded(early[6])
    assert circuits.standing(PLACE).retry_seconds == retry_seconds
    clock.now += retry_seconds
    trial = permit(circuits)
    circuits.succeeded(early[7])
    circuits.failed(early[8], error())
    assert circuits.state(PLACE) == "half_open"
    circuits.succeeded(trial)
    assert circuits.state(PLACE) == "closed"


def test_a_service_that_says_when_to_come_again_is_left_alone_until_then(circuits: Circuits, clock: Clock) -> None:
    circuits.failed(permit(circuits), error("rate_limited", retry_after=7.0))
    assert circuits.state(PLACE) == "open"
    assert circuits.standing(PLACE).retry_seconds >= 7
    clock.now += 6.9
    assert circuits.allow(PLACE) is None
    clock.now += 1
    assert circuits.state(PLACE) == "closed"  # it is not broken: no trial


def test_a_time_to_come_again_is_kept_when_it_opens_and_is_bounded(circuits: Circuits) -> None:
    early = [permit(circuits) for _ in range(5)]
    for each in early:
        circuits.failed(each, error("overloaded", retry_after=1e9))
    assert circuits.standing(PLACE).retry_seconds == 60 + 10


def test_a_check_that_went_well_lets_a_request_try_at_once_where_it_could_show_what_was_wrong(
    circuits: Circuits,
) -> None:
    ask(circuits, *["connection"] * 5)
    circuits.probed(PLACE, None)
    assert circuits.state(PLACE) == "half_open"
    circuits.failed(permit(circuits), error("overloaded"))
    circuits.probed(PLACE, None)
    assert circuits.state(PLACE) == "open"


def test_credit_is_not_believed_to_be_back_because_the_service_can_be_reached(circuits: Circuits) -> None:
    ask(circuits, "credit")
    circuits.probed(PLACE, None)
    assert circuits.state(PLACE) == "open"


def test_checks_that_fail_open_it_without_a_request(circuits: Circuits) -> None:
    for _ in range(5):
        circuits.probed(PLACE, error("connection"))
    assert circuits.state(PLACE) == "open"


def test_a_check_that_fails_does_not_decide_in_place_of_a_trial_under_way(circuits: Circuits, clock: Clock) -> None:
    ask(circuits, *["overloaded"] * 5)
    clock.now += 10
    trial = permit(circuits)
    circuits.probed(PLACE, error("connection"))
    circuits.succeeded(trial)
    assert circuits.state(PLACE) == "closed"


def test_a_permit_need_not_be_kept_its_place_is_enough(circuits: Circuits, clock: Clock) -> None:
    for _ in range(5):
        assert circuits.allow(PLACE)
        circuits.failed(PLACE, error())
    assert circuits.state(PLACE) == "open"
    circuits.succeeded(PLACE)
    assert circuits.state(PLACE) == "open"
    clock.now += 10
    assert circuits.allow(PLACE)
    circuits.released(PLACE)
    assert circuits.allow(PLACE)
    assert not circuits.allow(PLACE)
    circuits.succeeded(PLACE)
    assert circuits.state(PLACE) == "closed"


def test_it_knows_when_a_place_was_heard_of(circuits: Circuits, clock: Clock) -> None:
    assert circuits.heard_at(PLACE) is None
    ask(circuits, "moderated")
    assert circuits.heard_at(PLACE) == clock.now


STEPS = st.one_of(
    st.tuples(st.just("ask"), st.none()),
    st.tuples(st.just("end"), st.tuples(st.integers(0, 50), st.sampled_from([None, "released", *CAUSES]))),
    st.tuples(st.just("wait"), st.floats(0, 200)),
    st.tuples(st.just("check"), st.sampled_from([None, "connection", "credentials"])),
)


@settings(deadline=None, max_examples=200)
@given(st.lists(STEPS, max_size=60), st.floats(0, 1))
def test_there_are_never_two_trials_at_once_and_no_circuit_is_stuck(steps: list, drawn: float) -> None:
    clock = Clock()
    tolerance = Tolerance(consecutive=2, trial_seconds=1e9)
    circuits = Circuits(tolerance, clock=clock, rng=Drawn(drawn))
    under_way: list[Permit] = []
    for step, what in steps:
        if step == "ask" and (given := circuits.allow(PLACE)):
            under_way.append(given)
        elif step == "wait":
            clock.now += what
        elif step == "check":
            circuits.probed(PLACE, error(what) if what else None)
        elif step == "end" and under_way:
            number, how = what
            ended = under_way.pop(number % len(under_way))
            if how is None:
                circuits.succeeded(ended)
            elif how == "released":
                circuits.released(ended)
            else:
                circuits.failed(ended, error(how))
        assert sum(each.trial for each in under_way) <= 1
    for each in under_way:
        circuits.released(each)
    clock.now += 10_000
    ask(circuits, None)
    assert circuits.state(PLACE) == "closed"
