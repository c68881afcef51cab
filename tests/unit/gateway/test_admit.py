"""The queue's bound and the callers' rates."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest

from kleinbild.core.callers import LOCAL, Caller, Limits
from kleinbild.core.jobs import ImageWork
from kleinbild.core.sizes import Size
from kleinbild.gateway.errors import ApiError
from kleinbild.gateway.flow.admit import Admission, megapixels
from kleinbild.gateway.limits.counters import CountersError, Draw, Drawn
from kleinbild.gateway.limits.memory import MemoryCounters

pytestmark = pytest.mark.anyio


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


def caller(name: str = "a", **limits: int) -> Caller:
    return Caller(name, owner=name, project=name, limits=Limits(**limits))


async def refused(admission: Admission, who: Caller, num_pictures: int = 1, megapixels: float = 0.0) -> ApiError:
    with pytest.raises(ApiError) as caught:
        await admission.admit(who, "refused", num_pictures, megapixels)
    assert "refused" not in admission._jobs
    return caught.value


async def test_a_full_queue_says_when_to_come_again_and_room_is_made_by_what_ends() -> None:
    admission = Admission(max_queue=2)
    await admission.admit(LOCAL, "one", 1)
    await admission.admit(LOCAL, "two", 3)
    error = await refused(admission, LOCAL)
    assert (error.status, error.code) == (429, "queue_full")
    assert int(error.headers["Retry-After"]) >= 1
    admission.ended("one", 0.5)
    await admission.admit(LOCAL, "three", 1)
    assert (admission.num_jobs, admission.num_pictures) == (2, 4)


async def test_ending_twice_frees_one_place() -> None:
    admission = Admission(max_queue=1)
    await admission.admit(LOCAL, "one", 1)
    admission.ended("one")
    admission.ended("one")
    await admission.admit(LOCAL, "two", 1)
    assert (await refused(admission, LOCAL)).status == 429


async def test_what_is_resumed_after_a_restart_counts_even_beyond_the_bound() -> None:
    admission = Admission(max_queue=1)
    admission.resume("a", "one", 1)
    admission.resume("a", "two", 1)
    assert admission.num_jobs == 2
    assert (await refused(admission, LOCAL)).status == 429


async def test_a_rate_lets_a_minutes_worth_through_at_once_and_the_rest_as_time_goes(clock: Clock) -> None:
    admission = Admission(100, counters=MemoryCounters(clock))
    who = caller(requests_per_minute=6)
    for number in range(6):
        await admission.admit(who, str(number), 1)
    error = await refused(admission, who)
    assert (error.status, error.code, error.headers["Retry-After"]) == (429, "rate_limit_exceeded", "10")
    clock.now += 9.9
    assert (await refused(admission, who)).headers["Retry-After"] == "1"
    clock.now += 0.2
    await admission.admit(who, "later", 1)
    await admission.admit(caller("b", requests_per_minute=6), "of another", 1)


async def test_pictures_are_counted_and_a_refused_request_takes_nothing(clock: Clock) -> None:
    admission = Admission(100, counters=MemoryCounters(clock))
    who = caller(requests_per_minute=10, images_per_minute=4)
    await admission.admit(who, "three", 3)
    assert (await refused(admission, who, 2)).status == 429
    assert {rate.name: rate.remaining for rate in await admission.rates(who)} == {"requests": 9, "images": 1}
    await admission.admit(who, "one", 1)


async def test_more_pictures_than_a_minute_allows_can_never_come_in(clock: Clock) -> None:
    error = await refused(Admission(100, counters=MemoryCounters(clock)), caller(images_per_minute=4), 5)
    assert (error.status, error.param) == (400, "n")


async def test_jobs_at_once_are_the_callers_own() -> None:
    admission = Admission(100)
    await admission.admit(caller("a", concurrent_jobs=1), "one", 1)
    assert "allowed are 1" in (await refused(admission, caller("a", concurrent_jobs=1))).message
    await admission.admit(caller("b", concurrent_jobs=1), "two", 1)


async def test_the_servers_limits_hold_for_callers_without_their_own_and_can_change(clock: Clock) -> None:
    admission = Admission(100, Limits(requests_per_minute=1), counters=MemoryCounters(clock))
    await admission.admit(caller("a"), "one", 1)
    assert (await refused(admission, caller("a"))).status == 429
    await admission.admit(caller("b", requests_per_minute=2), "two", 1)
    admission.set_limits(100, Limits(requests_per_minute=60))
    await admission.admit(caller("a"), "three", 1)


async def test_rates_say_when_they_are_full_again(clock: Clock) -> None:
    admission = Admission(100, counters=MemoryCounters(clock))
    who = caller(requests_per_minute=60)
    await admission.admit(who, "one", 1)
    (rate,) = await admission.rates(who)
    assert (rate.limit, rate.remaining, rate.reset_seconds) == (60, 59, pytest.approx(1.0))
    assert await admission.rates(LOCAL) == []


async def test_the_expected_time_follows_what_pictures_take() -> None:
    admission = Admission(100)
    for number in range(50):
        await admission.admit(LOCAL, str(number), 1)
        admission.ended(str(number), 0.1)
    await admission.admit(LOCAL, "three", 3)
    assert admission.expected_seconds() == pytest.approx(0.4, rel=0.05)


async def test_keys_below_a_limited_one_share_its_limits(clock: Clock) -> None:
    """Else whoever has a limit would make himself another key, and have it once more."""
    above = caller(requests_per_minute=2, images_per_minute=9, concurrent_jobs=2)
    children = [
        Caller(name, "o", "p", limits=above.limits, above=((above.id, above.limits),))
        for name in ("one", "two", "three")
    ]
    admission = Admission(max_queue=9, counters=MemoryCounters(clock))
    await admission.admit(children[0], "first", 1)
    await admission.admit(children[1], "second", 1)
    assert "2 of your jobs" in (await refused(admission, children[2])).message
    assert "2 of your jobs" in (await refused(admission, above)).message
    admission.ended("first")
    admission.ended("second")
    assert "2 requests a minute" in (await refused(admission, children[2])).message
    assert [(rate.name, rate.remaining) for rate in await admission.rates(children[2])] == [
        ("requests", 0),
        ("images", 7),
    ]
    clock.now += 60
    await admission.admit(children[2], "third", 1)


async def test_room_can_be_asked_for_without_taking_any(clock: Clock) -> None:
    admission = Admission(1, counters=MemoryCounters(clock))
    who = caller(requests_per_minute=2)
    for _ in range(5):
        await admission.require_room(who)
    assert [rate.remaining for rate in await admission.rates(who)] == [2]
    await admission.admit(who, "one", 1)
    with pytest.raises(ApiError, match="the queue is full"):
        await admission.require_room(who)


async def test_large_pictures_take_more_of_the_megapixels(clock: Clock) -> None:
    admission = Admission(100, counters=MemoryCounters(clock))
    who = caller(megapixels_per_minute=6)
    await admission.admit(who, "four", 1, 4.0)
    error = await refused(admission, who, 1, 2.5)
    assert (error.status, error.code, error.headers["Retry-After"]) == (429, "rate_limit_exceeded", "5")
    await admission.admit(who, "one", 1, 1.5)
    assert [(rate.name, rate.limit, rate.remaining) for rate in await admission.rates(who)] == [("megapixels", 6, 0)]


async def test_more_megapixels_than_a_minute_allows_can_never_come_in(clock: Clock) -> None:
    who = caller(megapixels_per_minute=6, images_per_minute=9)
    error = await refused(Admission(100, counters=MemoryCounters(clock)), who, 2, 8.4)
    assert (error.status, error.param) == (400, "size")
    assert "8.4 megapixels, your key allows 6" in error.message


def test_the_megapixels_of_a_request_are_those_of_all_its_pictures() -> None:
    work = ImageWork("image.generate", "a fox", "nano", seed=1, n=3, size=Size(2000, 1000))
    assert megapixels(work) == 6.0
    assert megapixels(ImageWork("image.generate", "a fox", "nano", seed=1)) == pytest.approx(1.05, abs=0.01)


class Silent:
    """Counters that are away."""

    asked = 0

    async def draw(self, draws: object) -> Drawn:
        self.asked += 1
        raise CountersError("nobody counts")

    async def close(self) -> None:
        pass


async def test_while_nobody_counts_no_limited_request_comes_in_and_no_answer_is_lost() -> None:
    admission = Admission(100, counters=Silent())
    error = await refused(admission, caller(requests_per_minute=5))
    assert (error.status, error.code, error.headers["Retry-After"]) == (503, "limits_unavailable", "5")
    with pytest.raises(ApiError, match="nobody counts"):
        await admission.require_room(caller(requests_per_minute=5))
    assert await admission.rates(caller(requests_per_minute=5)) == []
    assert admission.num_jobs == 0


async def test_whoever_has_no_limits_is_not_counted() -> None:
    counters = Silent()
    admission = Admission(100, counters=counters)
    await admission.admit(caller(concurrent_jobs=1), "one", 1)
    assert await admission.rates(LOCAL) == []
    assert counters.asked == 0


async def test_of_two_that_come_at_once_one_gets_the_last_place() -> None:
    """While the counters are asked, others come in."""

    class Slow(MemoryCounters):
        async def draw(self, draws: Sequence[Draw]) -> Drawn:
            await asyncio.sleep(0)
            return await super().draw(draws)

    admission = Admission(1, counters=Slow())
    who = caller(requests_per_minute=5)
    came = await asyncio.gather(*(admission.admit(who, str(number), 1) for number in range(3)), return_exceptions=True)
    assert [isinstance(each, ApiError) for each in came] == [False, True, True]
    assert admission.num_jobs == 1
