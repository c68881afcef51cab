"""The steps of a job, where its place is one that tests make up: what its request wished holds over a restart."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from kleinbild.core.callers import LOCAL
from kleinbild.core.ids import new_id
from kleinbild.core.jobs import ImageWork, Job
from kleinbild.core.sizes import Size
from kleinbild.gateway.flow import make
from kleinbild.gateway.flow.route import Wish
from kleinbild.gateway.flow.submit import Order, submit
from kleinbild.gateway.services import Services
from kleinbild.providers.hosted import Answer, Fetched
from kleinbild.storage import jobs
from tests.unit.gateway.hosting import hosting, settings
from tests.unit.gateway.test_chain import Scripted, png

pytestmark = pytest.mark.anyio


async def made(services: Services, wish: Wish, **work: Any) -> Job:
    order = Order(
        new_id("job"), LOCAL, ImageWork("image.generate", "a fox", "sketch", 1, **work), wish=wish, waits=True
    )
    submitted = await submit(services, order)
    assert submitted.making is not None
    await submitted.making
    async with services.database.read() as connection:
        job = await jobs.find(connection, order.job_id)
    assert job is not None
    return job


@pytest.mark.parametrize(("wished", "hedged"), [(True, True), (False, False), (None, True)])
async def test_whether_a_second_place_may_be_asked_is_kept_with_the_decision(
    tmp_path: Path, wished: bool | None, hedged: bool
) -> None:
    async with hosting(settings(tmp_path, "a", routing={"hedge": wished is not True}), a=Scripted([0.0])) as services:
        job = await made(services, Wish(hedge=wished))
        again = await make._plan_again(services, job)
        assert make._terms(services, again).hedge is hedged


@pytest.mark.parametrize(("losses", "num_told"), [("warn", 1), ("drop", 0)])
async def test_what_is_to_be_dropped_is_not_told(tmp_path: Path, losses: Any, num_told: int) -> None:
    """Neither what the place does not honour nor what it says itself that it did otherwise."""
    answer = Answer((Fetched(png(), 1),), notes=("the service made 32x32",))
    async with hosting(settings(tmp_path, "a"), a=Scripted([answer])) as services:
        job = await made(services, Wish(losses=losses, given={"size": "1000x1000"}), size=Size(1000, 1000))
        assert job.outcome is not None
        assert job.outcome.status == "completed"
        assert (len(job.warnings), len(job.outcome.notes)) == (num_told, num_told)
