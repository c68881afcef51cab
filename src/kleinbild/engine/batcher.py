"""Who is served when: between any two steps requests are admitted, cancelled, set back, and told how far they are.

One tick is: drop what is not wanted any more, admit what fits into memory, choose who takes the next step, take it in
one packed forward pass, finish who is done. A picture does not depend on the company in which it is made.

Fairness is stride scheduling: every step that a request takes moves its clock on by the step's cost, times the number
of requests that its caller has under way, divided by its priority's share; the next step is for those whose clocks
are furthest behind. So callers get equal shares, and a job of many large steps does not hold up a thumbnail.
"""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from itertools import count
from typing import Protocol

import torch

from kleinbild.core.amounts import gigabytes
from kleinbild.core.errors import CancelledError, CapacityError, DeadlineError, KleinbildError
from kleinbild.core.messages import SHARES, Decoding, Encoding, Event, Queued, Stepped, Terms
from kleinbild.core.metadata import AdapterRecord
from kleinbild.core.requests import PictureRequest
from kleinbild.engine import cost
from kleinbild.engine.adapters import AdapterCache, Facts, Loaded
from kleinbild.engine.caches import Caches
from kleinbild.engine.compiled import Compiled
from kleinbild.engine.denoise import step
from kleinbild.engine.encode import encode_prompt, is_encoded
from kleinbild.engine.latents import Sequence, segment_of
from kleinbild.engine.picture import Picture
from kleinbild.engine.pipeline import Stopwatch, begin, finish
from kleinbild.engine.prepare import Prepared, prepare
from kleinbild.engine.preview import Previewer
from kleinbild.model.adapters.applied import Use
from kleinbild.model.weights import Model

ROWS_ENOUGH = 8192  # rows that fill any device: more in one pass make nobody's picture sooner
MAX_OVERTAKEN = 16  # how often others may be admitted before a request that does not fit yet
TURN_STEPS = 8  # of others, that a prompt lets go first if encoding it would send the transformer off the device
URGENT = 2.0  # a deadline is near when less than so many times the forecast of the remaining steps is left

OnStep = Callable[[int, int], None]
"""Called after each step with the number of steps done and of steps in all."""


class Listener(Protocol):
    """Who is told about a job. Called from the batcher's thread, so it must not block."""

    def event(self, event: Event) -> None: ...

    def picture(self, job: Job, picture: Picture) -> None: ...

    def error(self, job: Job, error: Exception) -> None: ...


@dataclass(slots=True, eq=False)
class Job:
    """A request on its way. Only `cancel` may be called from another thread."""

    id: str
    prepared: Prepared
    terms: Terms
    listener: Listener
    need: cost.Need
    adapters: tuple[Facts, ...]
    watch: Stopwatch
    order: int
    arrived: float
    loaded: tuple[Loaded, ...] = ()
    sequence: Sequence | None = None
    clock: float = 0.0
    overtaken: int = 0
    passed: int = 0
    position: int | None = None
    cancelled: bool = False
    admitted: float = 0.0

    @property
    def overdue_at(self) -> float:
        return math.inf if self.terms.deadline_s is None else self.arrived + self.terms.deadline_s

    @property
    def running(self) -> Sequence:
        assert self.sequence is not None
        return self.sequence

    @property
    def num_rows(self) -> int:
        return self.prepared.num_branches * self.running.segment.num_rows

    @property
    def adapter_records(self) -> tuple[AdapterRecord, ...]:
        pairs = zip(self.prepared.adapters, self.loaded, strict=True)
        return tuple(AdapterRecord(named.name, named.strength, loaded.facts.sha256) for named, loaded in pairs)

    def cancel(self) -> None:
        """Frees what it holds before the next step."""
        self.cancelled = True


class Batcher:
    """The requests of one model. Not thread-safe but for `Job.cancel`: one thread submits and ticks.

    `memory_bytes` bounds what all requests hold together, their adapters included, beside the weights; None is no bound.
    `compiled` computes all but what must be exact. `clock` gives seconds.
    """

    def __init__(
        self,
        model: Model,
        *,
        memory_bytes: int | None = None,
        caches: Caches | None = None,
        adapters: AdapterCache | None = None,
        compiled: Compiled | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.model = model
        self.caches = caches or Caches.of(model)
        self.adapters = adapters or AdapterCache(model)
        self.memory_bytes = memory_bytes
        self.compiled = compiled
        self.waiting: list[Job] = []
        self.active: list[Job] = []
        self._previewer = Previewer(model)
        self._time = clock
        self._numbers = count()
        self._seconds_a_flop = 0.0

    @property
    def busy(self) -> bool:
        return bool(self.waiting or self.active)

    def make(
        self,
        requests: Iterable[PictureRequest],
        on_step: OnStep | None = None,
        terms: Terms = Terms(),  # noqa: B008 - frozen
    ) -> list[Picture]:
        """One picture a request, in their order. All are checked before anything is computed; the first error is raised."""
        collector = Collector()
        jobs = [self.job(str(i), request, terms, collector) for i, request in enumerate(requests)]
        total = max((job.prepared.steps for job in jobs), default=0)
        try:
            for job in jobs:
                self.submit(job)
            done = 0
            while self.busy:
                self.tick()
                if collector.failure is not None:
                    raise collector.failure
                # Who waits for memory starts later: what is told never exceeds the longest request's own steps.
                if on_step is not None and done < total and collector.num_steps > 0:
                    done = min(done + 1, total)
                    on_step(done, total)
        finally:
            self.clear()
        return [collector.pictures[job.id] for job in jobs]

    def job(self, name: str, request: PictureRequest, terms: Terms, listener: Listener) -> Job:
        """A request, checked: raises RequestError or ModelError, or CapacityError where it could never fit into memory."""
        watch = Stopwatch(self.model.device)
        with watch("prepare"):
            prepared = prepare(request, self.model)
            adapters = tuple(self.adapters.facts(named, self._spare_bytes()) for named in prepared.adapters)
        needed = self._need(prepared, max((facts.work_bytes for facts in adapters), default=0))
        of_adapters = _distinct_bytes(adapters)
        if of_adapters > self.adapters.limit_bytes:
            raise CapacityError(
                f"the adapters need {gigabytes(of_adapters)}, {gigabytes(self.adapters.limit_bytes)} are set aside for them",
                "use fewer, or smaller ones",
            )
        if self.memory_bytes is not None and needed.peak + of_adapters > self.memory_bytes:
            raise CapacityError(
                f"the picture needs {gigabytes(needed.peak + of_adapters)} beside the weights, "
                f"{gigabytes(self.memory_bytes)} are there",
                "ask for a smaller one, or for fewer references or adapters",
            )
        return Job(name, prepared, terms, listener, needed, adapters, watch, next(self._numbers), self._time())

    def submit(self, job: Job) -> None:
        self.waiting.append(job)
        self._tell_positions()

    def tick(self) -> None:
        """One step of somebody, and all that is due before and after it."""
        with torch.inference_mode():
            self._drop()
            self._admit()
            chosen = self._choose()
            self._step(chosen)
            for job in [job for job in chosen if job in self.active and job.running.finished]:
                self._finish(job)

    def clear(self) -> None:
        """Forgets everybody without a word."""
        for job in (*self.waiting, *self.active):
            self._forget(job)

    def _drop(self) -> None:
        now = self._time()
        for job in (*self.waiting, *self.active):
            if job.cancelled:
                self._fail(job, CancelledError("the request was cancelled"))
            elif now > job.overdue_at:
                self._fail(
                    job,
                    DeadlineError(
                        f"the picture was not done within {job.terms.deadline_s:g} s",
                        "allow more time, or ask for fewer steps or a smaller size",
                    ),
                )

    def _admit(self) -> None:
        encodes = self._encode_in_turn()
        for job in self._in_turn():
            if not encodes and not is_encoded(self.caches, job.prepared):
                job.passed += 1
                continue
            if not self._fits(job):
                job.overtaken += 1
                if job.overtaken > MAX_OVERTAKEN:
                    break  # nobody else before this one
                continue
            self.waiting.remove(job)
            self._begin(job)
        self._tell_positions()

    def _encode_in_turn(self) -> bool:
        """Whether prompts may be encoded now: always, unless text encoder and transformer take turns on the device.

        Then bringing one in costs more than a step. So all who wait have their prompts encoded at once, and do so when
        nobody is under way, when one of them is urgent, or when one has let enough steps of others pass.
        """
        offloaded = self.model.offloaded
        if offloaded is None or offloaded.placement.offload != "components":
            return True
        unknown = [job for job in self._in_turn() if not is_encoded(self.caches, job.prepared)]
        if self.active and not any(self._urgent(job) or job.passed >= TURN_STEPS for job in unknown):
            return False
        for job in unknown:
            job.passed = 0
        for job in unknown[: self._num_prompts_kept()]:
            try:
                with job.watch("text"):
                    encode_prompt(self.model, self.caches, job.prepared)
            except Exception as error:  # noqa: BLE001 - as in `_begin`
                self._fail(job, _in_words(error, job))
        return True

    def _num_prompts_kept(self) -> int:
        """How many contexts the cache has room for, beside that of the empty prompt."""
        text = self.model.spec.text_encoder
        context_bytes = text.max_tokens * text.context_size * self.model.dtype.itemsize
        return max(0, self.caches.prompts.limit_bytes // context_bytes - 1)

    def _in_turn(self) -> list[Job]:
        """Who waits, the next first: near deadlines, then callers with least under way for their share, then arrival."""
        under_way = Counter(job.terms.caller for job in self.active)

        def turn(job: Job) -> tuple[bool, float, int]:
            before = under_way[job.terms.caller]
            under_way[job.terms.caller] += 1
            return not self._urgent(job), (1 + before) / SHARES[job.terms.priority], job.order

        return sorted(self.waiting, key=turn)  # which asks for each turn once, in the order of arrival

    def _fits(self, job: Job) -> bool:
        if not self.active:
            return True
        together = [*self.active, job]
        if _distinct_bytes(_adapters_of(together)) > self.adapters.limit_bytes:
            return False
        needed = _peak_without_adapters(together) + _distinct_bytes(_adapters_of(together))
        return self.memory_bytes is None or needed <= self.memory_bytes

    def _begin(self, job: Job) -> None:
        job.admitted = self._time()
        job.clock = min((each.clock for each in self.active), default=0.0)
        job.listener.event(Encoding(job.id))
        try:
            uses = self._adapters(job)
            job.sequence = begin(self.model, self.caches, job.prepared, job.watch, uses)
        except Exception as error:  # noqa: BLE001 - whatever it was: this request fails, the others go on
            self._fail(job, _in_words(error, job))
        else:
            self.active.append(job)

    def _adapters(self, job: Job) -> tuple[Use, ...]:
        """The job's adapters, opened; those of no strength change nothing."""
        if self.memory_bytes is not None:  # what nobody uses makes room for what is to come
            to_come = _distinct_bytes(facts for facts in job.adapters if facts.sha256 not in self.adapters)
            self.adapters.shrink(self.memory_bytes - _peak_without_adapters([*self.active, job]) - to_come)
        for named in job.prepared.adapters:
            job.loaded = (*job.loaded, self.adapters.hold(named))
        pairs = zip(job.prepared.adapters, job.loaded, strict=True)
        return tuple(Use(loaded.bound, named.strength) for named, loaded in pairs if named.strength)

    def _spare_bytes(self) -> float:
        """That adapters may fill which nobody uses yet."""
        if self.memory_bytes is None:
            return math.inf
        return self.memory_bytes - _peak_without_adapters(self.active) - self.adapters.counters.num_bytes

    def _choose(self) -> list[Job]:
        """Who takes the next step: the one furthest behind, and those after it as long as there is room."""
        order = sorted(self.active, key=lambda job: (not self._urgent(job), job.clock, job.order))
        if not order:
            return []
        first, *others = order
        if first.terms.exact:
            return [first]
        chosen, rows = [first], first.num_rows
        room = math.inf if self.memory_bytes is None else self.memory_bytes - sum(job.need.held for job in self.active)
        room -= first.need.step + _distinct_bytes(_adapters_of(self.active))
        for job in others:
            if not job.terms.exact and rows + job.num_rows <= ROWS_ENOUGH and job.need.step <= room:
                chosen.append(job)
                rows += job.num_rows
                room -= job.need.step
        return chosen

    def _step(self, jobs: list[Job]) -> None:
        if not jobs:
            return
        compiled = self._compiled_for(jobs[0])
        compiling = -compiled.seconds if compiled else 0.0
        begun = time.perf_counter()
        try:
            step(self.model, self.caches, [job.running for job in jobs], compiled)
        except Exception as error:  # noqa: BLE001 - out of memory, above all
            if len(jobs) == 1:
                self._fail(jobs[0], _in_words(error, jobs[0]))
            else:  # none has moved: each on its own, so that only who fails alone fails
                for job in jobs:
                    self._step([job])
            return
        if self.model.device.type == "cuda":
            torch.cuda.synchronize(self.model.device)
        compiling += compiled.seconds if compiled else 0.0
        self._account(jobs, time.perf_counter() - begun, compiling)
        for job in jobs:
            job.listener.event(Stepped(job.id, job.running.step, job.running.num_steps, self._preview(job)))

    def _preview(self, job: Job) -> bytes | None:
        """What the step just taken was heading for, if that is wanted now. None, too, where it cannot be drawn."""
        sequence, every = job.running, job.terms.preview_every
        if not every or sequence.step % every or sequence.finished:
            return None
        try:
            return self._previewer.png(sequence.estimate)
        except Exception:  # noqa: BLE001 - out of memory, above all: the picture is worth more than its preview
            return None

    def _compiled_for(self, job: Job) -> Compiled | None:
        """Who must be exact gets the plain networks; nobody else shares its steps."""
        return None if job.terms.exact else self.compiled

    def _account(self, jobs: list[Job], seconds: float, compiling: float) -> None:
        """`compiling`: those of the `seconds` that no later step will take."""
        flops = {id(job): self._flops(job) for job in jobs}
        rate = (seconds - compiling) / sum(flops.values())
        self._seconds_a_flop = 0.7 * self._seconds_a_flop + 0.3 * rate if self._seconds_a_flop else rate
        of_caller = Counter(job.terms.caller for job in self.active)
        for job in jobs:
            job.watch.seconds["denoise"] += seconds
            job.clock += flops[id(job)] * of_caller[job.terms.caller] / SHARES[job.terms.priority]

    def _finish(self, job: Job) -> None:
        job.listener.event(Decoding(job.id))
        try:
            picture = finish(
                self.model, job.prepared, job.running, job.watch, self._compiled_for(job), job.adapter_records
            )
        except Exception as error:  # noqa: BLE001
            self._fail(job, _in_words(error, job))
        else:
            self._forget(job)
            job.listener.picture(job, picture)

    def _fail(self, job: Job, error: Exception) -> None:
        self._forget(job)
        job.listener.error(job, error)

    def _forget(self, job: Job) -> None:
        for jobs in (self.waiting, self.active):
            if job in jobs:
                jobs.remove(job)
        for loaded in job.loaded:
            self.adapters.release(loaded)
        job.loaded = ()
        job.sequence = None

    def _urgent(self, job: Job) -> bool:
        if job.overdue_at == math.inf:
            return False
        left = job.prepared.steps - (job.sequence.step if job.sequence else 0)
        return job.overdue_at - self._time() < URGENT * left * self._flops(job) * self._seconds_a_flop

    def _flops(self, job: Job) -> int:
        """Of its next step."""
        segment = job.sequence.segment if job.sequence else segment_of(self.model, job.prepared)
        return job.prepared.num_branches * cost.step_flops(self.model.spec.transformer, segment)

    def _need(self, prepared: Prepared, adapter_work: int) -> cost.Need:
        segment, element = segment_of(self.model, prepared), self.model.dtype.itemsize
        need = cost.need(self.model.spec, segment, prepared.num_branches, prepared.size, element, adapter_work)
        return need if self.model.offloaded is None else need.beside(self.model.offloaded.placement)

    def _tell_positions(self) -> None:
        for position, job in enumerate(self._in_turn()):
            if job.position != position:
                job.position = position
                job.listener.event(Queued(job.id, position))


@dataclass(slots=True)
class Collector:
    """Keeps what comes; for those who wait in the same thread."""

    pictures: dict[str, Picture] = field(default_factory=dict)
    failure: Exception | None = None
    num_steps: int = 0

    def event(self, event: Event) -> None:
        self.num_steps += isinstance(event, Stepped)

    def picture(self, job: Job, picture: Picture) -> None:
        self.pictures[job.id] = picture

    def error(self, job: Job, error: Exception) -> None:  # noqa: ARG002 - there is one caller
        self.failure = self.failure or error


def _peak_without_adapters(jobs: list[Job]) -> int:
    """The most bytes that they take together, if one after the other takes its step and is decoded."""
    held = sum(job.need.held for job in jobs)
    return held + max((max(job.need.step, job.need.decode) for job in jobs), default=0)


def _adapters_of(jobs: Iterable[Job]) -> Iterator[Facts]:
    return (facts for job in jobs for facts in job.adapters)


def _distinct_bytes(adapters: Iterable[Facts]) -> int:
    """An adapter is there once, whoever uses it."""
    return sum({facts.sha256: facts.num_bytes for facts in adapters}.values())


def _in_words(error: Exception, job: Job) -> Exception:
    """Out of memory as an error of ours; anything else as it is."""
    if isinstance(error, KleinbildError) or not _is_out_of_memory(error):
        return error
    words = CapacityError(
        f"out of memory while making a picture of {job.prepared.size} with {len(job.prepared.references)} references",
        "ask for a smaller one, or for fewer at once",
    )
    words.__cause__ = error
    return words


def _is_out_of_memory(error: Exception) -> bool:
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or "can't allocate memory" in str(error)
