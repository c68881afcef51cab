"""The engine on this machine as one of the places that make pictures: it costs what the operator says, bills nobody, and
what was begun there ends when nobody waits for it any more."""

# ruff: noqa: ARG002 - a place without handles is given them all the same
from __future__ import annotations

from dataclasses import replace

from kleinbild.core.deployments import Can
from kleinbild.core.errors import EngineError, ModelError
from kleinbild.providers.base import Capabilities, Listener, Progress, Provider, Step
from kleinbild.providers.hosted import (
    Accepted,
    Answer,
    Call,
    Cancellation,
    Fetched,
    Handle,
    ProviderError,
    Watcher,
    ignore,
)

MAX_IMAGES = 10
MAX_REFERENCES = 16


class OnMachine:
    """`Hosted`, over the local provider. What a request does wrong is raised as `core.errors`, in words for the caller; what
    goes wrong with the engine is a ProviderError, for which another place may stand in, and whose cause it is."""

    def __init__(self, provider: Provider) -> None:
        self._provider = provider

    def can(self, model: str) -> Can:
        return can(self._provider.capabilities(model))

    async def start(self, call: Call, watcher: Watcher = ignore) -> Answer | Accepted:
        work = replace(call.work, model=call.model, seed=call.work.seed + call.first, n=call.count)
        try:
            made = await self._provider.make(work, call.inputs, _shifted(call.listener, call.first))
        except (EngineError, ModelError) as error:
            raise ProviderError(error.message, cause="failed", acceptance="refused", detail=error.hint) from error
        notes = tuple(dict.fromkeys(note for each in made for note in each.notes))
        files = tuple(
            Fetched(each.file, each.seed, each.timings, each.fingerprint, each.tokens, each.revised_prompt)
            for each in made
        )
        return Answer(files, notes=notes)

    async def collect(self, handle: Handle, call: Call, watcher: Watcher = ignore) -> Answer:
        raise ProviderError("the engine keeps no handles", cause="not_found", acceptance="refused")

    async def cancel(self, handle: Handle) -> Cancellation:
        return "cancelled"

    async def probe(self) -> None:
        if not self._provider.ready:
            raise ProviderError("the engine is not ready", cause="overloaded", acceptance="refused")

    async def close(self) -> None:
        """The provider is closed by who made it."""


def can(model: Capabilities) -> Can:
    honoured = ["size", "seed", "steps", "mask", "output_compression", "partial_images", "adapters"]
    return Can(
        tasks=frozenset({"image.generate", "image.edit"}),
        parameters=frozenset([*honoured, *(["guidance"] if model.guidance else [])]),  # type: ignore[list-item]
        formats=frozenset({"png", "jpeg", "webp"}),
        sizes=model.sizes,
        max_images=MAX_IMAGES,
        max_references=MAX_REFERENCES,
        default_steps=model.steps,
        always=(("moderation", "low"),),  # nothing is refused here
        cancel=True,
        previews=True,
    )


def _shifted(listener: Listener | None, first: int) -> Listener:
    """Told of pictures by their place in the whole job."""

    def told(progress: Progress) -> None:
        if listener is not None:
            listener(
                replace(progress, image_index=progress.image_index + first) if isinstance(progress, Step) else progress
            )

    return told
