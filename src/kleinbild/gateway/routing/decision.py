"""The decision: who is asked, in which order, who is not, and why. One value that is kept and can be explained later."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from functools import cache
from typing import TYPE_CHECKING, Any

from kleinbild.core.deployments import Deployment
from kleinbild.core.ids import new_id
from kleinbild.core.money import written
from kleinbild.gateway.routing import rules as ruling
from kleinbild.gateway.routing.asked import Asked
from kleinbild.gateway.routing.candidates import (
    WELL,
    Candidate,
    Exclusion,
    Fit,
    Standing,
    fit,
    price_of,
    state,
    weighty,
)
from kleinbild.gateway.routing.policy import COST, Policy
from kleinbild.gateway.routing.predict import Prediction, Predictor
from kleinbild.gateway.routing.rules import FailedError, Rule

if TYPE_CHECKING:
    from pydantic import TypeAdapter

UNKEPT = {"candidates": {"__all__": {"fit"}}}


@dataclass(frozen=True, slots=True)
class Decision:
    """`candidates` are in order: the first is asked first, the others if it fails. `policy_source` says who chose the
    policy. `notes` are rules that could not be asked."""

    id: str
    at: float
    asked: Asked
    candidates: tuple[Candidate, ...]
    excluded: tuple[Exclusion, ...]
    policy: Policy
    policy_source: str
    notes: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        body: dict[str, Any] = _adapter().dump_python(self, mode="json", exclude_defaults=True, exclude=UNKEPT)
        return body

    @classmethod
    def from_json(cls, body: Mapping[str, Any]) -> Decision:
        return _adapter().validate_python(body)


def decide(
    asked: Asked,
    deployments: Sequence[Deployment],
    standings: Mapping[str, Standing],
    predictor: Predictor,
    rules: Sequence[Rule],
    now: float,
    *,
    decision_id: str | None = None,
) -> Decision:
    """The same for the same arguments, in whatever order the deployments come.

    Candidates are ordered by: the pins; parameters lost, fewer first (with `losses` "warn"); those with a place free;
    the rules that prefer; the policy's score; a tie by weight, then by name.
    """
    asking = _Asking(asked, rules, now)
    considered, excluded = _considered(asked, deployments)
    kept = []
    for deployment in considered:
        judged = _judge(asking, deployment, standings.get(deployment.name, WELL), predictor)
        if isinstance(judged, Exclusion):
            excluded.append(judged)
        else:
            kept.append(judged)
    kept.sort(key=lambda judged: _order(asking, judged))
    best = min((judged.score for judged in kept), default=0.0)
    return Decision(
        id=decision_id or new_id("dec"),
        at=now,
        asked=asked,
        candidates=tuple(_candidate(judged, best) for judged in kept),
        excluded=tuple(sorted(excluded, key=lambda exclusion: exclusion.deployment)),
        policy=asking.policy,
        policy_source=asking.policy_source,
        notes=tuple(asking.notes),
    )


class _Asking:
    """The request with the rules that are about it: what one decision needs for every deployment."""

    def __init__(self, asked: Asked, rules: Sequence[Rule], now: float) -> None:
        self.asked, self.now = asked, now
        self.policy, self.policy_source = asked.policy, asked.policy_source
        self.notes: list[str] = []
        self.rules: list[Rule] = []
        variables = ruling.request_variables(asked, now) if rules else {}
        request = ruling.activation(variables) if rules else None
        chosen = False
        for rule in rules:
            about_each = rule.when is not None and rule.when.of_deployment
            if not about_each and not self._holds(rule, rule.when, request):
                continue
            if rule.policy is None:
                self.rules.append(rule)
            elif not chosen:
                self.policy, self.policy_source, chosen = rule.policy, f"rule {rule.name}", True
        used = {name for rule in self.rules for each in (rule.when, rule.which) if each for name in each.names}
        self._request = {name: value for name, value in variables.items() if name in used}
        self._of_deployment = used - self._request.keys()
        self.pins = {name: place for place, name in enumerate(asked.pins)}

    def ruled(self, deployment: Deployment, price: Decimal | None) -> Exclusion | tuple[bool, ...]:
        """Whether a rule excludes it; else, for each rule that prefers, whether it is not among the preferred."""
        if not self.rules:
            return ()
        known = ruling.deployment_variables(deployment, price)
        variables = ruling.activation(self._request | {name: known[name] for name in self._of_deployment})
        behind = []
        for rule in self.rules:
            about_each = rule.when is not None and rule.when.of_deployment
            applies = not about_each or self._holds(rule, rule.when, variables)
            meant = self._meant(rule, variables) if applies else None
            if rule.effect == "prefer":
                behind.append(not meant)
            elif rule.which is not None and meant is (rule.effect == "exclude"):
                told = "meant by" if rule.effect == "exclude" else "not meant by"
                return Exclusion(deployment.name, f"rule {rule.name}", f"{told} {rule.effect}: {rule.which.text}")
        return tuple(behind)

    def _meant(self, rule: Rule, variables: Any) -> bool | None:
        """None: nobody knows."""
        try:
            return ruling.holds(rule.which, variables)
        except FailedError as error:
            self._note(rule, error)
            return None

    def _holds(self, rule: Rule, condition: ruling.Condition | None, variables: Any) -> bool:
        try:
            return ruling.holds(condition, variables)
        except FailedError as error:
            self._note(rule, error)
            return False

    def _note(self, rule: Rule, error: FailedError) -> None:
        note = f"rule {rule.name} could not be asked: {error}"
        if note not in self.notes:
            self.notes.append(note)


@dataclass(slots=True)
class _Judged:
    deployment: Deployment
    price: Decimal | None
    seconds: Prediction
    fit: Fit
    score: float
    behind: tuple[bool, ...]
    standing: Standing
    why_no_price: str


def _considered(asked: Asked, deployments: Sequence[Deployment]) -> tuple[list[Deployment], list[Exclusion]]:
    """Those that the request names; and pins that lead nowhere."""
    meant = [deployment for deployment in deployments if asked.means(deployment)]
    if not asked.pins:
        return meant, []
    pinned = {deployment.name: deployment for deployment in meant if deployment.name in asked.pins}
    known = {deployment.name for deployment in deployments}
    lost = [
        Exclusion(name, "pins", f"it does not serve {asked.model}" if name in known else "there is no such deployment")
        for name in dict.fromkeys(asked.pins)
        if name not in pinned
    ]
    return list(pinned.values()), lost


def _judge(asking: _Asking, deployment: Deployment, standing: Standing, predictor: Predictor) -> _Judged | Exclusion:
    asked, name = asking.asked, deployment.name
    if asked.on_machine and not deployment.on_machine:
        return Exclusion(name, "on_machine", f"{deployment.provider} is not on this machine")
    if asked.region is not None and deployment.region != asked.region:
        return Exclusion(name, "region", f"{deployment.region or 'unknown'} is not {asked.region}")
    if asked.min_quality is not None and (deployment.quality is None or deployment.quality < asked.min_quality):
        shown = "unknown" if deployment.quality is None else f"{deployment.quality:g}"
        return Exclusion(name, "min_quality", f"{shown} < {asked.min_quality:g}")
    fits = fit(asked, deployment)
    if isinstance(fits, Exclusion):
        return fits
    if (out := state(name, standing, asking.now)) is not None:
        return out
    return _weigh(asking, deployment, fits, standing, predictor)


def _weigh(
    asking: _Asking, deployment: Deployment, fits: Fit, standing: Standing, predictor: Predictor
) -> _Judged | Exclusion:
    asked, name = asking.asked, deployment.name
    price, why_none = price_of(deployment, fits.calls)
    if price is None:
        if not asked.allow_unknown_price or asked.max_price is not None:
            return Exclusion(name, "unknown_price", why_none)
    elif asked.max_price is not None and price > asked.max_price:
        return Exclusion(name, "max_price", f"{written(price)} > {written(asked.max_price)}")
    seconds = _seconds(deployment, fits, standing, predictor, asking.now)
    if asked.max_seconds is not None and seconds.p50 > asked.max_seconds:
        return Exclusion(name, "max_seconds", f"{seconds.p50:.1f} > {asked.max_seconds:g}")
    behind = asking.ruled(deployment, price)
    if isinstance(behind, Exclusion):
        return behind
    reliability = predictor.reliability(name, asking.now)
    score = asking.policy.score(price, seconds.p50, reliability, deployment.quality)
    return _Judged(deployment, price, seconds, fits, score, behind, standing, why_none)


def _seconds(deployment: Deployment, fits: Fit, standing: Standing, predictor: Predictor, now: float) -> Prediction:
    """Of all calls: services make them at once, this machine one after another, once it is free."""
    longest = predictor.predict(deployment, fits.calls[0], now)
    return longest.after(standing.waiting_seconds, len(fits.calls) if deployment.on_machine else 1)


def _order(asking: _Asking, judged: _Judged) -> tuple[Any, ...]:
    deployment, policy = judged.deployment, asking.policy
    lost = weighty(judged.fit.losses)
    return (
        asking.pins.get(deployment.name, 0),
        lost if asking.asked.losses == "warn" else 0,
        judged.standing.busy,
        judged.behind,
        judged.price is None and policy.cost > 0,
        judged.score,
        judged.price if judged.price is not None and policy.cost == COST.cost else 0,  # to the last digit
        lost,
        -deployment.weight,
        deployment.name,
    )


def _candidate(judged: _Judged, best: float) -> Candidate:
    return Candidate(
        deployment=judged.deployment,
        price=judged.price,
        seconds=judged.seconds,
        quality=judged.deployment.quality,
        losses=judged.fit.losses,
        score=judged.score - best,
        reason=_reason(judged),
        fit=judged.fit,
    )


def _reason(judged: _Judged) -> str:
    seconds, standing = judged.seconds, judged.standing
    told = [
        f"unknown price: {judged.why_no_price}" if judged.price is None else f"${written(judged.price)}",
        f"{seconds.p50:.1f} s ({seconds.low:.1f} to {seconds.high:.1f}, {seconds.samples} seen)",
    ]
    if judged.deployment.quality is not None:
        told.append(f"quality {judged.deployment.quality:g}")
    if any(not each for each in judged.behind):
        told.append("preferred by a rule")
    if standing.busy:
        told.append(f"all {standing.max_active} places taken")
    if standing.circuit != "closed":
        told.append("on trial after failures")
    told.extend(map(str, judged.fit.losses))
    return ", ".join(told)


@cache
def _adapter() -> TypeAdapter[Decision]:
    from pydantic import TypeAdapter

    return TypeAdapter(Decision)
