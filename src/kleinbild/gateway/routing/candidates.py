"""Who can serve a request: what a place can do, held against what is asked, and what would be lost there."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from decimal import Decimal
from functools import lru_cache
from typing import Literal

from kleinbild.core.deployments import Can, Deployment, Parameter
from kleinbild.core.money import ZERO
from kleinbild.core.prices import Measure, Price, UnknownPriceError
from kleinbild.core.sizes import Size, SizeRange, parse_aspect, parse_size
from kleinbild.gateway.routing.asked import Asked
from kleinbild.gateway.routing.predict import Prediction

MAX_MISFIT = 0.5
"""How far the nearest size may be from the one asked for: the logarithm of the ratio of their shapes, and half that of
their areas. Half or twice the shape, or 2.7 times the area, is another picture."""
MINOR: frozenset[Parameter] = frozenset({"user", "partial_images", "output_compression", "moderation"})
"""Lost without the picture being another: told, but without weight in the order."""
MILLION = Decimal(1_000_000)


@dataclass(frozen=True, slots=True)
class Standing:
    """How a deployment is now, as those say who watch it. `retry_at` and `rate_limited_until` are seconds since 1970,
    `waiting_seconds` those until the local engine would begin, `active` its calls under way, of `max_active` at most."""

    circuit: Literal["closed", "open", "half_open"] = "closed"
    retry_at: float | None = None
    waiting_seconds: float = 0.0
    active: int = 0
    max_active: int | None = None
    rate_limited_until: float | None = None

    @property
    def busy(self) -> bool:
        return self.max_active is not None and self.active >= self.max_active


WELL = Standing()


@dataclass(frozen=True, slots=True)
class Loss:
    """A parameter that was given and is not honoured, or as `instead`."""

    parameter: Parameter
    given: str
    instead: str | None = None

    def __str__(self) -> str:
        done = "is not honoured" if self.instead is None else f"becomes {self.instead}"
        return f"{self.parameter} {self.given} {done}"


@dataclass(frozen=True, slots=True)
class Fit:
    """A request as a place would do it: in calls of these measures, the first of which has the most pictures, at this size
    (None is the place's to choose)."""

    calls: tuple[Measure, ...]
    losses: tuple[Loss, ...] = ()
    size: Size | None = None

    @property
    def most(self) -> int:
        """Pictures of one call."""
        return self.calls[0].images

    def of(self, num_images: int) -> Measure:
        """A call for so many."""
        return self.calls[0] if num_images == self.most else replace(self.calls[0], images=num_images)


UNFITTED = Fit((Measure(),))


@dataclass(frozen=True, slots=True)
class Candidate:
    """A place that can serve. `price` is of the whole request, None if unknown (and allowed to be). `score` is how many
    doublings it is from the best (of price, of seconds; see `policy`), which has 0. `fit` is not kept with a decision: it
    follows from what is asked and from the deployment (`Fleet.of_now`)."""

    deployment: Deployment
    price: Decimal | None
    seconds: Prediction
    quality: float | None
    losses: tuple[Loss, ...]
    score: float
    reason: str
    fit: Fit = field(default=UNFITTED, compare=False)


@dataclass(frozen=True, slots=True)
class Exclusion:
    """`until`: when it may be otherwise, seconds since 1970, where that is known."""

    deployment: str
    rule: str
    reason: str
    until: float | None = None


def fit(asked: Asked, deployment: Deployment) -> Fit | Exclusion:
    """Depends on what is asked and what the place can do, not on the time nor on how it is."""
    can, wanted = deployment.can, asked.measure
    if wanted.input_tokens and _is_faithful(asked, can):
        wanted = replace(wanted, input_tokens=wanted.most_input_tokens)
    if asked.task not in can.tasks:
        return Exclusion(deployment.name, "task", f"it does not do {asked.task}, but {', '.join(sorted(can.tasks))}")
    if wanted.references > can.max_references:
        return Exclusion(deployment.name, "references", f"{wanted.references} > {can.max_references}")
    if asked.prompt_chars > can.max_prompt:
        return Exclusion(deployment.name, "prompt", f"{asked.prompt_chars} > {can.max_prompt} letters")
    losses = [
        Loss(name, _shown(value))
        for name, value in asked.parameters.items()
        if name != "size" and not can.does(name, value)
    ]
    size = asked.size
    if size is not None:
        nearest = _nearest(size, can)
        if isinstance(nearest, str):
            return Exclusion(deployment.name, "size", nearest)
        size, loss = nearest
        if loss is not None:
            losses.append(loss)
    for loss in losses:
        if loss.parameter == "mask" or loss.parameter in asked.required or asked.losses == "strict":
            return Exclusion(deployment.name, f"loses {loss.parameter}", str(loss))
    most = 1 if can.one_seed and "seed" in asked.parameters else max(1, can.max_images)
    return Fit(_calls(wanted, size, asked.size, can, most), tuple(losses), size)


def told(losses: Sequence[Loss]) -> tuple[str, ...]:
    """As warnings."""
    return tuple(f"{loss.parameter}: {loss}" for loss in losses)


def weighty(losses: Sequence[Loss]) -> int:
    """How many parameters are lost without which the picture is another."""
    return sum(loss.parameter not in MINOR for loss in losses)


def quote(price: Price, calls: Sequence[Measure]) -> Decimal:
    """What the calls cost together. Raises UnknownPriceError."""
    each, total = price.of(calls[0]), ZERO
    for measure in calls:  # all but the last are the same one
        total += each if measure is calls[0] else price.of(measure)
    return total


def state(deployment: str, standing: Standing, now: float) -> Exclusion | None:
    """Whether it is known that asking now is of no use."""
    if standing.circuit == "open" and (standing.retry_at is None or standing.retry_at > now):
        when = "" if standing.retry_at is None else f", asked again in {standing.retry_at - now:.0f} s"
        return Exclusion(deployment, "circuit", f"it failed too often{when}", standing.retry_at)
    until = standing.rate_limited_until
    if until is not None and until > now:
        return Exclusion(deployment, "rate_limited", f"for another {until - now:.0f} s", until)
    return None


def price_of(deployment: Deployment, calls: Sequence[Measure]) -> tuple[Decimal | None, str]:
    """The price, or None and why."""
    try:
        return quote(deployment.price, calls), ""
    except UnknownPriceError as error:
        return None, error.message


def _is_faithful(asked: Asked, can: Can) -> bool:
    """Whether pictures given are looked at with high fidelity, which is charged for."""
    is_asked_for = asked.parameters.get("input_fidelity") == "high"
    return can.does("input_fidelity", "high") and (is_asked_for or "input_fidelity" not in can.parameters)


def _calls(wanted: Measure, size: Size | None, asked_size: Size | None, can: Can, most: int) -> tuple[Measure, ...]:
    steps = wanted.steps if wanted.steps is not None and "steps" in can.parameters else can.default_steps
    megapixels = wanted.megapixels if size is None or size == asked_size else size.area / MILLION
    if wanted.images <= most:
        if steps == wanted.steps and megapixels is wanted.megapixels:
            return (wanted,)
        return (wanted.of_call(wanted.images, megapixels, steps),)
    whole, rest = divmod(wanted.images, most)
    full = wanted.of_call(most, megapixels, steps)
    return (full,) * whole + ((wanted.of_call(rest, megapixels, steps),) if rest else ())


def _nearest(size: Size, can: Can) -> tuple[Size, Loss | None] | str:
    """The size that is made, and whether that is a loss; or why it is too far off."""
    written = str(size)
    if "size" not in can.parameters:
        return size, Loss("size", written)
    if written in can.exact_sizes or (can.sizes is not None and can.sizes.allows(size)):
        return size, None
    return _nearby(size, can.sizes, can.exact_sizes, can.ratios)


@lru_cache(maxsize=4096)
def _nearby(
    size: Size, sizes: SizeRange | None, exact: tuple[str, ...], ratios: tuple[str, ...]
) -> tuple[Size, Loss | None] | str:
    written, made = str(size), [parse_size(text) for text in exact]
    if sizes is not None:
        made.append(sizes.nearest(size))
    if made:
        nearest = min(made, key=lambda one: (_misfit(size, one), one.area))
        if _misfit(size, nearest) > MAX_MISFIT:
            return f"{written}: the nearest is {nearest}"
        return nearest, Loss("size", written, str(nearest))
    if not ratios:
        return size, Loss("size", written)
    shape = size.width / size.height
    ratio = min(ratios, key=lambda text: abs(math.log(shape / parse_aspect(text))))
    if abs(math.log(shape / parse_aspect(ratio))) > MAX_MISFIT:
        return f"{written}: the nearest shape is {ratio}"
    return size, Loss("size", written, f"the shape {ratio}")


def _misfit(asked: Size, made: Size) -> float:
    shapes = abs(math.log(asked.width * made.height / (asked.height * made.width)))
    return shapes + 0.5 * abs(math.log(asked.area / made.area))


def _shown(value: object) -> str:
    """Not more than fits in a line: a mask is a picture, and adapters are lists."""
    text = str(value)
    return text if len(text) <= 40 else f"{text[:39]}…"
