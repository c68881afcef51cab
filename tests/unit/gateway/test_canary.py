"""Pictures that are bought only to see whether they are made: when, how small, under whose name, and never beyond their
budget."""

from __future__ import annotations

import time
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from kleinbild.core.deployments import Can
from kleinbild.core.prices import Measure
from kleinbild.core.sizes import Size, SizeRange
from kleinbild.gateway import canary
from kleinbild.gateway.services import Services
from kleinbild.gateway.settings import ConfigurationError, read_configuration
from kleinbild.storage import budgets
from kleinbild.storage.usage import usage
from tests.unit.gateway.fleets import deployment
from tests.unit.gateway.hosting import hosting, settings
from tests.unit.gateway.test_chain import Scripted, refusal

pytestmark = pytest.mark.anyio
HOUR = 3600.0
ON: dict[str, Any] = {"canary_hours": 6, "canary_budget": "0.05"}


async def spent(services: Services) -> dict[tuple[str, str, str], Decimal]:
    """By caller, project and deployment."""
    await services.ledger.drain()
    async with services.database.read() as connection:
        rows = await usage(connection, start=0.0, end=1e12, group_by=("key", "project", "deployment"))
    return {(row.groups[0], row.groups[1], row.groups[2]): row.cost for row in rows}


async def test_at_a_place_that_nothing_was_heard_of_a_smallest_picture_is_bought_once_in_that_time(
    tmp_path: Path,
) -> None:
    quiet, busy = Scripted(["pictures"]), Scripted(["pictures"])
    async with hosting(settings(tmp_path, "a", "b", routing=ON), a=quiet, b=busy) as services:
        fleet = services.fleet
        fleet.predictor.observe(fleet.deployments["b"], Measure(), 2.0, time.time() - HOUR, "done")
        fleet.predictor.observe(fleet.deployments["a"], Measure(), 2.0, time.time() - 7 * HOUR, "done")
        await canary.check(services)
        assert await spent(services) == {("canary", "canary", "a"): Decimal("0.01")}
        [call] = quiet.asked
        assert (call.count, call.work.quality, call.work.n) == (1, "low", 1)
        assert not busy.asked
        heard = fleet.predictor.heard_at("a")
        assert heard is not None
        assert time.time() - heard < 60
        assert fleet.circuits.heard_at("a") is not None
        await canary.check(services)
        assert len(quiet.asked) == 1


async def test_by_default_none_is_bought(tmp_path: Path) -> None:
    place = Scripted(["pictures"])
    async with hosting(settings(tmp_path, "a"), a=place) as services:
        await canary.check(services)
        assert not place.asked


async def test_one_that_fails_is_told_to_the_circuit_and_not_bought_again_at_once(tmp_path: Path) -> None:
    place = Scripted([refusal("rate_limited")])
    async with hosting(settings(tmp_path, "a", routing=ON), a=place) as services:
        await canary.check(services)
        await canary.check(services)
        assert len(place.asked) == 1
        assert services.fleet.circuits.standing("a").consecutive_failures == 1
        assert await spent(services) == {("canary", "canary", "a"): Decimal(0)}


async def test_a_place_that_is_left_alone_is_left_alone(tmp_path: Path) -> None:
    place = Scripted(["pictures"])
    async with hosting(settings(tmp_path, "a", routing=ON | {"failures": 1}), a=place) as services:
        services.fleet.circuits.failed("a", refusal())
        await canary.check(services)
        assert not place.asked


@pytest.mark.parametrize(("price", "num_bought"), [("0.02", 2), ("0.05", 1), ("0.051", 0), (None, 0)])
async def test_what_they_cost_together_is_never_beyond_their_budget(
    tmp_path: Path, price: str | None, num_bought: int
) -> None:
    names = ("a", "b", "c")
    places = {name: Scripted(["pictures"]) for name in names}
    async with hosting(settings(tmp_path, *names, price=price, routing=ON), **places) as services:
        await canary.check(services)
        await canary.check(services)
        assert sum(len(place.asked) for place in places.values()) == num_bought
        assert sum((await spent(services)).values()) <= Decimal("0.05")


async def test_the_ledger_refuses_what_others_have_spent_of_it_meanwhile(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = Scripted(["pictures"])
    async with hosting(settings(tmp_path, "a", routing=ON), a=place) as services:
        due = await canary._due(services, time.time())
        async with services.database.write() as connection:
            await budgets.put(connection, budgets.Budget(canary.BUDGET, Decimal("0.009"), key="canary"))
        services.budgets.forget()
        for each, work in due:
            await canary._buy(services, each, work)
        assert (len(due), place.asked) == (1, [])


SIZES = SizeRange(64, 2048, 4_000_000, 16)


@pytest.mark.parametrize(
    ("able", "size"),
    [
        ({"sizes": SIZES}, Size(64, 64)),
        ({"exact_sizes": ("1536x1024", "1024x1024")}, Size(1024, 1024)),
        ({"ratios": ("1:1", "16:9")}, Size(512, 512)),
        ({"sizes": SIZES, "parameters": frozenset({"seed"})}, None),
    ],
)
def test_it_is_the_smallest_that_is_made_there(able: dict[str, Any], size: Size | None) -> None:
    can = Can(frozenset({"image.generate"}), **{"parameters": frozenset({"size"}), **able})
    work = canary.smallest(deployment("a", can=can))
    assert work.size == size
    assert canary.measure_of(work).megapixels == (
        Measure().megapixels if size is None else Decimal(size.area) / 1_000_000
    )


def test_without_a_budget_there_are_none(tmp_path: Path) -> None:
    file = tmp_path / "kleinbild.toml"
    file.write_text("[routing]\ncanary_hours = 6\n")
    with pytest.raises(ConfigurationError, match="canary_budget"):
        read_configuration(file)
