"""Where a request may be sent: from the model's name to deployments, from what was asked to a decision about them."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from decimal import Decimal
from typing import TYPE_CHECKING, Literal

from kleinbild.core.deployments import Parameter
from kleinbild.core.errors import KleinbildError, PictureError
from kleinbild.core.jobs import ImageWork
from kleinbild.core.prices import Measure, tokens_given
from kleinbild.core.sizes import Size
from kleinbild.gateway.errors import ApiError
from kleinbild.gateway.flow.chain import PATIENCE_SECONDS
from kleinbild.gateway.routing.asked import AUTO, Asked
from kleinbild.gateway.routing.candidates import Candidate, Exclusion, told
from kleinbild.gateway.routing.decision import Decision, decide
from kleinbild.gateway.routing.policy import Policy, read_policy
from kleinbild.gateway.wanted import HOSTED_MODELS, OF_EDITS, Pictures, Wanted
from kleinbild.providers.base import Inputs
from kleinbild.safety.pictures import size_of

if TYPE_CHECKING:
    from kleinbild.core.callers import Caller
    from kleinbild.gateway.fleet import Fleet
    from kleinbild.gateway.services import Services

USUAL_SIZE = Size(1024, 1024)  # for a price and a prediction, where nobody says
MILLION = Decimal(1_000_000)
MAX_TOLD = 6
PASSING = frozenset({"circuit", "rate_limited"})
"""Rules that exclude a place for a while only."""


@dataclass(frozen=True, slots=True)
class Wish:
    """What a request says about where it may go. `given` are the fields that not every place honours, as they were given."""

    policy: str | None = None
    pins: tuple[str, ...] = ()
    max_price: Decimal | None = None
    max_seconds: float | None = None
    min_quality: float | None = None
    region: str | None = None
    local_only: bool = False
    losses: Literal["strict", "warn", "drop"] = "warn"
    hedge: bool | None = None
    given: Mapping[Parameter, object] = field(default_factory=dict)

    @property
    def identity(self) -> tuple[object, ...]:
        """What of it makes a request another one, for idempotency."""
        return (
            self.policy,
            self.pins,
            self.max_price,
            self.max_seconds,
            self.min_quality,
            self.region,
            self.local_only,
            self.losses,
        )


ANYWHERE = Wish()


@dataclass(frozen=True, slots=True)
class Routed:
    decision: Decision
    warnings: tuple[str, ...]


def wish_of(wanted: Wanted, pictures: Pictures) -> Wish:
    return Wish(
        wanted.policy,
        wanted.pins,
        wanted.max_price,
        wanted.max_seconds,
        wanted.min_quality,
        wanted.region,
        wanted.local_only,
        wanted.on_loss,
        wanted.hedge,
        _given(wanted, pictures),
    )


def model_of(fleet: Fleet, wanted: Wanted) -> tuple[str, tuple[str, ...]]:
    """The model that a request means, and what is to be said about it. Raises ApiError, 404, for one that nobody has."""
    asked = wanted.model
    if asked is None:
        return fleet.default_model, ()
    if (alias := fleet.aliases.get(asked)) is not None:
        told = f"{asked} stands for {alias.model}" + (f": {alias.note}" if alias.note else "")
        return alias.model, (f"model: {told}",)
    if asked == AUTO or fleet.knows(asked):
        return asked, ()
    if asked.startswith(HOSTED_MODELS) and wanted.on_loss != "strict":
        return fleet.default_model, (f"model: {asked} is not served here, {fleet.default_model} made it",)
    raise ApiError(
        404,
        f"The model {asked!r} does not exist; there are {', '.join(fleet.models)}.",
        code="model_not_found",
        param="model",
    )


async def route(services: Services, caller: Caller, wish: Wish, work: ImageWork, inputs: Inputs, job_id: str) -> Routed:
    """Raises ApiError, or what the engine here says of the request, if there is nowhere that it could go."""
    fleet = services.fleet
    asked = await _asked(services, caller, wish, work, inputs)
    now = time.time()
    known = (fleet.predictor, fleet.rules, now)
    name = decision_id(job_id)
    decision = decide(asked, fleet.listed, fleet.standings(now), *known, decision_id=name)
    if not decision.candidates and _are_back_soon(
        decision, now
    ):  # worth waiting for, as who is asked in vain waits, too
        decision = decide(asked, fleet.listed, {}, *known, decision_id=name)
    decision, fault = await _without_unfit(services, work, inputs, decision)
    if not decision.candidates:
        raise fault or _nowhere(decision, now)
    return Routed(decision, told(decision.candidates[0].losses) if wish.losses == "warn" else ())


def decision_id(job_id: str) -> str:
    """Each job has one decision, found by the job's own name."""
    return f"dec_{job_id.partition('_')[2]}"


async def _asked(services: Services, caller: Caller, wish: Wish, work: ImageWork, inputs: Inputs) -> Asked:
    policy, source = policy_of(services, caller, wish)
    return Asked(
        model=work.model,
        task=work.task,
        measure=await _measure(services, work, inputs),
        size=work.size,
        prompt_chars=len(work.prompt),
        parameters=wish.given,
        required=frozenset({"adapters"}) if work.adapters else frozenset(),
        losses=wish.losses,
        policy=policy,
        policy_source=source,
        max_price=wish.max_price,
        max_seconds=wish.max_seconds,
        min_quality=wish.min_quality,
        region=wish.region,
        on_machine=wish.local_only,
        pins=wish.pins,
        allow_unknown_price=services.settings.routing.unknown_price_reserve is not None,
        hedge=wish.hedge,
        key=caller.id,
        project=caller.project,
        user=caller.owner,
    )


def policy_of(services: Services, caller: Caller, wish: Wish) -> tuple[Policy, str]:
    """By what places are chosen, and whose word that is."""
    for name, source in (
        (wish.policy, "request"),
        (caller.policy, "key"),
        (next((each.policy for each in services.settings.projects if each.name == caller.project), None), "project"),
        (services.settings.routing.policy, "server"),
    ):
        if name is not None:
            return read_policy(name), source
    raise AssertionError


async def _measure(services: Services, work: ImageWork, inputs: Inputs) -> Measure:
    files = (*inputs.references, *((inputs.mask,) if inputs.mask else ()))
    sizes = [_size(file) for file in files] if files else []
    tokens = [tokens_given(each) for each in sizes]
    size = work.size or (sizes[0] if inputs.references else services.fleet.usual_size(work.model) or USUAL_SIZE)
    return Measure(
        images=work.n,
        megapixels=size.area / MILLION,
        input_megapixels=sum((each.area for each in sizes), 0) / MILLION,
        steps=work.steps,
        quality=work.quality,
        references=len(inputs.references),
        input_tokens=sum(low for low, _ in tokens),
        most_input_tokens=sum(high for _, high in tokens),
        previews=work.num_previews,
    )


def _size(file: bytes) -> Size:
    try:
        return size_of(file)
    except OSError as error:
        raise PictureError("a picture cannot be read", "send it again") from error


async def _without_unfit(
    services: Services, work: ImageWork, inputs: Inputs, decision: Decision
) -> tuple[Decision, KleinbildError | None]:
    """Without the deployments on this machine whose engine says that it cannot do the work, and what it said."""
    candidates: list[Candidate] = []
    excluded: list[Exclusion] = list(decision.excluded)
    fault: KleinbildError | None = None
    for candidate in decision.candidates:
        deployment = candidate.deployment
        if deployment.on_machine:
            try:
                await asyncio.to_thread(services.provider.check, replace(work, model=deployment.provider_model), inputs)
            except KleinbildError as error:
                fault = error
                excluded.append(Exclusion(deployment.name, "engine", error.message))
                continue
        candidates.append(candidate)
    if fault is None:
        return decision, None
    return replace(decision, candidates=tuple(candidates), excluded=tuple(excluded)), fault


def _are_back_soon(decision: Decision, now: float) -> bool:
    passing = [each for each in decision.excluded if each.rule in PASSING]
    return any(each.until is not None and each.until - now <= PATIENCE_SECONDS for each in passing)


def _nowhere(decision: Decision, now: float) -> ApiError:
    """Why, of those deployments that were meant at all."""
    concerned = [each for each in decision.excluded if each.rule != "model"]
    said = "; ".join(f"{each.deployment}: {each.rule}, {each.reason}" for each in concerned[:MAX_TOLD])
    headers = {"x-kleinbild-decision": decision.id}
    if concerned and all(each.rule in PASSING for each in concerned):
        until = min((each.until for each in concerned if each.until is not None), default=now + 1)
        headers["Retry-After"] = str(max(1, round(until - now)))
        return ApiError(
            503, f"no place can be asked just now ({said})", type="server_error", code="no_deployment", headers=headers
        )
    lost = next((each for each in concerned if each.rule.startswith("loses ")), None)
    if lost is not None and all(each.rule.startswith("loses ") for each in concerned):
        param = lost.rule.removeprefix("loses ")
        return ApiError(400, f"{param}: {said}", code="unsupported_parameter", param=param, headers=headers)
    return ApiError(
        400, f"no place may or can do this ({said or 'none is configured'})", code="no_deployment", headers=headers
    )


def _given(wanted: Wanted, pictures: Pictures) -> dict[Parameter, object]:
    """Those that say something: a value that means "as usual" can be lost anywhere."""
    found: dict[Parameter, object] = {}
    if wanted.size != "auto":
        found["size"] = wanted.size
    if wanted.quality not in ("auto", "standard"):
        found["quality"] = wanted.quality
    if wanted.background == "transparent":
        found["background"] = wanted.background
    if wanted.output_compression < 100 and wanted.output_format != "png":
        found["output_compression"] = wanted.output_compression
    if wanted.stream and wanted.partial_images:
        found["partial_images"] = wanted.partial_images
    if wanted.guidance not in (None, 1):
        found["guidance"] = wanted.guidance
    if wanted.moderation != "auto":
        found["moderation"] = wanted.moderation
    if wanted.adapters:
        found["adapters"] = ", ".join(map(str, wanted.adapters))
    if wanted.seed is not None:
        found["seed"] = wanted.seed
    if wanted.steps is not None:
        found["steps"] = wanted.steps
    for name in OF_EDITS if pictures.references else ():
        if (value := getattr(wanted, name)) is not None:
            found[name] = value
    if pictures.mask is not None:
        found["mask"] = True
    return found
