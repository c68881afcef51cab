"""A job's pictures from the places that its decision names, in their order, until all are there or nothing more may be tried.

What is known of a failure decides (`providers.hosted.ProviderError`): work that was refused is asked for elsewhere at
once; what was accepted has been followed to its end, or cancelled, before anything else is asked; where nobody knows, the
policy `on_unknown` says. One deadline and one sum of money bound all of it.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from decimal import Decimal
from itertools import count
from typing import TYPE_CHECKING, Any, Literal, TypeGuard

from kleinbild.core.deployments import Deployment
from kleinbild.core.errors import (
    BusyError,
    KleinbildError,
    LateError,
    ModeratedError,
    NoPlaceError,
    PlacesError,
    UnsureError,
)
from kleinbild.core.ids import new_id
from kleinbild.core.jobs import ImageWork, Job, MadePicture
from kleinbild.core.money import ZERO
from kleinbild.core.prices import Measure, UnknownPriceError
from kleinbild.core.tokens import NO_TOKENS, Tokens
from kleinbild.gateway.flow.attempt import Ended, Running, pictures_of
from kleinbild.gateway.flow.backoff import delay
from kleinbild.gateway.flow.hedging import hedge_after
from kleinbild.gateway.routing.candidates import Candidate, told
from kleinbild.gateway.routing.decision import Decision
from kleinbild.providers.base import Inputs, Listener
from kleinbild.providers.hosted import Call, Cause, ProviderError
from kleinbild.storage.attempts import Attempt, Entry
from kleinbild.storage.ledger import BudgetError

if TYPE_CHECKING:
    from kleinbild.gateway.services import Services

OnUnknown = Literal["never", "after_collect"] | Decimal
"""After an attempt of which nobody knows whether it is charged: ask nobody else; only once it has been found out, by its
handle; or, up to so many dollars that might be paid twice, at once."""
PATIENCE_SECONDS = 10.0  # to wait for a place that is given a rest, where there is no other
MAX_PAUSE_SECONDS = 5.0  # before all are asked again, unless they say themselves when: somebody waits
REST_JITTER = 0.1
GRACE_SECONDS = 1.0  # beyond the deadline: a place that knows it, too, tells more of how it ends
PASSING: frozenset[Cause] = frozenset({"connection", "timeout", "rate_limited", "overloaded"})
"""What may be gone if the same place is asked again a little later."""


@dataclass(frozen=True, slots=True)
class Terms:
    """How far a job may go. `deadline` is on the fleet's clock."""

    deadline: float
    max_attempts: int
    on_unknown: OnUnknown
    ceiling: Decimal | None = None
    hedge: bool = False


@dataclass(frozen=True, slots=True)
class Part:
    """Pictures `first` to `first` + `count` - 1 of a job."""

    first: int
    count: int


@dataclass(slots=True)
class Made:
    """What a chain has so far. `cost` is of all attempts, those that made nothing included; what is not `booked` yet will be
    with whatever is committed next."""

    pictures: dict[int, MadePicture] = field(default_factory=dict)
    cost: Decimal = ZERO
    attempts: int = 0
    deployments: list[str] = field(default_factory=list)
    timings: Counter[str] = field(default_factory=Counter)
    tokens: Tokens = NO_TOKENS
    fingerprint: str = ""
    notes: list[str] = field(default_factory=list)
    booked: list[asyncio.Future[Any]] = field(default_factory=list)


class Chain:
    """`payers` are the keys whose budgets count it: the caller's, and those above it."""

    def __init__(
        self,
        services: Services,
        job: Job,
        inputs: Inputs,
        decision: Decision,
        payers: tuple[str, ...],
        terms: Terms,
        listener: Listener,
    ) -> None:
        self._services, self._job, self._inputs = services, job, inputs
        self._decision, self._terms, self._listener = decision, terms, listener
        self._fleet = services.fleet
        self._payers = payers
        self._candidates = list(self._fleet.of_now(decision))
        self._failures: list[tuple[Candidate, KleinbildError]] = []
        self._free = 0  # attempts of earlier lives that came to nothing, as those that ended with their server
        self._unsure = ZERO  # dollars of attempts of which nobody knows
        self._fatal: KleinbildError | None = None  # what is wrong with the request itself
        self.made = Made()

    async def run(self, *, fresh: bool) -> Made:
        """`fresh`: nothing of this job was ever asked for. Raises core.errors."""
        if not fresh:
            await self._resume()
        for round_ in count(1):
            tried = len(self._failures)
            for candidate in self._candidates:
                if not (missing := self._missing()):
                    break
                self._require_leave()
                await self._ask(candidate, missing)
            if not self._missing():
                return self.made
            await self._pause(round_, self._failures[tried:])
        raise AssertionError

    def _missing(self) -> list[Part]:
        parts: list[Part] = []
        for index in range(self._job.work.n):
            if index in self.made.pictures:
                continue
            if parts and parts[-1].first + parts[-1].count == index:
                parts[-1] = Part(parts[-1].first, parts[-1].count + 1)
            else:
                parts.append(Part(index, 1))
        return parts

    async def _ask(self, candidate: Candidate, missing: Sequence[Part]) -> None:
        calls = [part for each in missing for part in _split(each, candidate.fit.most)]
        if len(calls) == 1:  # most: without a task of its own
            await self._call(candidate, calls[0])
            return
        async with asyncio.TaskGroup() as group:
            for part in calls:
                group.create_task(self._call(candidate, part))

    async def _call(self, candidate: Candidate, part: Part) -> None:
        """One call and, if it is slow and hedging is on, the same at the next place: who is first is taken."""
        first = await self._begin(candidate, part, hedged=False)
        if first is None:
            return
        contenders = {first.waiting(): (candidate, first)}
        hedge_after = self._hedge_after(candidate, part)
        try:
            while contenders:
                left = max(0.0, self._left() + GRACE_SECONDS)
                wait = left if hedge_after is None else min(hedge_after, left)
                done, _ = await asyncio.wait(contenders, timeout=wait, return_when=asyncio.FIRST_COMPLETED)
                if not done and self._left() + GRACE_SECONDS <= 0:
                    self._fatal = LateError(f"{candidate.deployment.name} was not done in time", "allow more seconds")
                    return
                if not done:
                    hedge_after = None
                    if second := await self._hedge(candidate, part):
                        contenders[second[1].waiting()] = second
                for task in done:
                    whose, _ = contenders.pop(task)
                    if self._take(whose, part, task.result()):
                        return
        finally:
            for _, running in contenders.values():
                self._services.attempts.abandon(running)

    async def _begin(self, candidate: Candidate, part: Part, *, hedged: bool) -> Running | None:
        """Sets the money aside and asks; None if there is no leave, no money, or no number for the money."""
        deployment, fleet = candidate.deployment, self._fleet
        if (permit := fleet.permit(deployment)) is None:
            self._failures.append((candidate, RestingError(deployment.name, fleet.retry_after(deployment))))
            return None
        try:
            measure = candidate.fit.of(part.count)
            attempt = await self._reserved(deployment, part, measure, hedged=hedged)
        except (BudgetError, UnknownPriceError) as error:
            fleet.released(permit)
            self._failures.append((candidate, error))
            return None
        except BaseException:
            fleet.released(permit)
            raise
        call = Call(
            id=attempt.id,
            model=deployment.provider_model,
            work=fitted(self._job.work, candidate),
            inputs=self._inputs,
            first=part.first,
            count=part.count,
            seconds=max(0.1, min(self._left(), fleet.terms.call_seconds)),
            expected=fleet.expected(deployment, measure),
            listener=self._listener,
            can=deployment.can,
        )
        return self._services.attempts.begin(
            Running(attempt, deployment, fleet.place(deployment), call, measure, permit=permit)
        )

    async def _reserved(self, deployment: Deployment, part: Part, measure: Measure, *, hedged: bool) -> Attempt:
        """An attempt with its money set aside. Raises BudgetError, UnknownPriceError."""
        job, services = self._job, self._services
        quoted, most = self._quote(deployment, measure)
        attempt = Attempt(
            id=new_id("att"),
            job_id=job.id,
            part=part.first,
            number=self.made.attempts + 1,
            deployment=deployment.name,
            provider=deployment.provider,
            kind=deployment.kind,
            model=job.work.model,
            provider_model=deployment.provider_model,
            task=job.work.task,
            caller=job.caller,
            project=job.project,
            first=part.first,
            count=part.count,
            reserved=most,
            quoted=quoted,
            price_version=deployment.price.version,
            hedged=hedged,
            megapixels=measure.megapixels,
            created_at=time.time(),
            adapters=", ".join(each.label for each in job.work.adapters),
        )
        budgets = await services.budgets.for_call(self._payers, job.project, job.work.model)
        within = None if self._terms.ceiling is None else (job.id, self._terms.ceiling)
        await services.ledger.reserve(attempt, budgets, within=within)
        self.made.attempts += 1
        return attempt

    def _quote(self, deployment: Deployment, measure: Measure) -> tuple[Decimal | None, Decimal]:
        """What it should cost, None if no price is known, and the most. Raises UnknownPriceError where that may not be."""
        price, prompt_bytes = deployment.price, len(self._job.work.prompt.encode())
        try:
            quoted = price.of(measure)
        except UnknownPriceError:
            if (reserve := self._fleet.terms.unknown_price_reserve) is None:
                raise
            return None, reserve + price.beyond(replace(measure, input_tokens=0), prompt_bytes)
        return quoted, quoted + price.beyond(measure, prompt_bytes)

    def _take(self, candidate: Candidate, part: Part, ended: Ended) -> bool:
        """Whether it brought the pictures."""
        made = self.made
        made.cost += ended.cost
        if ended.booked is not None:
            made.booked.append(ended.booked)
        if ended.error is not None:
            self._failures.append((candidate, ended.error))
            if ended.pending:
                self._unsure += self._price_of(candidate, part)
            if not isinstance(ended.error, ProviderError):
                self._fatal = ended.error
            return False
        for index, picture in enumerate(ended.pictures[: part.count]):
            made.pictures[part.first + index] = picture
        if candidate.deployment.name not in made.deployments:
            made.deployments.append(candidate.deployment.name)
        made.timings.update(ended.timings)
        made.tokens += ended.tokens
        made.fingerprint = made.fingerprint or ended.fingerprint
        lost = told(candidate.losses) if self._decision.asked.losses == "warn" else ()
        known = {*self._job.warnings, *made.notes}  # those of the place that was to be the first have been told
        made.notes.extend(note for note in (*lost, *ended.notes) if note not in known)
        return True

    def _price_of(self, candidate: Candidate, part: Part) -> Decimal:
        return self._quote(candidate.deployment, candidate.fit.of(part.count))[1]

    def _hedge_after(self, candidate: Candidate, part: Part) -> float | None:
        if not self._terms.hedge or candidate.deployment.on_machine:
            return None
        self._fleet.hedges.seen()
        p95 = self._fleet.unusual_after(candidate.deployment, candidate.fit.of(part.count))
        return hedge_after(p95, self._left())

    async def _hedge(self, candidate: Candidate, part: Part) -> tuple[Candidate, Running] | None:
        others = [each for each in self._candidates if each is not candidate and _serves(each, part)]
        if not others or self._has_asked_enough or not self._fleet.hedges.fired():
            return None
        running = await self._begin(others[0], part, hedged=True)
        if running is None:
            self._fleet.hedges.withdrawn()
            self._failures.pop()  # the first goes on; that a second could not begin is no failure of the job
            return None
        return others[0], running

    async def _resume(self) -> None:
        """What an earlier life of the job began: taken if it is done, followed by its handle, or given up as unknown."""
        waiting: list[tuple[Candidate | None, Part, Running]] = []
        for entry in await self._services.ledger.of_job(self._job.id):
            self.made.attempts += 1
            part = Part(entry.attempt.first, entry.attempt.count)
            if entry.state == "done":
                self._take_kept(entry)
            elif entry.state in ("failed_billed", "failed_unbilled"):
                self.made.cost += entry.cost or ZERO
                self._free += entry.state == "failed_unbilled"
            elif running := await self._services.attempts.take_up(entry, self._job.work, self._inputs):
                waiting.append((self._candidate(entry), part, running))
            elif latest := await self._services.ledger.find(entry.attempt.id):
                self._unsure += entry.attempt.reserved if latest.state == "unknown" else ZERO
                self._free += latest.state == "failed_unbilled"
        for candidate, part, running in waiting:
            ended = await asyncio.shield(running.waiting())
            if candidate is not None:
                self._take(candidate, part, ended)

    def _take_kept(self, entry: Entry) -> None:
        for index, picture in enumerate(pictures_of(entry.result)):
            self.made.pictures.setdefault(entry.attempt.first + index, picture)
        self.made.cost += entry.cost or ZERO
        if entry.attempt.deployment not in self.made.deployments:
            self.made.deployments.append(entry.attempt.deployment)

    def _candidate(self, entry: Entry) -> Candidate | None:
        return next((each for each in self._candidates if each.deployment.name == entry.attempt.deployment), None)

    def _left(self) -> float:
        return self._terms.deadline - self._fleet.clock()

    @property
    def _has_asked_enough(self) -> bool:
        return self.made.attempts - self._free >= self._terms.max_attempts

    def _require_leave(self) -> None:
        """Raises what ends the job: its own fault, no time, too many attempts, or not knowing what has been paid for."""
        if self._fatal is not None:
            raise self._fatal
        moderated = next((error for _, error in self._failures if getattr(error, "cause", "") == "moderated"), None)
        if moderated is not None:
            raise ModeratedError(moderated.message, "change the prompt or the pictures")
        if self._unsure:
            allowed = self._terms.on_unknown
            if not isinstance(allowed, Decimal) or self._unsure > allowed:
                raise UnsureError(
                    f"the answer of {self._last_name()} was lost, and the picture may have been made and charged",
                    "look at the job's attempts, or allow asking elsewhere with routing.on_unknown",
                )
        if self._left() <= 0:
            raise LateError("no place was done in time", "allow more seconds")
        if self._has_asked_enough:
            raise self._failure()

    async def _pause(self, round_: int, failures: Sequence[tuple[Candidate, KleinbildError]]) -> None:
        """Before all are asked again. Raises what the job fails with if that has no point."""
        self._require_leave()
        passing = [error for _, error in failures if isinstance(error, ProviderError) and error.cause in PASSING]
        if not passing:
            raise self._failure()
        soonest = min((error.retry_after for error in passing if error.retry_after is not None), default=None)
        if all(isinstance(error, RestingError) for error in passing):
            seconds = (
                soonest or 0.0
            ) + self._fleet.rng.random() * REST_JITTER  # nobody was asked, nobody is to be spared
            if seconds > PATIENCE_SECONDS:
                raise self._failure()
        else:
            seconds = delay(round_, soonest, self._fleet.rng, longest=MAX_PAUSE_SECONDS)
        if seconds >= self._left():
            raise self._failure()
        await asyncio.sleep(seconds)

    def _last_name(self) -> str:
        return self._failures[-1][0].deployment.name if self._failures else "a service"

    def _failure(self) -> KleinbildError:
        return failure_of(self._failures)


def failure_of(failures: Sequence[tuple[Candidate, KleinbildError]]) -> KleinbildError:
    """What a job fails with whose places have all failed: what only the caller can mend comes first."""
    if not failures:
        return NoPlaceError("no place is configured that could make this", "look at the decision")
    errors = [error for _, error in failures]
    for error in errors:
        if isinstance(error, BudgetError | UnknownPriceError):
            return error
    last = errors[-1]
    own = [error.__cause__ for error in errors if isinstance(error.__cause__, KleinbildError)]
    if own and len(own) == len(errors):  # only this machine was asked, and its words are the better ones
        return own[-1]
    said = "; ".join(dict.fromkeys(f"{each.deployment.name}: {error.message}" for each, error in failures))
    causes = {error.cause for error in errors if isinstance(error, ProviderError)}
    waits = [error.retry_after or 1.0 for error in errors if _rests(error)]
    if len(waits) == len(errors):
        seconds = min(waits)
        return BusyError(
            f"no place can be asked just now ({said})",
            f"try again in {max(1, math.ceil(seconds))} s",
            retry_after=seconds,
        )
    if causes == {"timeout"}:
        return LateError(f"no place was done in time ({said})", "try again, or allow more seconds")
    if causes == {"invalid"}:
        return NoPlaceError(f"no place takes the request ({said})", "change it as they say")
    assert last is not None
    return PlacesError(f"no place made the picture ({said})", "try again later; the decision names all that was tried")


def _rests(error: KleinbildError) -> TypeGuard[ProviderError]:
    """It was not asked, or was and had no room: nothing is wrong with the request, nor with the place."""
    return isinstance(error, ProviderError) and (error.cause == "rate_limited" or isinstance(error, RestingError))


def fitted(work: ImageWork, candidate: Candidate) -> ImageWork:
    """The work as that place is asked for it."""
    previews = work.num_previews if candidate.deployment.can.previews else 0
    if (work.size, work.num_previews) == (candidate.fit.size, previews):
        return work
    return replace(work, size=candidate.fit.size, num_previews=previews)


def _split(part: Part, most: int) -> Iterator[Part]:
    for first in range(part.first, part.first + part.count, most):
        yield Part(first, min(most, part.first + part.count - first))


def _serves(candidate: Candidate, part: Part) -> bool:
    return candidate.fit.most >= part.count


class RestingError(ProviderError):
    """It was not asked: it has failed lately."""

    def __init__(self, name: str, retry_after: float) -> None:
        super().__init__(
            f"{name} has failed lately and is given a rest",
            cause="overloaded",
            acceptance="refused",
            retry_after=retry_after,
        )


__all__ = ["Chain", "Made", "OnUnknown", "Terms", "failure_of", "fitted"]
