"""All places that make pictures for this server, and how they do: what is configured, what is known, what may be asked now."""

from __future__ import annotations

import random
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field, replace
from decimal import Decimal

from kleinbild.core.deployments import Deployment
from kleinbild.core.errors import UnknownModelError
from kleinbild.core.prices import Measure
from kleinbild.core.sizes import Size
from kleinbild.gateway.deployments import Alias
from kleinbild.gateway.flow.circuits import Circuits, Permit
from kleinbild.gateway.flow.hedging import Hedges
from kleinbild.gateway.limits.providers import ProviderLimits
from kleinbild.gateway.routing.asked import AUTO
from kleinbild.gateway.routing.candidates import Candidate, Fit, Standing, fit
from kleinbild.gateway.routing.decision import Decision
from kleinbild.gateway.routing.predict import Ending, Predictor
from kleinbild.gateway.routing.rules import Rule
from kleinbild.providers.base import Provider
from kleinbild.providers.hooks import Bells, Hook
from kleinbild.providers.hosted import Expected, Hosted, ProviderError
from kleinbild.providers.kinds import TAKING_ON

ENOUGH = 20  # of calls like it, before one counts as unusually long
SLOW = frozenset({"timeout"})
BROKEN = frozenset({"connection", "overloaded", "bad_answer", "failed", "credentials", "credit"})


@dataclass(frozen=True, slots=True)
class FleetTerms:
    """`call_seconds` bound one call; `unknown_price_reserve` is set aside where no price is known, None refuses."""

    call_seconds: float = 300.0
    unknown_price_reserve: Decimal | None = None


@dataclass(frozen=True, slots=True)
class Facts:
    """What follows from settings together with a catalog."""

    deployments: Mapping[str, Deployment]
    aliases: Mapping[str, Alias]
    limits: ProviderLimits


@dataclass(slots=True, eq=False)
class Fleet:
    """`places` are by the name of their provider, and so are the `hooks` of those that call back, which ring the `bells`.
    `waiting` says how long this machine's engine is busy already."""

    deployments: Mapping[str, Deployment]
    places: Mapping[str, Hosted]
    local: Provider
    circuits: Circuits
    predictor: Predictor
    limits: ProviderLimits
    hedges: Hedges
    default_model: str
    aliases: Mapping[str, Alias] = field(default_factory=dict)
    rules: Sequence[Rule] = ()
    terms: FleetTerms = FleetTerms()
    hooks: Mapping[str, Hook] = field(default_factory=dict)
    bells: Bells = field(default_factory=Bells)
    waiting: Callable[[], float] = lambda: 0.0
    clock: Callable[[], float] = time.monotonic
    rng: random.Random = field(default_factory=random.Random)
    _former: list[Hosted] = field(default_factory=list)

    @property
    def listed(self) -> tuple[Deployment, ...]:
        return tuple(self.deployments.values())

    @property
    def models(self) -> tuple[str, ...]:
        """What can be asked for by name, aliases included."""
        return tuple(dict.fromkeys([*(each.model for each in self.listed), *self.aliases]))

    def knows(self, model: str) -> bool:
        return model in self.deployments or any(each.model == model for each in self.listed)

    def serving(self, model: str) -> tuple[Deployment, ...]:
        return tuple(each for each in self.listed if model in (AUTO, each.name, each.model))

    def on_machine(self, model: str) -> Deployment | None:
        """The one deployment that serves the model, if that is the engine's and no other place does."""
        serving = self.serving(model)
        return serving[0] if len(serving) == 1 and serving[0].on_machine else None

    def usual_size(self, model: str) -> Size | None:
        """What the engine here makes where nobody says."""
        for deployment in self.serving(model):
            if deployment.on_machine:
                try:
                    return self.local.capabilities(deployment.provider_model).default_size
                except UnknownModelError:
                    return None
        return None

    def of_now(self, decision: Decision) -> Iterator[Candidate]:
        """Its candidates as they are configured by now, without those that cannot do it any more: it may be older."""
        for each in decision.candidates:
            now = self.deployments.get(each.deployment.name)
            if now is each.deployment:
                yield each
            elif now is not None and isinstance(fits := fit(decision.asked, now), Fit):
                yield replace(each, deployment=now, losses=fits.losses, fit=fits)

    def place(self, deployment: Deployment) -> Hosted:
        return self.places[deployment.provider]

    def standings(self, now: float) -> dict[str, Standing]:
        """`now` is in seconds since 1970."""
        return {each.name: self._standing(each, now) for each in self.listed}

    def permit(self, deployment: Deployment) -> Permit | None:
        return self.circuits.allow(deployment.name)

    def released(self, permit: Permit | None) -> None:
        if permit is not None:
            self.circuits.released(permit)

    def retry_after(self, deployment: Deployment) -> float:
        return self.circuits.standing(deployment.name).retry_seconds

    def unusual_after(self, deployment: Deployment, measure: Measure) -> float | None:
        """Seconds that 19 of 20 such calls take; None while too few are known."""
        prediction = self.predictor.predict(deployment, measure, time.time())
        return prediction.high if prediction.samples >= ENOUGH else None

    def expected(self, deployment: Deployment, measure: Measure) -> Expected | None:
        """How long a call will take, for those who poll; None while nothing like it was seen."""
        if deployment.kind not in TAKING_ON:
            return None
        prediction = self.predictor.predict(deployment, measure, time.time())
        return Expected(prediction.low, prediction.p50) if prediction.samples else None

    def succeeded(self, deployment: Deployment, measure: Measure, permit: Permit | None, seconds: float) -> None:
        self.predictor.observe(deployment, measure, seconds, time.time(), "done")
        if permit is not None:
            self.circuits.succeeded(permit)

    def failed(
        self,
        deployment: Deployment,
        measure: Measure,
        permit: Permit | None,
        error: ProviderError,
        seconds: float | None,
    ) -> None:
        ending: Ending | None = "timed_out" if error.cause in SLOW else "failed" if error.cause in BROKEN else None
        if ending is not None and seconds is not None:
            self.predictor.observe(deployment, measure, seconds, time.time(), ending)
        if permit is not None:
            self.circuits.failed(permit, error)

    @asynccontextmanager
    async def slot(self, deployment: Deployment, num_images: int, seconds: float) -> AsyncIterator[None]:
        """A place among the calls that the provider takes at once, of all and of that model. Raises ProviderError, refused, if
        none comes in time."""
        deadline, model = self.clock() + seconds, deployment.account_model
        async with AsyncExitStack() as stack:
            if self.limits.is_limited(model):  # first: who waits for this one keeps nobody from asking for others
                await stack.enter_async_context(self.limits.slot(model, num_images, deadline))
            await stack.enter_async_context(self.limits.slot(deployment.provider, num_images, deadline))
            yield

    def become(self, other: Fleet) -> None:
        """Takes over another's configuration; what has been learned of the places, and how they do, stays. Calls that are
        under way end where they began, and count on."""
        self._former.extend(self.places.values())
        for hook in other.hooks.values():
            hook.bells = self.bells  # so that work that was begun before is told of, too
        for name in ("deployments", "places", "hedges", "default_model", "aliases", "rules", "terms", "hooks"):
            setattr(self, name, getattr(other, name))
        self.limits.become(other.limits)

    def learn(self, facts: Facts) -> None:
        """Takes over what is newly known of the same places. Limits that are the same go on counting."""
        self.deployments, self.aliases = facts.deployments, facts.aliases
        if not self.limits.are_those_of(facts.limits):
            self.limits = facts.limits

    async def close(self) -> None:
        for place in (*self.places.values(), *self._former):
            await place.close()

    def _standing(self, deployment: Deployment, now: float) -> Standing:
        circuit = self.circuits.standing(deployment.name)
        active, max_active = self._places_of(deployment)
        return Standing(
            circuit=circuit.state,
            retry_at=now + circuit.retry_seconds if circuit.retry_seconds else None,
            waiting_seconds=self.waiting() if deployment.on_machine else 0.0,
            active=active,
            max_active=max_active,
        )

    def _places_of(self, deployment: Deployment) -> tuple[int, int | None]:
        """Those taken, and all: of its model if these are taken, else of the account."""
        model = deployment.account_model
        if self.limits.is_limited(model):
            active, most = self.limits.active(model), self.limits.limit(model).max_active
            if most is not None and active >= most:
                return active, most
        return self.limits.active(deployment.provider), self.limits.limit(deployment.provider).max_active
