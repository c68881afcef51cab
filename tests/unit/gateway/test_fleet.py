"""What all places are together: places for calls, of accounts and of their models."""

from __future__ import annotations

import asyncio

import pytest

from kleinbild.gateway.limits.providers import NoSlotError, ProviderLimit, ProviderLimits
from tests.unit.gateway.fleets import deployment, fleet

pytestmark = pytest.mark.anyio


async def test_a_call_needs_a_place_of_its_model_and_one_of_the_account() -> None:
    few, many = (deployment(name, provider="p", provider_model=name) for name in ("few", "many"))
    limits = ProviderLimits({"p": ProviderLimit(max_active=2), "p/few": ProviderLimit(max_active=1)})
    known = fleet(few, many, limits=limits)
    async with known.slot(few, 1, 1.0):
        standings = known.standings(0.0)
        assert (standings["few"].busy, standings["many"].busy) == (True, False)
        with pytest.raises(NoSlotError, match="p/few takes 1 requests at once"):
            await asyncio.wait_for(known.slot(few, 1, 0.01).__aenter__(), 5)
        async with known.slot(many, 1, 0.01):
            assert known.standings(0.0)["many"].busy
    assert not any(each.busy for each in known.standings(0.0).values())
    async with known.slot(few, 1, 0.01):
        pass
