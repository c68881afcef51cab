"""The engine on this machine: one worker process per model, spoken to through `engine.remote`."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from kleinbild.core.errors import AdapterError, ModelError, UnknownModelError, WorkerError, error_of
from kleinbild.core.jobs import ImageWork
from kleinbild.core.messages import Done, Event, Failed, Queued, Stepped, Terms
from kleinbild.core.requests import MAX_SEED, PictureRequest
from kleinbild.core.sizes import Size
from kleinbild.engine.prepare import settle, size_range
from kleinbild.engine.remote import RemoteEngine
from kleinbild.model.adapters.registry import find
from kleinbild.model.spec import ModelSpec
from kleinbild.model.weights.settings import Settings
from kleinbild.model.weights.sources import locate_parts, model_spec
from kleinbild.model.weights.specs import Family, family
from kleinbild.providers.base import Capabilities, Inputs, Listener, MadeFile, Step, Waiting

MAX_ATTEMPTS = 5  # of a picture whose worker ended while it was being made: it may be the picture that ends it
RESTART_SECONDS = 1.0  # between engines that have given up
USUAL_STEPS = 4  # of the distilled models; previews are spread over so many if the request does not say


@dataclass(frozen=True, slots=True)
class Served:
    """What is read off a model's files without loading them, once: a request must not wait for a disk."""

    name: str
    settings: Settings
    spec: ModelSpec


def served(model: str) -> Served:
    """Raises what loading would where the model is unknown or parts of it are not here."""
    name, parts = locate_parts(model)
    return Served(name, parts.settings, model_spec(parts))


@dataclass(slots=True)
class LocalProvider:
    """`start(model)` makes an engine; a model's is started with the provider, and anew when it has given up."""

    models: tuple[str, ...]
    start: Callable[[str], RemoteEngine]
    _served: dict[str, Served] = field(default_factory=dict)
    _engines: dict[str, RemoteEngine] = field(default_factory=dict)
    _started_at: dict[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for model in self.models:
            self._served[model] = served(model)
            self._start(model)

    @property
    def ready(self) -> bool:
        return all(engine.refused is None and engine.ready_message for engine in self._engines.values())

    def capabilities(self, model: str) -> Capabilities:
        if model not in self._served:
            raise UnknownModelError(f"this server has no model {model!r}", f"it serves {', '.join(self.models)}")
        settings = self._served[model].settings
        return Capabilities(
            model,
            size_range(settings, self._served[model].spec),
            Size(settings.default_size, settings.default_size),
            settings.default_steps,
            guidance=not settings.distilled,
            family=family(self._served[model].spec.transformer),
        )

    def check(self, work: ImageWork, inputs: Inputs) -> None:
        model = self._served[work.model]
        _require_fitting(work, family(model.spec.transformer))
        settle(_request(work, inputs, 0), model.name, model.settings, model.spec)

    async def make(self, work: ImageWork, inputs: Inputs, listener: Listener) -> list[MadeFile]:
        """All `n` pictures, which share the engine's steps. One that loses its worker is begun again, the others not."""
        self.capabilities(work.model)
        try:
            async with asyncio.TaskGroup() as group:
                tasks = [group.create_task(self._one(work, inputs, index, listener)) for index in range(work.n)]
        except* Exception as several:  # noqa: BLE001 - the first tells enough, and it is what a caller can read
            raise several.exceptions[0] from None
        return [task.result() for task in tasks]

    async def close(self) -> None:
        await asyncio.gather(*(asyncio.to_thread(engine.close) for engine in self._engines.values()))

    async def _one(self, work: ImageWork, inputs: Inputs, index: int, listener: Listener) -> MadeFile:
        for attempt in range(1, MAX_ATTEMPTS + 1):
            try:
                return await self._attempt(await self._engine(work.model), work, inputs, index, listener)
            except WorkerError:
                if attempt == MAX_ATTEMPTS:
                    raise
        raise AssertionError

    async def _attempt(
        self, engine: RemoteEngine, work: ImageWork, inputs: Inputs, index: int, listener: Listener
    ) -> MadeFile:
        loop, events = asyncio.get_running_loop(), asyncio.Queue[Event]()
        stream = engine.submit(
            _request(work, inputs, index), _terms(work), lambda event: _hand_over(loop, events, event)
        )
        try:
            while True:
                event = await events.get()
                if isinstance(event, Done):
                    return MadeFile(
                        event.file,
                        event.seed,
                        event.timings,
                        event.fingerprint,
                        event.notes,
                        event.tokens,
                        event.revised_prompt,
                    )
                if isinstance(event, Failed):
                    raise error_of(event.kind, event.message, event.hint)
                if isinstance(event, Queued):
                    listener(Waiting(event.position))
                elif isinstance(event, Stepped):
                    listener(Step(index, event.step, event.num_steps, event.preview))
        except asyncio.CancelledError:
            stream.cancel()
            raise

    async def _engine(self, model: str) -> RemoteEngine:
        engine = self._engines[model]
        if not isinstance(engine.refused, WorkerError):
            return engine
        await asyncio.sleep(max(0.0, self._started_at[model] + RESTART_SECONDS - time.monotonic()))
        if self._engines[model] is engine:  # nobody else has replaced it meanwhile
            self._start(model)
        return self._engines[model]

    def _start(self, model: str) -> None:
        self._engines[model] = self.start(model)
        self._started_at[model] = time.monotonic()


def _hand_over(loop: asyncio.AbstractEventLoop, events: asyncio.Queue[Event], event: Event) -> None:
    if not loop.is_closed():
        loop.call_soon_threadsafe(events.put_nowait, event)


def _require_fitting(work: ImageWork, of: Family | None) -> None:
    """Raises AdapterError for adapters that are not here, or are for other models."""
    for each in work.adapters:
        try:
            card = find(each.name).card
        except ModelError as error:
            raise AdapterError(error.message, error.hint) from error
        if card is not None and card.family != of:
            raise AdapterError(
                f"the adapter {each.name!r} is for models of the family {card.family}, and {work.model} is of "
                f"{of or 'none of ours'}",
                f"ask for a model of {card.family}",
            )


def _request(work: ImageWork, inputs: Inputs, index: int) -> PictureRequest:
    return PictureRequest(
        prompt=work.prompt,
        model=work.model,
        size=work.size,
        seed=(work.seed + index) % (MAX_SEED + 1),
        steps=work.steps,
        guidance=work.guidance,
        references=inputs.references,
        reference_names=tuple(reference.name for reference in work.references),
        reference_digests=tuple(reference.original or reference.sha256 for reference in work.references),
        mask=inputs.mask,
        mask_name=work.mask.name if work.mask else "",
        mask_digest=(work.mask.original or work.mask.sha256) if work.mask else "",
        cache_references=work.cache_references,
        adapters=work.adapters,
    )


def _terms(work: ImageWork) -> Terms:
    every = max(1, (work.steps or USUAL_STEPS) // (work.num_previews + 1)) if work.num_previews else 0
    lossy = work.output_format == "jpeg" or work.compression < 100
    quality = work.compression if work.output_format != "png" and lossy else None
    return Terms(preview_every=every, format=work.output_format, quality=quality)
