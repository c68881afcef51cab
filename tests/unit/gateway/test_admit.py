"""The queue's bound and the callers' rates."""

from __future__ import annotations

import pytest

from kleinbild.core.callers import LOCAL, Caller, Limits
from kleinbild.gateway.errors import ApiError
from kleinbild.gateway.flow.admit import Admission


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


def caller(name: str = "a", **limits: int) -> Caller:
    return Caller(name, owner=name, project=name, limits=Limits(**limits))


def refused(admission: Admission, who: Caller, num_pictures: int = 1) -> ApiError:
    with pytest.raises(ApiError) as caught:
        admission.admit(who, "refused", num_pictures)
    assert "refused" not in admission._jobs
    return caught.value


def test_a_full_queue_says_when_to_come_again_and_room_is_made_by_what_ends() -> None:
    admission = Admission(max_queue=2)
    admission.admit(LOCAL, "one", 1)
    admission.admit(LOCAL, "two", 3)
    error = refused(admission, LOCAL)
    assert (error.status, error.code) == (429, "queue_full")
    assert int(error.headers["Retry-After"]) >= 1
    admission.ended("one", 0.5)
    admission.admit(LOCAL, "three", 1)
    assert (admission.num_jobs, admission.num_pictures) == (2, 4)


def test_ending_twice_frees_one_place() -> None:
    admission = Admission(max_queue=1)
    admission.admit(LOCAL, "one", 1)
    admission.ended("one")
    admission.ended("one")
    admission.admit(LOCAL, "two", 1)
    assert refused(admission, LOCAL).status == 429


def test_what_is_resumed_after_a_restart_counts_even_beyond_the_bound() -> None:
    admission = Admission(max_queue=1)
    admission.resume("a", "one", 1)
    admission.resume("a", "two", 1)
    assert admission.num_jobs == 2
    assert refused(admission, LOCAL).status == 429


def test_a_rate_lets_a_minutes_worth_through_at_once_and_the_rest_as_time_goes(clock: Clock) -> None:
    admission = Admission(100, clock=clock)
    who = caller(requests_per_minute=6)
    for number in range(6):
        admission.admit(who, str(number), 1)
    error = refused(admission, who)
    assert (error.status, error.code, error.headers["Retry-After"]) == (429, "rate_limit_exceeded", "10")
    clock.now += 9.9
    assert refused(admission, who).headers["Retry-After"] == "1"
    clock.now += 0.2
    admission.admit(who, "later", 1)
    admission.admit(caller("b", requests_per_minute=6), "of another", 1)


def test_pictures_are_counted_and_a_refused_request_takes_nothing(clock: Clock) -> None:
    admission = Admission(100, clock=clock)
    who = caller(requests_per_minute=10, images_per_minute=4)
    admission.admit(who, "three", 3)
    assert refused(admission, who, 2).status == 429
    assert {rate.name: rate.remaining for rate in admission.rates(who)} == {"requests": 9, "images": 1}
    admission.admit(who, "one", 1)


def test_more_pictures_than_a_minute_allows_can_never_come_in(clock: Clock) -> None:
    error = refused(Admission(100, clock=clock), caller(images_per_minute=4), 5)
    assert (error.status, error.param) == (400, "n")


def test_jobs_at_once_are_the_callers_own() -> None:
    admission = Admission(100)
    admission.admit(caller("a", concurrent_jobs=1), "one", 1)
    assert "allowed are 1" in refused(admission, caller("a", concurrent_jobs=1)).message
    admission.admit(caller("b", concurrent_jobs=1), "two", 1)


def test_the_servers_limits_hold_for_callers_without_their_own_and_can_change(clock: Clock) -> None:
    admission = Admission(100, Limits(requests_per_minute=1), clock=clock)
    admission.admit(caller("a"), "one", 1)
    assert refused(admission, caller("a")).status == 429
    admission.admit(caller("b", requests_per_minute=2), "two", 1)
    admission.set_limits(100, Limits(requests_per_minute=60))
    admission.admit(caller("a"), "three", 1)


def test_rates_say_when_they_are_full_again(clock: Clock) -> None:
    admission = Admission(100, clock=clock)
    who = caller(requests_per_minute=60)
    admission.admit(who, "one", 1)
    (rate,) = admission.rates(who)
    assert (rate.limit, rate.remaining, rate.reset_seconds) == (60, 59, pytest.approx(1.0))
    assert admission.rates(LOCAL) == []


def test_the_expected_time_follows_what_pictures_take() -> None:
    admission = Admission(100)
    for number in range(50):
        admission.admit(LOCAL, str(number), 1)
        admission.ended(str(number), 0.1)
    admission.admit(LOCAL, "three", 3)
    assert admission.expected_seconds() == pytest.approx(0.4, rel=0.05)


def test_keys_below_a_limited_one_share_its_limits(clock: Clock) -> None:
    """Else whoever has a limit would make himself another key, and have it once more."""
    above = caller(requests_per_minute=2, images_per_minute=9, concurrent_jobs=2)
    children = [
        Caller(name, "o", "p", limits=above.limits, above=((above.id, above.limits),))
        for name in ("one", "two", "three")
    ]
    admission = Admission(max_queue=9, clock=clock)
    admission.admit(children[0], "first", 1)
    admission.admit(children[1], "second", 1)
    assert "2 of your jobs" in refused(admission, children[2]).message
    assert "2 of your jobs" in refused(admission, above).message
    admission.ended("first")
    admission.ended("second")
    assert "2 requests a minute" in refused(admission, children[2]).message
    assert [(rate.name, rate.remaining) for rate in admission.rates(children[2])] == [("requests", 0), ("images", 7)]
    clock.now += 60
    admission.admit(children[2], "third", 1)


def test_room_can_be_asked_for_without_taking_any(clock: Clock) -> None:
    admission = Admission(1, clock=clock)
    who = caller(requests_per_minute=2)
    for _ in range(5):
        admission.require_room(who)
    assert [rate.remaining for rate in admission.rates(who)] == [2]
    admission.admit(who, "one", 1)
    with pytest.raises(ApiError, match="the queue is full"):
        admission.require_room(who)
