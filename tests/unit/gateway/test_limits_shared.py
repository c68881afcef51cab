"""Counters that several gateways share, in a real Valkey."""

from __future__ import annotations

import asyncio
import logging
import socket
import sys
import time
from asyncio.subprocess import PIPE
from collections.abc import AsyncIterator, Iterator
from itertools import count
from pathlib import Path

import pytest

from kleinbild.core.callers import Caller, Limits
from kleinbild.gateway.errors import ApiError
from kleinbild.gateway.flow.admit import Admission
from kleinbild.gateway.lifespan import open_counters
from kleinbild.gateway.limits.counters import CountersError, Draw
from kleinbild.gateway.limits.memory import MemoryCounters
from kleinbild.gateway.limits.providers import ProviderLimit, ProviderLimits
from kleinbild.gateway.limits.shared import SharedCounters, open_shared, place_of
from kleinbild.providers.hosted import ProviderError
from tests.valkey import Valkey, valkey

pytestmark = pytest.mark.anyio
_names = count()

OTHER_GATEWAY = """
import asyncio, sys
from kleinbild.gateway.limits.counters import Draw
from kleinbild.gateway.limits.shared import open_shared

async def run(url, bucket, limit):
    counters = await open_shared(url)
    print("ready", flush=True)
    sys.stdin.readline()
    drawn = await asyncio.gather(*(counters.draw([Draw(bucket, limit, 1)]) for _ in range(200)))
    await counters.close()
    print(sum(each.taken for each in drawn))

asyncio.run(run(sys.argv[1], sys.argv[2], int(sys.argv[3])))
"""


@pytest.fixture(scope="module")
def server() -> Iterator[Valkey]:
    with valkey() as running:
        yield running


@pytest.fixture
async def counters(anyio_backend: str, server: Valkey) -> AsyncIterator[SharedCounters]:
    opened = await open_shared(server.url)
    yield opened
    await opened.close()


@pytest.fixture
def name() -> str:
    """A bucket that no other test knows."""
    return f"test-{next(_names)}"


async def test_a_draw_takes_of_all_buckets_or_of_none(counters: SharedCounters, name: str) -> None:
    few, many = Draw(f"{name} few", 2, 2), Draw(f"{name} many", 10, 4)
    first = await counters.draw([few, many])
    assert (first.taken, first.levels) == (True, (0.0, 6.0))
    second = await counters.draw([few, many])
    assert not second.taken
    assert second.levels == (pytest.approx(0, abs=0.1), pytest.approx(6, abs=0.1))
    third = await counters.draw([many])
    assert (third.taken, third.levels) == (True, (pytest.approx(2, abs=0.1),))


async def test_an_amount_of_nothing_only_looks(counters: SharedCounters, name: str) -> None:
    for _ in range(3):
        assert (await counters.draw([Draw(name, 5)])).levels == (5.0,)


async def test_a_bucket_fills_up_as_time_goes(counters: SharedCounters, name: str) -> None:
    draw = Draw(name, 600, 600)  # ten a second
    await counters.draw([draw])
    began = time.monotonic()
    await asyncio.sleep(0.1)
    level = (await counters.draw([Draw(name, 600)])).levels[0]
    assert 0.9 <= level <= 10 * (time.monotonic() - began) + 0.1


async def test_fractions_are_not_lost(counters: SharedCounters, name: str) -> None:
    for _ in range(10):
        assert (await counters.draw([Draw(name, 1, 0.1)])).taken
    assert not (await counters.draw([Draw(name, 1, 0.1)])).taken


async def test_another_limit_is_another_bucket(counters: SharedCounters, name: str) -> None:
    assert (await counters.draw([Draw(name, 1, 1)])).taken
    assert not (await counters.draw([Draw(name, 1, 1)])).taken
    assert (await counters.draw([Draw(name, 60, 1)])).taken


async def test_two_gateways_let_no_more_through_than_one(server: Valkey, name: str) -> None:
    """Processes of their own, at the same time, each with many requests at once."""
    limit = 50
    command = (sys.executable, "-c", OTHER_GATEWAY, server.url, name, str(limit))
    began = time.monotonic()
    gateways = [await asyncio.create_subprocess_exec(*command, stdin=PIPE, stdout=PIPE) for _ in range(2)]
    for each in gateways:
        assert each.stdout is not None
        assert await each.stdout.readline() == b"ready\n"
    answers = await asyncio.gather(*(each.communicate(b"go\n") for each in gateways))
    taken = sum(int(out) for out, _ in answers)
    assert limit <= taken <= limit + limit * (time.monotonic() - began) / 60 + 1


async def test_two_admissions_share_a_callers_limits(server: Valkey, counters: SharedCounters, name: str) -> None:
    who = Caller(name, "o", "p", limits=Limits(images_per_minute=3))
    other = await open_shared(server.url)
    first, second = Admission(9, counters=counters), Admission(9, counters=other)
    await first.admit(who, "one", 2)
    with pytest.raises(ApiError, match="3 images a minute"):
        await second.admit(who, "two", 2)
    await second.admit(who, "three", 1)
    assert [rate.remaining for rate in await first.rates(who)] == [0]
    await other.close()


async def test_two_gateways_share_what_a_provider_allows(counters: SharedCounters, server: Valkey, name: str) -> None:
    other = await open_shared(server.url)
    limit = {name: ProviderLimit(requests_per_minute=1)}
    first, second = ProviderLimits(limit, counters), ProviderLimits(limit, other)
    async with first.slot(name, 1, time.monotonic() + 5):
        with pytest.raises(ProviderError, match="1 requests a minute"):
            async with second.slot(name, 1, time.monotonic() + 5):
                pytest.fail("it got a slot")
    await other.close()


async def test_while_the_server_is_away_nothing_is_let_through_and_it_goes_on_by_itself(
    name: str, caplog: pytest.LogCaptureFixture
) -> None:
    who = Caller(name, "o", "p", limits=Limits(requests_per_minute=3))
    with valkey() as server:
        counters = await open_shared(server.url)
        admission = Admission(9, counters=counters)
        await admission.admit(who, "one", 1)
        server.stop()
        for _ in range(2):
            with pytest.raises(ApiError) as caught:
                await admission.admit(who, "two", 1)
            assert (caught.value.status, caught.value.code) == (503, "limits_unavailable")
        assert await admission.rates(who) == []
        assert [record.levelno for record in caplog.records] == [logging.WARNING]
        server.start()
        await admission.admit(who, "two", 1)
        assert admission.num_jobs == 2
        await counters.close()


async def test_a_server_that_hangs_is_given_up(name: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        counters = SharedCounters(f"redis://127.0.0.1:{silent.getsockname()[1]}/0")
        began = time.monotonic()
        with pytest.raises(CountersError, match="does not answer"):
            await counters.draw([Draw(name, 1, 1)])
        assert time.monotonic() - began < 5
        await counters.close()


async def test_a_gateway_does_not_start_where_nobody_answers(tmp_path: Path) -> None:
    with pytest.raises(CountersError) as caught:
        await open_counters(f"unix://{tmp_path}/none")
    assert str(tmp_path) in caught.value.hint


async def test_what_counts_follows_from_the_setting(server: Valkey) -> None:
    assert isinstance(await open_counters(None), MemoryCounters)
    shared = await open_counters(server.url)
    assert isinstance(shared, SharedCounters)
    await shared.close()


async def test_an_address_of_another_kind_is_refused_in_words() -> None:
    with pytest.raises(CountersError) as caught:
        await open_counters("https://example.com")
    assert "'https'" in caught.value.message
    assert "valkey://host:6379/0" in caught.value.hint


async def test_no_password_is_told() -> None:
    assert place_of("valkey://:secret@host:6379/0?password=secret") == "valkey://host:6379/0"
