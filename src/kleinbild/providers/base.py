"""What every place that makes pictures offers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from kleinbild.core.jobs import ImageWork
from kleinbild.core.sizes import Size, SizeRange
from kleinbild.core.tokens import NO_TOKENS, Tokens
from kleinbild.model.weights.specs import Family


@dataclass(frozen=True, slots=True)
class Waiting:
    """`position` 0 is next."""

    position: int


@dataclass(frozen=True, slots=True)
class Step:
    """Step `step` of `num_steps` of the picture `image_index` is done; `preview` is a small PNG."""

    image_index: int
    step: int
    num_steps: int
    preview: bytes | None = None


Progress = Waiting | Step
Listener = Callable[[Progress], None]


@dataclass(frozen=True, slots=True)
class Inputs:
    """The pictures that the work refers to, as files."""

    references: tuple[bytes, ...] = ()
    mask: bytes | None = None


@dataclass(frozen=True, slots=True)
class MadeFile:
    """One finished picture, encoded as asked for; `timings` are seconds by stage. `revised_prompt`: what the model read in place
    of the prompt, "" if that is what it read."""

    file: bytes
    seed: int
    timings: dict[str, float]
    fingerprint: str
    notes: tuple[str, ...] = ()
    tokens: Tokens = NO_TOKENS
    revised_prompt: str = ""


@dataclass(frozen=True, slots=True)
class Capabilities:
    """What a model does: `default_size` at its own area, `steps` unless asked otherwise, guidance or not. Adapters of its
    `family` fit it."""

    model: str
    sizes: SizeRange
    default_size: Size
    steps: int
    guidance: bool
    family: Family | None = None


class Provider(Protocol):
    """A place that makes pictures. `make` raises `core.errors`; cancelling it frees what the pictures hold."""

    @property
    def models(self) -> tuple[str, ...]: ...

    def capabilities(self, model: str) -> Capabilities:
        """Raises UnknownModelError for a model that is not made here."""
        ...

    def check(self, work: ImageWork, inputs: Inputs) -> None:
        """Raises what is wrong with the request, before anything is made. Opens pictures: not in the event loop."""
        ...

    @property
    def ready(self) -> bool:
        """Whether pictures are being made now; False while it starts or has failed."""
        ...

    async def make(self, work: ImageWork, inputs: Inputs, listener: Listener) -> list[MadeFile]: ...

    async def close(self) -> None: ...
