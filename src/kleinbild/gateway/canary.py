"""Canaries: pictures that are bought only to see whether a place still makes them. Off unless `routing.canary_hours` is set.

One is bought at a place that nothing was heard of for so many hours, by requests or by canaries, and whose circuit allows
it: the smallest that it makes. It is an attempt like any other, by a caller of its own, so that circuits and predictions
learn from it and `/v1/usage` shows it; a budget of that caller bounds what all of them cost, and the ledger keeps to it.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from dataclasses import replace
from decimal import Decimal
from typing import TYPE_CHECKING

from kleinbild.core.deployments import Can, Deployment
from kleinbild.core.errors import KleinbildError
from kleinbild.core.ids import new_id
from kleinbild.core.jobs import ImageWork, Job
from kleinbild.core.prices import Measure
from kleinbild.core.sizes import Size, parse_size
from kleinbild.gateway.flow.chain import Chain, Terms
from kleinbild.gateway.health import HOUR, canary_is_due
from kleinbild.gateway.routing.asked import Asked
from kleinbild.gateway.routing.candidates import price_of
from kleinbild.gateway.routing.decision import decide
from kleinbild.providers.base import Inputs
from kleinbild.storage import budgets
from kleinbild.storage.usage import last_attempts

if TYPE_CHECKING:
    from kleinbild.gateway.services import Services

CANARY = "canary"
"""The caller and the project that they are booked under. No key has such an id."""
BUDGET = "toml:canary"
PROMPT = "a red circle on a white background"
CHECK_SECONDS = 300.0
SMALL = Size(512, 512)  # where a place takes shapes: the least that one of those makes
MILLION = Decimal(1_000_000)
log = logging.getLogger(__name__)


async def run(services: Services) -> None:
    """For ever; servers that were started together do not buy together."""
    while True:
        await asyncio.sleep(CHECK_SECONDS * (0.5 + random.random()))
        try:
            await check(services)
        except Exception:
            log.exception("canaries could not be bought; trying again later")


async def check(services: Services) -> None:
    """Buys all that are due, at the same time."""
    due = [] if services.draining else await _due(services, time.time())
    await asyncio.gather(*(_buy(services, deployment, work) for deployment, work in due))


async def _due(services: Services, now: float) -> list[tuple[Deployment, ImageWork]]:
    hours, fleet = services.settings.routing.canary_hours, services.fleet
    quiet = [each for each in fleet.listed if hours is not None and _is_quiet(services, each, now - hours * HOUR)]
    if hours is None or not quiet:
        return []
    services.budgets.forget()
    async with services.database.read() as connection:
        bought = await last_attempts(connection, CANARY, since=now - hours * HOUR)
        budget = await budgets.find(connection, BUDGET)
        if budget is None:  # the settings are new
            return []
        [standing] = await budgets.standing(connection, [budget], now)
    spent, due = standing.spent + standing.reserved, []
    for deployment in quiet:
        work = smallest(deployment)
        price, _ = price_of(deployment, [measure_of(work)])
        if canary_is_due(
            now, bought.get(deployment.name), every_hours=hours, spent=spent, budget=budget.amount, price=price
        ):
            due.append((deployment, work))
            spent += price or 0
    return due


def _is_quiet(services: Services, deployment: Deployment, since: float) -> bool:
    fleet = services.fleet
    if deployment.on_machine or "image.generate" not in deployment.can.tasks:
        return False
    heard = fleet.predictor.heard_at(deployment.name)
    return (heard is None or heard < since) and fleet.circuits.would_allow(deployment.name)


async def _buy(services: Services, deployment: Deployment, work: ImageWork) -> None:
    fleet, now = services.fleet, time.time()
    asked = Asked(deployment.name, work.task, measure_of(work), size=work.size, key=CANARY, project=CANARY)
    decision = decide(asked, [deployment], {}, fleet.predictor, (), now)
    job = Job(new_id("job"), CANARY, CANARY, replace(work, model=deployment.model), created_at=now)
    terms = Terms(fleet.clock() + fleet.terms.call_seconds, max_attempts=1, on_unknown="never")
    chain = Chain(services, job, Inputs(), decision, (CANARY,), terms, lambda _: None)
    try:
        await chain.run(fresh=True)
    except KleinbildError as error:
        log.warning("the canary at %s made nothing: %s", deployment.name, error.message)
    if chain.made.booked:
        services.commits.flush()
        await asyncio.wait(chain.made.booked)


def smallest(deployment: Deployment) -> ImageWork:
    """What costs least there."""
    can = deployment.can
    quality = "low" if "quality" in can.parameters else "auto"
    return ImageWork("image.generate", PROMPT, deployment.model, seed=1, size=_size(can), quality=quality)


def measure_of(work: ImageWork) -> Measure:
    return (
        Measure(quality=work.quality)
        if work.size is None
        else Measure(1, work.size.area / MILLION, quality=work.quality)
    )


def _size(can: Can) -> Size | None:
    if "size" not in can.parameters:
        return None
    if can.sizes is not None:
        return can.sizes.nearest(Size(can.sizes.min_side, can.sizes.min_side))
    exact = [parse_size(text) for text in can.exact_sizes]
    return min(exact, key=lambda size: size.area, default=SMALL)
