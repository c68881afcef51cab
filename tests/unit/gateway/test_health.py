"""Checks of places that buy nothing, what admins see of them, and when a picture may be bought to find out."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from random import Random
from typing import Any

import httpx2
import pytest

from kleinbild.core.deployments import Can, Deployment, ProviderKind
from kleinbild.core.prices import Measure
from kleinbild.gateway.api import providers as routes
from kleinbild.gateway.fleet import Fleet
from kleinbild.gateway.flow.circuits import Circuits, Tolerance
from kleinbild.gateway.flow.hedging import Hedges
from kleinbild.gateway.health import HOUR, HealthChecks, canary_is_due
from kleinbild.gateway.limits.providers import ProviderLimit, ProviderLimits
from kleinbild.gateway.routing.predict import Predictor
from kleinbild.providers.base import Provider
from kleinbild.providers.hosted import Cause, Hosted, ProviderError
from kleinbild.storage.database import Database
from tests.unit.gateway.server import Server, serving

pytestmark = pytest.mark.anyio
CAN = Can(frozenset({"image.generate"}), frozenset())


class Always(Random):
    """Draws the most."""

    def random(self) -> float:
        return 1.0


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


@dataclass
class Place:
    """Of a service, its check alone."""

    error: Exception | None = None
    num_probes: int = 0
    hangs: bool = False

    async def probe(self) -> None:
        self.num_probes += 1
        if self.hangs:
            await asyncio.Event().wait()
        if self.error is not None:
            raise self.error


def error(cause: Cause = "connection") -> ProviderError:
    return ProviderError("it cannot be reached", cause=cause, acceptance="refused")


def deployment(name: str, provider: str = "bfl", kind: ProviderKind = "bfl") -> Deployment:
    return Deployment(name, "klein-4b", provider, kind, "flux-2-klein-4b", CAN)


class World:
    """Two deployments at one service, one at another, and the engine."""

    def __init__(self, **given: Any) -> None:
        self.clock = Clock()
        self.circuits = Circuits(Tolerance(consecutive=2, open_seconds=1000), clock=self.clock, rng=Always())
        self.places = {"bfl": Place(), "fal": Place(), "local": Place()}
        self.deployments = (
            deployment("fast"),
            deployment("good"),
            deployment("far", "fal", "fal"),
            deployment("here", "local", "local"),
        )
        places: dict[str, Hosted] = dict(self.places)  # type: ignore[arg-type]
        self.hosted = places
        given = {"every": 60.0, "clock": self.clock, **given}
        self.checks = HealthChecks(places, self.deployments, self.circuits, **given)

    def succeed(self, name: str) -> None:
        permit = self.circuits.allow(name)
        assert permit is not None
        self.circuits.succeeded(permit)

    def fail(self, name: str) -> None:
        for _ in range(2):
            self.circuits.failed(name, error())

    @property
    def num_probes(self) -> dict[str, int]:
        return {name: place.num_probes for name, place in self.places.items()}


async def test_where_requests_go_and_pictures_come_nothing_is_checked() -> None:
    world = World()
    for _ in range(10):
        world.clock.now += 200
        world.succeed("fast")
        world.succeed("far")
        await world.checks.check()
    assert world.num_probes == {"bfl": 0, "fal": 0, "local": 0}


async def test_a_place_that_was_quiet_for_long_is_checked_once_in_that_time_and_the_engine_never() -> None:
    world = World()
    await world.checks.check()
    assert world.num_probes == {"bfl": 0, "fal": 0, "local": 0}
    world.clock.now += 299
    world.succeed("good")
    world.clock.now += 2
    for _ in range(3):
        await world.checks.check()
    assert world.num_probes == {"bfl": 0, "fal": 1, "local": 0}
    world.clock.now += 299
    await world.checks.check()
    assert world.num_probes == {"bfl": 1, "fal": 1, "local": 0}


async def test_a_place_that_is_left_alone_is_checked_and_tried_again_once_it_can_be_reached() -> None:
    world = World()
    world.fail("fast")
    world.places["bfl"].error = error()
    await world.checks.check()
    assert world.circuits.state("fast") == "open"
    world.places["bfl"].error = None
    await world.checks.check()
    assert world.circuits.state("fast") == "half_open"
    assert world.num_probes == {"bfl": 2, "fal": 0, "local": 0}


async def test_checks_that_fail_keep_requests_away_from_all_that_is_there() -> None:
    world = World()
    world.places["bfl"].error = error("credentials")
    world.clock.now += 300
    await world.checks.check()
    assert [world.circuits.state(name) for name in ("fast", "good", "far")] == ["open", "open", "closed"]
    probe = world.checks.last("bfl")
    assert probe is not None
    assert probe.error is world.places["bfl"].error
    assert probe.at == pytest.approx(time.time(), abs=5)


async def test_with_new_settings_those_are_checked_that_there_are_then() -> None:
    world = World()
    new = Place()
    world.checks.watch({"new": new}, [deployment("better", "new")])  # type: ignore[dict-item]
    world.clock.now += 300
    await world.checks.check()
    assert (new.num_probes, world.num_probes["bfl"]) == (1, 0)


async def test_a_check_that_hangs_is_given_up_and_holds_up_no_other() -> None:
    world = World(timeout=0.02)
    world.places["bfl"].hangs = True
    world.clock.now += 300
    await world.checks.check()
    hung, fine = world.checks.last("bfl"), world.checks.last("fal")
    assert hung is not None
    assert hung.error is not None
    assert hung.error.cause == "timeout"
    assert fine is not None
    assert fine.error is None


async def test_a_check_that_fails_by_a_bug_says_nothing_of_the_place(caplog: pytest.LogCaptureFixture) -> None:
    world = World()
    world.places["bfl"].error = ZeroDivisionError()
    world.clock.now += 300
    await world.checks.check()
    assert world.checks.last("bfl") is None
    assert world.checks.last("fal") is not None
    assert "the check of bfl failed by a bug" in caplog.text


async def test_checks_go_on_for_ever_at_times_that_are_drawn() -> None:
    slept: list[float] = []
    drawn = iter((0.0, 0.25, 1.0))

    async def sleep(seconds: float) -> None:
        slept.append(seconds)
        world.clock.now += 300
        if len(slept) == 3:
            raise asyncio.CancelledError

    world = World(sleep=sleep, rng=lambda: next(drawn))
    with pytest.raises(asyncio.CancelledError):
        await world.checks.run()
    assert slept == [30, 45, 90]
    assert world.num_probes["bfl"] == 2


PRICE, BUDGET = Decimal("0.014"), Decimal("0.05")


@pytest.mark.parametrize(
    ("given", "due"),
    [
        ({}, True),
        ({"every_hours": None}, False),
        ({"last_at": None}, True),
        ({"last_at": 1e6 - 5.9 * HOUR}, False),
        ({"spent": Decimal("0.036")}, True),
        ({"spent": Decimal("0.037")}, False),
        ({"price": None}, False),
        ({"price": Decimal(0), "budget": Decimal(0)}, True),
        ({"budget": Decimal(0)}, False),
    ],
)
def test_a_picture_is_bought_to_find_out_only_when_it_is_time_and_the_budget_allows_it(
    given: dict[str, Any], due: bool
) -> None:
    usual = {"last_at": 1e6 - 6 * HOUR, "every_hours": 6.0, "spent": Decimal(0), "budget": BUDGET, "price": PRICE}
    assert canary_is_due(1e6, **{**usual, **given}) is due


@pytest.fixture
async def gateway(database: Database, tmp_path: Path) -> AsyncIterator[tuple[Server, World, Fleet]]:
    world = World()
    local: Provider = None  # type: ignore[assignment]  # nothing is made
    fleet = Fleet(
        deployments={each.name: each for each in world.deployments},
        places=world.hosted,
        local=local,
        circuits=world.circuits,
        predictor=Predictor(),
        limits=ProviderLimits({"bfl": ProviderLimit(max_active=24)}),
        hedges=Hedges(),
        default_model="klein-4b",
    )
    async with serving(database, tmp_path) as server:
        server.app.include_router(routes.router)
        server.app.state.services.fleet = fleet
        server.app.state.services.checks = world.checks
        yield server, world, fleet


async def asked(server: Server) -> dict[str, Any]:
    _, admin = await server.key("admin")
    answer = await server.ask("GET", "/v1/providers", admin)
    assert answer.status_code == httpx2.codes.OK, answer.text
    routes.ProviderList.model_validate(answer.json())
    return {each["id"]: each for each in answer.json()["data"]}


async def test_an_admin_sees_every_place(gateway: tuple[Server, World, Fleet]) -> None:
    server, _, _ = gateway
    seen = await asked(server)
    assert list(seen) == ["bfl", "fal", "local"]
    assert (seen["bfl"]["kind"], seen["bfl"]["active"], seen["bfl"]["last_probe"]) == ("bfl", 0, None)
    assert seen["bfl"]["limits"] == {"max_active": 24, "requests_per_minute": None, "images_per_minute": None}
    fast, good = seen["bfl"]["deployments"]
    assert (fast["name"], fast["circuit"], good["name"]) == ("fast", "closed", "good")
    assert fast["success_share"] is fast["p50_seconds"] is fast["retry_seconds"] is fast["cause"] is None


async def test_an_admin_sees_how_they_do(gateway: tuple[Server, World, Fleet]) -> None:
    server, world, fleet = gateway
    world.succeed("fast")
    world.succeed("fast")
    world.fail("fast")
    world.places["bfl"].error = error()
    await world.checks.check()
    for _ in range(30):
        fleet.predictor.observe(world.deployments[1], Measure(), 4.0, time.time(), "done")
    async with fleet.limits.slot("bfl", 1, time.monotonic() + 5):
        bfl = (await asked(server))["bfl"]
    assert bfl["active"] == 1
    assert (bfl["last_probe"]["cause"], bfl["last_probe"]["message"]) == ("connection", "it cannot be reached")
    fast, good = bfl["deployments"]
    assert (fast["circuit"], fast["cause"]) == ("open", "connection")
    assert fast["success_share"] == pytest.approx(0.4)
    assert fast["retry_seconds"] > 0
    assert good["p50_seconds"] == pytest.approx(4.0, rel=0.1)
    assert good["p95_seconds"] >= good["p50_seconds"]


@pytest.mark.parametrize("role", ["viewer", "member"])
async def test_others_do_not_see_them(gateway: tuple[Server, World, Fleet], role: str) -> None:
    server, _, _ = gateway
    _, key = await server.key(role)
    answer = await server.ask("GET", "/v1/providers", key)
    assert (answer.status_code, answer.json()["error"]["code"]) == (403, "role_not_allowed")
