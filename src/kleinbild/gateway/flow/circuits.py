"""A circuit breaker for each deployment: a place that fails is left alone for a while, then tried with one request.

    closed ──too many failures──▶ open ──time is up──▶ half-open, one request at a time ──it went well──▶ closed
                                    ▲                                    │
                                    └──────────it failed: longer─────────┘

Only failures that say something about the service count: a request that is wrong, or moderated, says nothing. Nothing
here is kept over a restart. Everything runs in the event loop, without awaiting.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from random import Random
from typing import Literal

from kleinbild.gateway.flow import backoff
from kleinbild.gateway.limits.providers import NoSlotError
from kleinbild.providers.hosted import Cause, ProviderError

CircuitState = Literal["closed", "open", "half_open"]

OF_THE_SERVICE: frozenset[Cause] = frozenset(
    {"connection", "timeout", "overloaded", "rate_limited", "bad_answer", "credentials", "credit"}
)
OF_THE_OPERATOR: frozenset[Cause] = frozenset({"credentials", "credit"})
"""These do not pass by themselves: one is enough, and the next try is later."""
PROBED: frozenset[Cause] = frozenset({"connection", "timeout", "credentials"})
"""What a check that buys nothing can show to be over."""
log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Tolerance:
    """When a circuit opens: after `consecutive` failures, or if `share` of at least `min_outcomes` within
    `window_seconds` were failures. It stays open for up to `open_seconds`, twice that the next time, and so on to
    `max_open_seconds`. A request that tries it and is not heard of for `trial_seconds` is given up."""

    consecutive: int = 5
    share: float = 0.5
    min_outcomes: int = 10
    window_seconds: float = 60.0
    open_seconds: float = 5.0
    max_open_seconds: float = 300.0
    operator_open_seconds: float = 600.0
    trial_seconds: float = 900.0


@dataclass(frozen=True, slots=True)
class Permit:
    """To ask the deployment once; given back to Circuits with what came of it. `trial`: it is the one request that is let
    through half-open."""

    deployment: str
    period: int
    trial: bool = False


@dataclass(frozen=True, slots=True)
class Standing:
    """How a deployment does. `success_share` is of the last minute, None if nothing ended in it; `retry_seconds` until it
    is tried again; `cause` and `message` are of the last failure that counted."""

    state: CircuitState
    success_share: float | None
    num_outcomes: int
    consecutive_failures: int
    retry_seconds: float
    cause: Cause | None
    message: str


@dataclass(slots=True)
class _Circuit:
    """`period` counts changes of state: what a request that was let through in an earlier one tells is old news.
    `paused_until`: the service said when to come again, without being broken."""

    state: CircuitState = "closed"
    period: int = 0
    num_opened: int = 0
    retry_at: float = 0.0
    paused_until: float = 0.0
    trial_until: float | None = None
    consecutive: int = 0
    outcomes: deque[tuple[float, bool]] = field(default_factory=lambda: deque(maxlen=1000))
    heard_at: float | None = None
    last: ProviderError | None = None


class Circuits:
    """Those of all deployments, by name: one that is not known yet is closed."""

    def __init__(
        self,
        tolerance: Tolerance | None = None,
        *,
        clock: Callable[[], float] = time.monotonic,
        rng: Random | None = None,
    ) -> None:
        self._tolerance, self._clock, self._rng = tolerance or Tolerance(), clock, rng or Random()
        self._circuits: dict[str, _Circuit] = {}

    def state(self, deployment: str) -> CircuitState:
        """Of one that is only paused it is "open", too."""
        circuit = self._current(deployment)
        return "open" if circuit.state == "closed" and self._clock() < circuit.paused_until else circuit.state

    def would_allow(self, deployment: str) -> bool:
        """Whether `allow` would give a permit just now: for choosing among places, which takes none."""
        circuit = self._current(deployment)
        return self.state(deployment) == "closed" or (circuit.state == "half_open" and circuit.trial_until is None)

    def allow(self, deployment: str) -> Permit | None:
        """None: do not ask there now. Every permit comes back: by `succeeded`, `failed` or `released`."""
        if not self.would_allow(deployment):
            return None
        circuit = self._current(deployment)
        trial = circuit.state == "half_open"
        if trial:
            circuit.trial_until = self._clock() + self._tolerance.trial_seconds
        return Permit(deployment, circuit.period, trial)

    def succeeded(self, asked: Permit | str) -> None:
        """`asked`, here and below, may be the deployment's name where the permit was not kept: what is told of it is then
        taken to be of now."""
        permit, circuit = self._heard(asked)
        if permit.period != circuit.period:
            return
        if permit.trial:
            self._close(circuit)
        circuit.consecutive = 0
        circuit.outcomes.append((self._clock(), True))

    def failed(self, asked: Permit | str, error: ProviderError) -> None:
        """A failure that says nothing about the service only gives the permit back."""
        if isinstance(error, NoSlotError):
            self.released(asked)
            return
        permit, circuit = self._heard(asked)
        if permit.period != circuit.period or circuit.state == "open":
            return
        if error.cause in OF_THE_SERVICE:
            self._count(circuit, permit.deployment, error)
        else:
            self.released(permit)

    def released(self, asked: Permit | str) -> None:
        """Nothing came of it: it was not sent after all, or given up."""
        permit = self._permit(asked)
        circuit = self._current(permit.deployment)
        if permit.trial and permit.period == circuit.period:
            circuit.trial_until = None

    def probed(self, deployment: str, error: ProviderError | None) -> None:
        """What a check that buys no picture found. If all was well, and it could have shown what was wrong, an open circuit
        may be tried at once: whether pictures are made again only a request tells. A failure counts like a request's."""
        circuit = self._current(deployment)
        circuit.heard_at = self._clock()
        if error is None:
            if circuit.state == "open" and circuit.last is not None and circuit.last.cause in PROBED:
                self._change(circuit, "half_open")
        elif error.cause in OF_THE_SERVICE and circuit.trial_until is None:
            self._count(circuit, deployment, error)

    def heard_at(self, deployment: str) -> float | None:
        """By the clock, when anything last came from there."""
        return self._current(deployment).heard_at

    def standing(self, deployment: str) -> Standing:
        circuit, now, state = self._current(deployment), self._clock(), self.state(deployment)
        self._forget_old(circuit)
        num_good = sum(good for _, good in circuit.outcomes)
        until = circuit.retry_at if circuit.state == "open" else circuit.paused_until
        return Standing(
            state,
            num_good / len(circuit.outcomes) if circuit.outcomes else None,
            len(circuit.outcomes),
            circuit.consecutive,
            max(0.0, until - now) if state == "open" else 0.0,
            circuit.last.cause if circuit.last else None,
            circuit.last.message if circuit.last else "",
        )

    def _heard(self, asked: Permit | str) -> tuple[Permit, _Circuit]:
        permit = self._permit(asked)
        circuit = self._current(permit.deployment)
        circuit.heard_at = self._clock()
        return permit, circuit

    def _permit(self, asked: Permit | str) -> Permit:
        if isinstance(asked, Permit):
            return asked
        circuit = self._current(asked)
        return Permit(asked, circuit.period, circuit.trial_until is not None)

    def _current(self, deployment: str) -> _Circuit:
        """With what has changed by the time alone."""
        circuit = self._circuits.setdefault(deployment, _Circuit())
        now = self._clock()
        if circuit.state == "open" and now >= circuit.retry_at:
            self._change(circuit, "half_open")
        if circuit.trial_until is not None and now >= circuit.trial_until:
            self._change(circuit, "half_open")  # so that the late answer of the one given up is old news
        return circuit

    def _count(self, circuit: _Circuit, deployment: str, error: ProviderError) -> None:
        now = self._clock()
        circuit.last = error
        circuit.consecutive += 1
        circuit.outcomes.append((now, False))
        if circuit.state != "closed" or error.cause in OF_THE_OPERATOR or self._is_too_much(circuit):
            self._open(circuit, deployment, error)
        elif error.retry_after is not None:
            pause = backoff.delay(1, error.retry_after, self._rng, longest_retry_after=self._tolerance.max_open_seconds)
            circuit.paused_until = max(circuit.paused_until, now + pause)

    def _is_too_much(self, circuit: _Circuit) -> bool:
        self._forget_old(circuit)
        outcomes, rule = circuit.outcomes, self._tolerance
        num_bad = sum(not good for _, good in outcomes)
        return circuit.consecutive >= rule.consecutive or (
            len(outcomes) >= rule.min_outcomes and num_bad >= rule.share * len(outcomes)
        )

    def _open(self, circuit: _Circuit, deployment: str, error: ProviderError) -> None:
        rule = self._tolerance
        circuit.num_opened += 1
        seconds = backoff.delay(
            circuit.num_opened,
            error.retry_after,
            self._rng,
            base=rule.open_seconds,
            longest=rule.max_open_seconds,
            longest_retry_after=rule.max_open_seconds,
        )
        if error.cause in OF_THE_OPERATOR:
            seconds += rule.operator_open_seconds
        if circuit.state != "open":
            _log(deployment, error, seconds)
        self._change(circuit, "open")
        circuit.retry_at = self._clock() + seconds

    def _close(self, circuit: _Circuit) -> None:
        self._change(circuit, "closed")
        circuit.num_opened, circuit.paused_until = 0, 0.0
        circuit.outcomes.clear()

    def _change(self, circuit: _Circuit, state: CircuitState) -> None:
        circuit.state, circuit.trial_until = state, None
        circuit.period += 1

    def _forget_old(self, circuit: _Circuit) -> None:
        oldest = self._clock() - self._tolerance.window_seconds
        while circuit.outcomes and circuit.outcomes[0][0] < oldest:
            circuit.outcomes.popleft()


def _log(deployment: str, error: ProviderError, seconds: float) -> None:
    if error.cause in OF_THE_OPERATOR:
        what = "has no credit left" if error.cause == "credit" else "does not accept our key"
        log.error(
            "%s: the service %s; the operator must mend that: %s %s", deployment, what, error.message, error.detail
        )
    else:
        log.warning("%s is left alone for %.1f s: %s (%s)", deployment, seconds, error.message, error.cause)
