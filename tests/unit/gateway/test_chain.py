"""From one place to the next: who is asked after which failure, what is booked, and what a crash leaves behind."""

from __future__ import annotations

import asyncio
import io
import time
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass, field, replace
from decimal import Decimal
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from PIL import Image

from kleinbild.core.deployments import Can, Deployment
from kleinbild.core.errors import (
    BusyError,
    LateError,
    ModeratedError,
    NoPlaceError,
    PlacesError,
    PromptError,
    UnsureError,
)
from kleinbild.core.jobs import ImageWork, Job
from kleinbild.core.prices import Measure, Price
from kleinbild.core.sizes import Size
from kleinbild.gateway.flow.attempt import Attempts
from kleinbild.gateway.flow.chain import Chain, Made, Terms
from kleinbild.gateway.flow.circuits import Circuits, Tolerance
from kleinbild.gateway.flow.hedging import Hedges
from kleinbild.gateway.routing.asked import Asked
from kleinbild.gateway.routing.decision import decide
from kleinbild.providers.base import Inputs
from kleinbild.providers.hosted import Accepted, Answer, Call, Fetched, Handle, ProviderError
from kleinbild.storage import budgets as budget_rows
from kleinbild.storage.attempts import Entry
from kleinbild.storage.blobs import open_blobs
from kleinbild.storage.budgets import Budget, Budgets
from kleinbild.storage.database import open_database, sqlite_url
from kleinbild.storage.ledger import BudgetError, Ledger
from tests.unit.gateway.fleets import ABLE, deployment, fleet
from tests.unit.storage.money import an_attempt

CENT = Decimal("0.01")
Act = Callable[[Call], Awaitable[Answer | Accepted]]


def png() -> bytes:
    out = io.BytesIO()
    Image.new("RGB", (64, 64), "teal").save(out, "PNG")
    return out.getvalue()


def refusal(cause: str = "overloaded", **more: Any) -> ProviderError:
    return ProviderError(f"it is {cause}", cause=cause, acceptance="refused", **more)  # type: ignore[arg-type]


def lost() -> ProviderError:
    return ProviderError("the answer was lost", cause="timeout", acceptance="unknown", billed=None)


@dataclass
class Scripted:
    """A place that does what its acts say, one a call, the last for ever; it counts what it would bill."""

    acts: list[Any]
    collects: list[Any] = field(default_factory=list)
    cancels: str = "impossible"
    asked: list[Call] = field(default_factory=list)
    collected: list[Call] = field(default_factory=list)
    billed: Decimal = Decimal(0)
    cancelled: list[Handle] = field(default_factory=list)

    def can(self, model: str) -> Can:
        return ABLE

    async def start(self, call: Call, watcher: Any = None) -> Answer | Accepted:
        self.asked.append(call)
        act = self.acts[min(len(self.asked), len(self.acts)) - 1]
        return await self._do(act, call)

    async def collect(self, handle: Handle, call: Call, watcher: Any = None) -> Answer:
        self.collected.append(call)
        act = self.collects.pop(0) if len(self.collects) > 1 else self.collects[0]
        answer = await self._do(act, call)
        assert isinstance(answer, Answer)
        return answer

    async def cancel(self, handle: Handle) -> Any:
        self.cancelled.append(handle)
        return self.cancels

    async def probe(self) -> None: ...

    async def close(self) -> None: ...

    async def _do(self, act: Any, call: Call) -> Answer | Accepted:
        if isinstance(act, float):  # a slow success
            await asyncio.sleep(act)
            act = "pictures"
        if isinstance(act, Exception):
            raise act
        if isinstance(act, Answer):
            return act
        if act == "accept slowly":
            await asyncio.sleep(0.25)
            act = "accept"
        if act == "accept":
            return Accepted({"task": call.id})
        if act == "hang":
            await asyncio.Event().wait()
        self.billed += CENT * call.count
        return Answer(tuple(Fetched(png(), call.work.seed + call.first + n) for n in range(call.count)))


@dataclass
class World:
    services: Any
    ledger: Ledger
    database: Any
    deployments: tuple[Deployment, ...]
    places: dict[str, Scripted]

    async def chain(self, n: int = 1, *, keep: str = "job_1", fresh: bool = True, **terms: Any) -> Made:
        made = self.prepared(n, keep=keep, **terms)
        return await made.run(fresh=fresh)

    def prepared(
        self,
        n: int = 1,
        *,
        keep: str = "job_1",
        size: Size | None = None,
        num_previews: int = 0,
        measure: Measure | None = None,
        allow_unknown_price: bool = False,
        **terms: Any,
    ) -> Chain:
        work = ImageWork("image.generate", "a fox", "sketch", seed=7, n=n, size=size, num_previews=num_previews)
        megapixels = Measure().megapixels if size is None else size.area / Decimal(1_000_000)
        measure = measure or Measure(images=n, megapixels=megapixels)
        asked = Asked(
            model="sketch",
            task="image.generate",
            measure=measure,
            size=size,
            allow_unknown_price=allow_unknown_price,
        )
        decision = decide(asked, self.deployments, {}, self.services.fleet.predictor, (), 0.0)
        usual: dict[str, Any] = {
            "deadline": self.services.fleet.clock() + 5,
            "max_attempts": 6,
            "on_unknown": "after_collect",
        }
        job = Job(keep, "key_1", "p", work, created_at=0.0)
        return Chain(self.services, job, Inputs(), decision, ("key_1",), Terms(**{**usual, **terms}), lambda _: None)

    async def entries(self, job: str = "job_1") -> list[Entry]:
        await self.ledger.drain()  # what waits to be committed with a job's end
        return await self.ledger.of_job(job)

    async def states(self, job: str = "job_1") -> list[tuple[str, str]]:
        return [(each.attempt.deployment, each.state) for each in await self.entries(job)]

    async def spent(self) -> Decimal:
        return sum(((each.cost or Decimal(0)) for each in await self.entries()), Decimal(0))

    def another_process(self) -> World:
        """The same database, and nothing else left."""
        world = replace(self)
        attempts = Attempts(self.ledger, self.services.attempts._blobs, self.services.fleet, lambda: 1e12)
        world.services = SimpleNamespace(**{**vars(self.services), "attempts": attempts})
        return world


def run(
    tmp_path: Path,
    scenario: Callable[[World], Coroutine[Any, Any, None]],
    budget: str | None = None,
    changes: dict[str, dict[str, Any]] | None = None,
    **places: Scripted,
) -> None:
    """`places` in the order in which they are preferred."""

    async def all_of_it() -> None:
        database = await open_database(sqlite_url(tmp_path / "db.sqlite"))
        deployments = tuple(
            deployment(name, weight=float(-place), **(changes or {}).get(name, {})) for place, name in enumerate(places)
        )
        places_by_name: dict[str, Any] = dict(places)
        known = fleet(
            *deployments,
            places=places_by_name,
            circuits=Circuits(Tolerance(consecutive=3, open_seconds=0.05)),
            hedges=Hedges(share=1.0),
        )
        ledger = Ledger(database)
        blobs = open_blobs(database, tmp_path / "blobs")
        if budget is not None:
            async with database.write() as connection:
                await budget_rows.put(connection, Budget("b", Decimal(budget), key="key_1"))
        services = SimpleNamespace(
            fleet=known,
            ledger=ledger,
            budgets=Budgets(database),
            attempts=Attempts(ledger, blobs, known, lambda: 1e12),
        )
        world = World(services, ledger, database, deployments, dict(places))
        try:
            await scenario(world)
        finally:
            await services.attempts.close()
            await ledger.drain()
            await database.close()

    asyncio.run(all_of_it())


def test_the_first_place_makes_the_picture_and_what_it_cost_is_booked(tmp_path: Path) -> None:
    async def scenario(world: World) -> None:
        made = await world.chain(3)
        assert [made.pictures[index].seed for index in range(3)] == [7, 8, 9]
        assert (made.cost, made.attempts, made.deployments) == (3 * CENT, 1, ["a"])
        assert await world.states() == [("a", "done")]
        assert await world.spent() == world.places["a"].billed

    run(tmp_path, scenario, a=Scripted(["pictures"]), b=Scripted(["pictures"]))


@pytest.mark.parametrize("cause", ["connection", "rate_limited", "overloaded", "credentials", "credit", "invalid"])
def test_what_was_refused_is_asked_for_elsewhere_at_no_cost(tmp_path: Path, cause: str) -> None:
    async def scenario(world: World) -> None:
        made = await world.chain()
        assert (made.cost, made.attempts, made.deployments) == (CENT, 2, ["b"])
        assert await world.states() == [("a", "failed_unbilled"), ("b", "done")]

    run(tmp_path, scenario, a=Scripted([refusal(cause)]), b=Scripted(["pictures"]))


def test_more_pictures_than_a_call_makes_are_several_calls_and_only_what_is_missing_is_asked_for_again(
    tmp_path: Path,
) -> None:
    async def scenario(world: World) -> None:
        made = await world.chain(6)
        assert [made.pictures[index].seed for index in range(6)] == [7, 8, 9, 10, 11, 12]
        assert {(call.first, call.count) for call in world.places["a"].asked} == {(0, 4), (4, 2)}
        assert sum(call.count for call in world.places["b"].asked) == (4 if made.attempts == 3 else 2)
        assert await world.spent() == world.places["a"].billed + world.places["b"].billed == 6 * CENT

    run(tmp_path, scenario, a=Scripted([refusal(), "pictures"]), b=Scripted(["pictures"]))


def test_a_place_that_is_alone_is_asked_again_after_a_pause(tmp_path: Path) -> None:
    async def scenario(world: World) -> None:
        made = await world.chain()
        assert made.attempts == 2
        assert await world.states() == [("a", "failed_unbilled"), ("a", "done")]

    run(tmp_path, scenario, a=Scripted([refusal("overloaded"), "pictures"]))


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (refusal("invalid"), NoPlaceError),
        (refusal("credentials"), PlacesError),
        (ProviderError("no", cause="moderated", acceptance="refused"), ModeratedError),
    ],
)
def test_what_does_not_pass_is_not_asked_for_again(tmp_path: Path, error: ProviderError, expected: type) -> None:
    async def scenario(world: World) -> None:
        with pytest.raises(expected):
            await world.chain()
        assert len(world.places["a"].asked) == 1
        assert await world.states() == [("a", "failed_unbilled")]

    run(tmp_path, scenario, a=Scripted([error]))


def test_moderated_content_is_not_taken_to_somebody_who_may_not_mind(tmp_path: Path) -> None:
    async def scenario(world: World) -> None:
        with pytest.raises(ModeratedError):
            await world.chain()
        assert not world.places["b"].asked

    moderated = ProviderError("no", cause="moderated", acceptance="accepted", billed=True)
    run(tmp_path, scenario, a=Scripted([moderated]), b=Scripted(["pictures"]))


def test_all_at_their_limits_is_told_as_that(tmp_path: Path) -> None:
    async def scenario(world: World) -> None:
        with pytest.raises(BusyError) as caught:
            await world.chain(deadline=world.services.fleet.clock() + 0.2)
        assert caught.value.retry_after == 9

    run(tmp_path, scenario, a=Scripted([refusal("rate_limited", retry_after=9)]))


def test_all_at_rest_or_at_their_limits_is_for_now_and_says_for_how_long(tmp_path: Path) -> None:
    async def scenario(world: World) -> None:
        fleet = world.services.fleet
        fleet.circuits = Circuits(Tolerance(consecutive=1, open_seconds=40))
        fleet.circuits.failed(fleet.permit(world.deployments[0]), refusal("overloaded"))
        with pytest.raises(BusyError, match=r"a: a has failed lately.*; b: it is rate_limited") as caught:
            await world.chain(max_attempts=1)
        assert 0 < caught.value.retry_after <= 30
        assert not world.places["a"].asked

    run(tmp_path, scenario, a=Scripted(["pictures"]), b=Scripted([refusal("rate_limited", retry_after=30)]))


def test_a_place_that_is_broken_among_those_at_rest_is_told_as_that(tmp_path: Path) -> None:
    async def scenario(world: World) -> None:
        with pytest.raises(PlacesError) as caught:
            await world.chain()
        assert not isinstance(caught.value, BusyError)

    run(tmp_path, scenario, a=Scripted([refusal("credit")]), b=Scripted([refusal("rate_limited", retry_after=30)]))


@pytest.mark.parametrize("policy", ["never", "after_collect"])
def test_a_lost_answer_is_not_asked_for_elsewhere_and_its_money_stays_set_aside(tmp_path: Path, policy: str) -> None:
    async def scenario(world: World) -> None:
        with pytest.raises(UnsureError):
            await world.chain(on_unknown=policy)
        assert await world.states() == [("a", "unknown")]
        assert not world.places["b"].asked
        async with world.database.read() as connection:
            (standing,) = await budget_rows.standing(connection, [Budget("b", CENT, key="key_1")], 1e9)
        assert standing.reserved == CENT

    run(tmp_path, scenario, budget="1", a=Scripted([lost()]), b=Scripted(["pictures"]))


@pytest.mark.parametrize(("allowed", "asked_elsewhere"), [("0.01", True), ("0.009", False)])
def test_a_lost_answer_may_be_paid_twice_up_to_an_amount(tmp_path: Path, allowed: str, asked_elsewhere: bool) -> None:
    async def scenario(world: World) -> None:
        if asked_elsewhere:
            made = await world.chain(on_unknown=Decimal(allowed))
            assert made.deployments == ["b"]
        else:
            with pytest.raises(UnsureError):
                await world.chain(on_unknown=Decimal(allowed))
        assert bool(world.places["b"].asked) is asked_elsewhere

    run(tmp_path, scenario, a=Scripted([lost()]), b=Scripted(["pictures"]))


def test_what_was_accepted_is_followed_to_its_end(tmp_path: Path) -> None:
    async def scenario(world: World) -> None:
        made = await world.chain()
        assert made.deployments == ["a"]
        (entry,) = await world.entries()
        assert entry.state == "done"

    run(tmp_path, scenario, a=Scripted(["accept"], collects=["pictures"]), b=Scripted(["pictures"]))


def test_what_is_accepted_and_too_slow_is_cancelled_before_somebody_else_is_asked(tmp_path: Path) -> None:
    async def scenario(world: World) -> None:
        made = await world.chain()
        assert made.deployments == ["b"]
        assert world.places["a"].cancelled
        assert await world.states() == [("a", "failed_unbilled"), ("b", "done")]

    slow = ProviderError("slow", cause="timeout", acceptance="accepted", billed=None)
    able = {"a": {"can": replace(ABLE, cancel=True)}}
    slow_one = Scripted(["accept"], collects=[slow], cancels="cancelled")
    run(tmp_path, scenario, changes=able, a=slow_one, b=Scripted(["pictures"]))


def test_what_cannot_be_cancelled_is_followed_although_nobody_waits_and_booked(tmp_path: Path) -> None:
    async def scenario(world: World) -> None:
        with pytest.raises(UnsureError):
            await world.chain()
        await _until(lambda: world.places["a"].billed == CENT)
        await asyncio.sleep(0.05)
        assert await world.states() == [("a", "done")]
        assert await world.spent() == CENT

    slow = ProviderError("slow", cause="timeout", acceptance="accepted", billed=None)
    run(tmp_path, scenario, a=Scripted(["accept"], collects=[slow, 0.05]), b=Scripted(["pictures"]))


def test_a_failure_that_is_charged_is_booked_and_somebody_else_is_asked(tmp_path: Path) -> None:
    async def scenario(world: World) -> None:
        made = await world.chain()
        assert (made.cost, made.deployments) == (Decimal("0.012"), ["b"])
        assert await world.states() == [("a", "failed_billed"), ("b", "done")]

    error = ProviderError("half", cause="bad_answer", acceptance="accepted", billed=True, charged=Decimal("0.002"))
    run(tmp_path, scenario, a=Scripted([error]), b=Scripted(["pictures"]))


def test_a_budget_holds_over_fallbacks(tmp_path: Path) -> None:
    async def scenario(world: World) -> None:
        await world.chain(keep="job_1")
        with pytest.raises(BudgetError):
            await world.chain(keep="job_2")
        assert len(world.places["b"].asked) == 1
        assert sum(each.billed for each in world.places.values()) == 2 * CENT

    error = ProviderError("half", cause="bad_answer", acceptance="accepted", billed=True, charged=CENT)
    first = Scripted([error, error])
    first.billed = CENT
    run(tmp_path, scenario, budget="0.02", a=first, b=Scripted(["pictures"]))


def test_a_requests_own_ceiling_holds_over_fallbacks(tmp_path: Path) -> None:
    async def scenario(world: World) -> None:
        with pytest.raises(BudgetError, match="what the request may cost"):
            await world.chain(ceiling=Decimal("0.015"))
        assert not world.places["b"].asked

    error = ProviderError("half", cause="bad_answer", acceptance="accepted", billed=True)
    run(tmp_path, scenario, a=Scripted([error]), b=Scripted(["pictures"]))


def test_who_goes_away_does_not_stop_a_bill(tmp_path: Path) -> None:
    async def scenario(world: World) -> None:
        task = asyncio.create_task(world.chain())
        await _until(lambda: bool(world.places["a"].asked))
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await _until(lambda: world.places["a"].billed == CENT)
        await asyncio.sleep(0.05)
        assert await world.spent() == CENT
        assert await world.states() == [("a", "done")]

    run(tmp_path, scenario, a=Scripted([0.1]))


@pytest.mark.parametrize("kind", ["bfl", "openai"])
def test_who_polls_is_told_how_long_such_work_takes(tmp_path: Path, kind: str) -> None:
    async def scenario(world: World) -> None:
        await world.chain()
        for _ in range(40):
            world.services.fleet.predictor.observe(world.deployments[0], Measure(), 6.0, time.time(), "done")
        await world.chain(keep="job_2")
        before, after = (call.expected for call in world.places["a"].asked)
        assert before is None
        if kind == "openai":
            assert after is None
        else:
            assert after is not None
            assert 5 < after.soonest <= after.usual < 7

    run(tmp_path, scenario, changes={"a": {"kind": kind}}, a=Scripted(["pictures"]))


def test_what_has_passed_until_work_is_accepted_is_not_expected_again(tmp_path: Path) -> None:
    async def scenario(world: World) -> None:
        for _ in range(40):
            world.services.fleet.predictor.observe(world.deployments[0], Measure(), 3.0, time.time(), "done")
        await world.chain()
        begun, followed = world.places["a"].asked[0].expected, world.places["a"].collected[0].expected
        assert begun is not None
        assert followed is not None
        assert 0.2 < begun.usual - followed.usual < 1

    run(tmp_path, scenario, changes={"a": {"kind": "bfl"}}, a=Scripted(["accept slowly"], collects=["pictures"]))


def test_a_slow_place_is_overtaken_and_the_loser_is_booked(tmp_path: Path) -> None:
    async def scenario(world: World) -> None:
        for _ in range(40):
            world.services.fleet.predictor.observe(world.deployments[0], Measure(), 0.05, time.time(), "done")
        made = await world.chain(hedge=True)
        assert made.deployments == ["b"]
        assert made.attempts == 2
        await _until(lambda: world.places["a"].billed == CENT)
        await asyncio.sleep(0.05)
        assert [state for _, state in await world.states()] == ["done", "done"]
        assert await world.spent() == 2 * CENT
        assert [each.attempt.hedged for each in await world.entries()] == [False, True]

    run(tmp_path, scenario, a=Scripted([1.0]), b=Scripted([0.0]))


def test_no_second_is_asked_if_there_is_no_money_for_it(tmp_path: Path) -> None:
    async def scenario(world: World) -> None:
        for _ in range(40):
            world.services.fleet.predictor.observe(world.deployments[0], Measure(), 0.05, time.time(), "done")
        made = await world.chain(hedge=True)
        assert made.deployments == ["a"]
        assert not world.places["b"].asked

    run(tmp_path, scenario, budget="0.01", a=Scripted([0.4]), b=Scripted([0.0]))


def test_no_second_is_asked_that_would_have_less_time_than_the_first(tmp_path: Path) -> None:
    async def scenario(world: World) -> None:
        for _ in range(40):
            world.services.fleet.predictor.observe(world.deployments[0], Measure(), 0.2, time.time(), "done")
        made = await world.chain(hedge=True, deadline=world.services.fleet.clock() + 0.35)
        assert made.deployments == ["a"]
        assert not world.places["b"].asked

    run(tmp_path, scenario, a=Scripted([0.3]), b=Scripted([0.0]))


def test_after_a_crash_what_was_accepted_is_collected_and_not_bought_again(tmp_path: Path) -> None:
    async def scenario(world: World) -> None:
        first = asyncio.create_task(world.chain())
        await _until(lambda: bool(world.places["a"].asked))
        await asyncio.sleep(0.05)
        world.services.attempts.leave()
        first.cancel()
        await asyncio.gather(first, return_exceptions=True)
        await world.services.attempts.close()
        assert await world.states() == [("a", "accepted")]
        made = await world.another_process().chain(fresh=False)
        assert (made.deployments, made.cost) == (["a"], CENT)
        assert len(world.places["a"].asked) == 1
        assert await world.states() == [("a", "done")]

    run(tmp_path, scenario, a=Scripted(["accept"], collects=["hang", "pictures"]), b=Scripted(["pictures"]))


def test_a_job_whose_server_is_killed_again_and_again_may_ask_as_often_each_time(tmp_path: Path) -> None:
    """What ended with its server is no failure of a place; what was ended before another crash counts as little."""

    async def scenario(world: World) -> None:
        for number in range(4):
            name = f"att_{number}"
            attempt = an_attempt(name, deployment="a", kind="local", created_at=float(number))
            await world.ledger.reserve(attempt, [])
            if number % 2:
                await world.ledger.settle(name, "failed_unbilled", Decimal(0), detail="the engine or the server ended")
        made = await world.chain(fresh=False, max_attempts=2)
        assert (made.attempts, made.deployments) == (5, ["a"])
        assert await world.states() == [("a", "failed_unbilled")] * 4 + [("a", "done")]

    run(tmp_path, scenario, a=Scripted(["pictures"]))


def test_after_a_crash_what_was_made_is_there_and_only_the_rest_is_asked_for(tmp_path: Path) -> None:
    async def scenario(world: World) -> None:
        chain = world.prepared(6)
        first = asyncio.create_task(chain.run(fresh=True))
        await _until(lambda: len(chain.made.pictures) == 2)
        world.services.attempts.leave()
        first.cancel()
        await asyncio.gather(first, return_exceptions=True)
        await world.services.attempts.close()
        made = await world.another_process().chain(6, fresh=False, on_unknown=Decimal(1))
        assert [made.pictures[index].seed for index in range(6)] == [7, 8, 9, 10, 11, 12]
        assert sum(call.count for call in world.places["b"].asked) == 4
        states = await world.states()
        assert sorted(states) == [("a", "done"), ("a", "failed_unbilled"), ("a", "unknown"), ("b", "done")]

    class LargeHangs(Scripted):
        """The first of four pictures does; it is refused from then on."""

        async def _do(self, act: Any, call: Call) -> Answer | Accepted:
            large = sum(each.count == 4 for each in self.asked)
            act = "pictures" if call.count < 4 else "hang" if large == 1 else refusal()
            return await super()._do(act, call)

    run(tmp_path, scenario, a=LargeHangs([""]), b=Scripted(["pictures"]))


def test_what_the_engine_says_of_the_request_is_the_answer(tmp_path: Path) -> None:
    async def scenario(world: World) -> None:
        with pytest.raises(PromptError):
            await world.chain()
        assert await world.states() == [("a", "failed_unbilled")]
        assert not world.places["b"].asked

    local = {"a": {"kind": "local"}}
    run(
        tmp_path, scenario, changes=local, a=Scripted([PromptError("no words", "write some")]), b=Scripted(["pictures"])
    )


def test_a_place_that_keeps_failing_is_left_alone(tmp_path: Path) -> None:
    async def scenario(world: World) -> None:
        for number in range(6):
            await world.chain(keep=f"job_{number}")
        assert 1 <= len(world.places["a"].asked) <= 3

    run(tmp_path, scenario, a=Scripted([refusal("connection")]), b=Scripted(["pictures"]))


def test_a_place_that_hangs_beyond_the_time_holds_nobody(tmp_path: Path) -> None:
    async def scenario(world: World) -> None:
        with pytest.raises(LateError):
            await world.chain(deadline=world.services.fleet.clock() + 0.1)
        assert await world.states() == [("a", "sending")]

    run(tmp_path, scenario, a=Scripted(["hang"]))


def test_the_time_is_up(tmp_path: Path) -> None:
    async def scenario(world: World) -> None:
        with pytest.raises((LateError, PlacesError)):
            await world.chain(deadline=world.services.fleet.clock() + 0.3)
        assert world.services.fleet.clock() > 0

    run(tmp_path, scenario, a=Scripted([refusal("overloaded")]))


async def _until(true: Callable[[], bool], seconds: float = 5.0) -> None:
    async with asyncio.timeout(seconds):
        while not true():  # noqa: ASYNC110 - of what happens there is no event
            await asyncio.sleep(0.005)


def test_a_place_is_asked_for_what_the_decision_expects_of_it(tmp_path: Path) -> None:
    first, second = Scripted([refusal("credentials")]), Scripted(["pictures"])
    limited: dict[str, Any] = {"can": replace(ABLE, sizes=None, exact_sizes=("1024x1024", "1536x1024"), max_images=1)}
    limited["price"] = Price(per_image=2 * CENT)

    async def scenario(world: World) -> None:
        chain = world.prepared(2, size=Size(1000, 1000), num_previews=2)
        made = await chain.run(fresh=True)
        assert [call.work.size for call in first.asked] == [Size(992, 992)]
        assert [(call.work.size, call.work.num_previews, call.count) for call in second.asked] == [
            (Size(1024, 1024), 0, 1),
            (Size(1024, 1024), 0, 1),
        ]
        assert made.notes == ["size: size 1000x1000 becomes 1024x1024"]
        booked = [(each.attempt.deployment, each.attempt.megapixels) for each in await world.entries()]
        assert booked == [("a", Decimal("0.984064")), ("b", Decimal("1.048576")), ("b", Decimal("1.048576"))]

    run(tmp_path, scenario, changes={"b": limited}, a=first, b=second)


def test_what_was_decided_before_a_change_of_configuration_is_fitted_to_it(tmp_path: Path) -> None:
    first, second = Scripted(["pictures"]), Scripted(["pictures"])

    async def scenario(world: World) -> None:
        chain_before = world.prepared()
        fleet_now = world.services.fleet
        fleet_now.deployments = {
            "a": replace(world.deployments[0], can=replace(ABLE, tasks=frozenset({"image.edit"}))),
            "b": replace(world.deployments[1], can=replace(ABLE, default_steps=9)),
        }
        (able,) = fleet_now.of_now(chain_before._decision)
        assert (able.deployment.name, able.fit.calls) == ("b", (Measure(steps=9),))

    run(tmp_path, scenario, a=first, b=second)
