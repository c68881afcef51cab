"""Token buckets in this process, and what a provider allows."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kleinbild.gateway.limits.counters import CountersError, Draw, Drawn
from kleinbild.gateway.limits.memory import MemoryCounters
from kleinbild.gateway.limits.providers import ProviderLimit, ProviderLimits
from kleinbild.gateway.routing.candidates import Standing
from kleinbild.providers.hosted import ProviderError
from tests.unit.gateway.fleets import deployment, fleet
from tests.unit.gateway.test_chain import _until

pytestmark = pytest.mark.anyio


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


async def test_a_draw_takes_of_all_buckets_or_of_none() -> None:
    counters = MemoryCounters(Clock())
    few, many = Draw("few", 2, 2), Draw("many", 10, 4)
    assert await counters.draw([few, many]) == Drawn(taken=True, levels=(0.0, 6.0))
    assert await counters.draw([few, many]) == Drawn(taken=False, levels=(0.0, 6.0))
    assert await counters.draw([many]) == Drawn(taken=True, levels=(2.0,))


async def test_an_amount_of_nothing_only_looks() -> None:
    counters = MemoryCounters(Clock())
    for _ in range(3):
        assert await counters.draw([Draw("a", 5)]) == Drawn(taken=True, levels=(5.0,))


async def test_a_bucket_says_when_there_is_enough() -> None:
    clock = Clock()
    counters, draw = MemoryCounters(clock), Draw("a", 60, 30)
    levels = [(await counters.draw([draw])).levels[0] for _ in range(3)]
    assert levels == [30, 0, 0]
    clock.now += draw.seconds_until(0.0)
    assert (await counters.draw([draw])).taken
    assert draw.seconds_until(30.0) == 0.0


@settings(deadline=None)
@given(
    st.lists(st.tuples(st.floats(0, 30), st.integers(1, 5)), max_size=80),
    st.integers(1, 20),
)
def test_never_more_is_let_through_than_the_limit_and_what_was_saved_up(
    requests: list[tuple[float, int]], limit: int
) -> None:
    async def run() -> None:
        clock = Clock()
        counters = MemoryCounters(clock)
        taken: list[tuple[float, int]] = []
        for wait, amount in requests:
            clock.now += wait
            if (await counters.draw([Draw("a", limit, amount)])).taken:
                taken.append((clock.now, amount))
        for first, (begin, _) in enumerate(taken):
            amounts = 0
            for end, amount in taken[first:]:
                amounts += amount
                assert amounts <= limit + limit * (end - begin) / 60 + 1e-6

    asyncio.run(run())


def limits(counters: MemoryCounters | None = None, **of_provider: int | None) -> ProviderLimits:
    return ProviderLimits({"bfl": ProviderLimit(**of_provider)}, counters)


def soon(seconds: float = 5.0) -> float:
    """A deadline."""
    return time.monotonic() + seconds


async def refused(bounded: ProviderLimits, images: int = 1, deadline: float | None = None) -> ProviderError:
    with pytest.raises(ProviderError) as caught:
        async with bounded.slot("bfl", images, soon(0.05) if deadline is None else deadline):
            pytest.fail("it got a slot")
    assert (caught.value.cause, caught.value.acceptance, caught.value.billed) == ("rate_limited", "refused", False)
    return caught.value


async def test_a_provider_without_limits_may_be_asked_as_often_as_one_likes() -> None:
    bounded = limits(max_active=1)
    async with bounded.slot("other", 99, soon()), bounded.slot("other", 99, soon()):
        assert bounded.active("other") == 2


async def test_no_more_are_asked_at_once_than_the_provider_takes_and_the_others_wait_in_line() -> None:
    bounded = limits(max_active=2)
    most, order = 0, []

    async def ask(number: int) -> None:
        nonlocal most
        async with bounded.slot("bfl", 1, soon()):
            most = max(most, bounded.active("bfl"))
            order.append(number)
            await asyncio.sleep(0.005)

    await asyncio.gather(*map(ask, range(7)))
    assert (most, order) == (2, list(range(7)))
    assert (bounded.active("bfl"), bounded.waiting("bfl")) == (0, 0)


async def test_whoever_would_not_get_a_slot_in_time_is_told_that_nothing_was_sent() -> None:
    bounded = limits(max_active=1)
    async with bounded.slot("bfl", 1, soon()):
        assert "takes 1 requests at once" in (await refused(bounded)).message
        await refused(bounded, deadline=soon(-1))
    async with bounded.slot("bfl", 1, soon(-1)):  # one that is free costs no time
        pass


async def test_a_slot_is_free_again_however_its_request_ended() -> None:
    bounded = limits(max_active=1)
    with pytest.raises(ZeroDivisionError):
        async with bounded.slot("bfl", 1, soon()):
            raise ZeroDivisionError
    async with bounded.slot("bfl", 1, soon()):
        waiter = asyncio.create_task(refused(bounded, deadline=soon()))
        await asyncio.sleep(0.005)
        assert bounded.waiting("bfl") == 1
        waiter.cancel()
        await asyncio.gather(waiter, return_exceptions=True)
        assert bounded.waiting("bfl") == 0
    async with bounded.slot("bfl", 1, soon()):
        assert bounded.active("bfl") == 1


async def test_who_is_let_in_while_he_goes_away_leaves_his_place_to_the_next() -> None:
    bounded = limits(max_active=1)
    async with bounded.slot("bfl", 1, soon()):
        going, staying = (asyncio.create_task(_hold(bounded)) for _ in range(2))
        await asyncio.sleep(0.005)
    going.cancel()  # his turn has come, and he has not had it yet
    await asyncio.gather(going, return_exceptions=True)
    await staying
    assert (bounded.active("bfl"), bounded.waiting("bfl")) == (0, 0)


async def _hold(bounded: ProviderLimits) -> None:
    async with bounded.slot("bfl", 1, soon()):
        await asyncio.sleep(0)


async def test_calls_under_way_count_on_over_a_change_of_configuration() -> None:
    now = fleet(deployment("bfl"), limits=limits(max_active=2))
    done = [asyncio.Event() for _ in range(6)]
    begun: list[int] = []

    async def ask(number: int) -> None:
        async with now.slot(now.deployments["bfl"], 1, 60):
            begun.append(number)
            await done[number].wait()

    def become(most: int | None) -> None:
        now.become(fleet(deployment("bfl"), limits=limits(max_active=most)))

    asking = [asyncio.create_task(ask(number)) for number in range(6)]
    await _until(lambda: begun == [0, 1])
    become(1)
    assert now.standings(0.0)["bfl"] == Standing(active=2, max_active=1)
    done[0].set()
    await asyncio.sleep(0.01)
    assert begun == [0, 1]
    done[1].set()
    await _until(lambda: begun == [0, 1, 2])
    become(3)
    await _until(lambda: begun == [0, 1, 2, 3, 4])
    become(None)
    await _until(lambda: len(begun) == 6)
    for each in done:
        each.set()
    await asyncio.gather(*asking)
    assert (now.limits.active("bfl"), now.limits.waiting("bfl")) == (0, 0)


async def test_what_was_taken_of_a_minute_stays_taken() -> None:
    bounded = limits(images_per_minute=10)
    async with bounded.slot("bfl", 10, soon()):
        bounded.become(limits(images_per_minute=10))
    assert "10 images a minute" in (await refused(bounded)).message


async def test_who_would_have_to_wait_too_long_for_the_next_minute_is_told_at_once() -> None:
    bounded = limits(images_per_minute=10, max_active=1)
    async with bounded.slot("bfl", 10, soon()):
        pass
    error = await refused(bounded, 5, deadline=soon(20))
    assert "10 images a minute" in error.message
    assert error.retry_after == pytest.approx(30, abs=1)
    assert (bounded.active("bfl"), bounded.waiting("bfl")) == (0, 0)
    assert "10 images a minute, 11 were asked for" in (await refused(bounded, 11, deadline=soon(1000))).message


async def test_who_has_the_time_waits_for_it_and_a_large_request_is_not_overtaken() -> None:
    bounded = limits(images_per_minute=6000)  # 100 a second
    async with bounded.slot("bfl", 6000, soon()):
        pass
    order = []

    async def ask(name: str, images: int) -> None:
        async with bounded.slot("bfl", images, soon()):
            order.append(name)

    await asyncio.gather(ask("large", 10), *(ask("small", 1) for _ in range(3)))
    assert order == ["large", "small", "small", "small"]


async def test_whoever_waits_behind_others_waits_no_longer_than_he_has_time() -> None:
    bounded = limits(requests_per_minute=60)
    for _ in range(60):
        async with bounded.slot("bfl", 1, soon()):
            pass
    first = asyncio.create_task(refused(bounded, deadline=soon(5)))
    await asyncio.sleep(0.005)
    assert "none was let through in time" in (await refused(bounded, deadline=soon(0.02))).message
    first.cancel()
    await asyncio.gather(first, return_exceptions=True)
    assert bounded.waiting("bfl") == 0


async def test_a_provider_is_not_asked_while_nobody_counts() -> None:
    class Silent(MemoryCounters):
        async def draw(self, draws: Sequence[Draw]) -> Drawn:
            raise CountersError("nobody counts")

    assert "is not known" in (await refused(limits(Silent(), requests_per_minute=5))).message
