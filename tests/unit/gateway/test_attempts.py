"""One attempt, when it is this side that fails: what came in is booked, what nobody wants is not sent, nothing stays open."""

from __future__ import annotations

import asyncio
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from kleinbild.core.errors import OutputError, UnsureError
from kleinbild.gateway.limits.providers import ProviderLimit, ProviderLimits
from kleinbild.providers.hosted import ProviderError
from tests.unit.gateway.test_chain import CENT, Scripted, World, _until, lost, run

HOUR = 3600.0


def test_a_picture_that_cannot_be_kept_is_paid_for_and_not_bought_elsewhere(tmp_path: Path) -> None:
    class Full:
        async def put(self, *_: Any) -> str:
            raise OSError(28, "No space left on device")

    async def scenario(world: World) -> None:
        world.services.attempts._blobs = Full()
        with pytest.raises(OutputError):
            await world.chain()
        assert await world.states() == [("a", "failed_billed")]
        assert await world.spent() == world.places["a"].billed == CENT
        assert not world.places["b"].asked

    run(tmp_path, scenario, a=Scripted(["pictures"]), b=Scripted(["pictures"]))


def test_what_still_waits_for_a_slot_when_nobody_wants_it_any_more_is_not_sent(tmp_path: Path) -> None:
    async def scenario(world: World) -> None:
        world.services.fleet.limits = ProviderLimits({"a": ProviderLimit(max_active=1)})
        first = asyncio.create_task(world.chain(keep="job_1"))
        await _until(lambda: len(world.places["a"].asked) == 1)
        second = asyncio.create_task(world.chain(keep="job_2"))
        await _until(lambda: world.services.fleet.limits.waiting("a") == 1)
        second.cancel()
        await asyncio.gather(second, return_exceptions=True)
        await first
        await _until(lambda: not world.services.attempts._running)
        assert await world.states("job_2") == [("a", "failed_unbilled")]
        assert len(world.places["a"].asked) == 1

    run(tmp_path, scenario, a=Scripted([0.2]))


def test_a_service_that_charges_nothing_for_a_failure_is_believed(tmp_path: Path) -> None:
    async def scenario(world: World) -> None:
        made = await world.chain()
        assert made.cost == CENT
        assert await world.states() == [("a", "failed_billed"), ("b", "done")]

    free = ProviderError("half", cause="bad_answer", acceptance="accepted", billed=True, charged=Decimal(0))
    run(tmp_path, scenario, a=Scripted([free]), b=Scripted(["pictures"]))


def test_a_bug_of_ours_leaves_an_attempt_of_which_nobody_knows_and_no_permit(tmp_path: Path) -> None:
    async def scenario(world: World) -> None:
        with pytest.raises(UnsureError):
            await world.chain()
        assert await world.states() == [("a", "unknown")]
        assert world.services.fleet.circuits.standing("a").state == "closed"

    run(tmp_path, scenario, a=Scripted([ZeroDivisionError()]), b=Scripted(["pictures"]))


def test_what_nobody_finds_out_is_booked_as_charged_in_the_end(tmp_path: Path) -> None:
    async def scenario(world: World) -> None:
        with pytest.raises(UnsureError):
            await world.chain()
        attempts = world.services.attempts
        (entry,) = await world.entries()
        made_at = entry.attempt.created_at
        await attempts.give_up_unknown(made_at - 1, made_at + 24 * HOUR)
        assert await world.states() == [("a", "unknown")]
        await attempts.give_up_unknown(made_at + 1, made_at + 24 * HOUR)
        assert await world.states() == [("a", "failed_billed")]
        assert await world.spent() == CENT

    run(tmp_path, scenario, a=Scripted([lost()]))


def test_what_is_open_and_followed_by_nobody_becomes_unknown(tmp_path: Path) -> None:
    async def scenario(world: World) -> None:
        first = asyncio.create_task(world.chain())
        await _until(lambda: bool(world.places["a"].asked))
        world.services.attempts.leave()
        first.cancel()
        await asyncio.gather(first, return_exceptions=True)
        await world.services.attempts.close()
        assert await world.states() == [("a", "sending")]
        (entry,) = await world.entries()
        at = entry.attempt.created_at
        await world.another_process().services.attempts.give_up_unknown(at - HOUR, at + HOUR / 2)
        assert await world.states() == [("a", "sending")]  # it may yet be taken up
        await world.another_process().services.attempts.give_up_unknown(at - HOUR, at + 2 * HOUR)
        assert await world.states() == [("a", "unknown")]

    run(tmp_path, scenario, a=Scripted(["hang"]))
