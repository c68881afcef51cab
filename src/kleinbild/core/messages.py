"""What is said between an engine and those who ask it: the terms of a request, and the events on its way.

The engine's worker is a process of its own; these values are all that passes between the two, so they hold no tensor,
no open file and no picture that is not encoded.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from kleinbild.core.errors import KleinbildError
from kleinbild.core.formats import PictureFormat
from kleinbild.core.offload import Offload
from kleinbild.core.requests import PictureRequest
from kleinbild.core.tokens import NO_TOKENS, Tokens

Priority = Literal["batch", "normal", "interactive"]
SHARES: dict[Priority, float] = {"batch": 1.0, "normal": 4.0, "interactive": 16.0}
"""How much of the machine a request of each priority gets beside one of the others."""


@dataclass(frozen=True, slots=True)
class Terms:
    """How a request is to be served.

    Callers get equal shares, whatever number of requests they have. `deadline_s`: seconds from now after which the
    picture is worth nothing. `preview_every`: a preview after every so many steps, 0 for none. `exact`: the picture must
    not depend in its last bits on what is made beside it; in float32 on a CPU it never does, unless the engine compiles.
    `format` and `quality` are the file's, as `Picture.to_bytes` takes them.
    """

    priority: Priority = "normal"
    caller: str = ""
    deadline_s: float | None = None
    preview_every: int = 0
    exact: bool = False
    format: PictureFormat = "png"
    quality: int | None = None


@dataclass(frozen=True, slots=True)
class Submit:
    """To the engine: make this picture. `id` is the caller's, and every event about it bears it."""

    id: str
    request: PictureRequest
    terms: Terms = Terms()


@dataclass(frozen=True, slots=True)
class Cancel:
    """To the engine: not wanted any more. Answered by Failed unless the picture is done by then."""

    id: str


@dataclass(frozen=True, slots=True)
class Ready:
    """From a worker, once: the model is loaded. `kernels` names what computes, for fingerprints and doctors; `offload`
    says where weights rest."""

    model: str
    fingerprint: str
    device: str
    dtype: str
    kernels: str
    load_seconds: float
    offload: Offload = "none"


@dataclass(frozen=True, slots=True)
class Queued:
    """Waiting; `position` 0 is next."""

    id: str
    position: int


@dataclass(frozen=True, slots=True)
class Encoding:
    """Admitted: prompt and references are being encoded."""

    id: str


@dataclass(frozen=True, slots=True)
class Stepped:
    """Step `step` of `num_steps` is done.

    `preview` is a small PNG (an eighth of the sides) where one was asked for and could be drawn.
    """

    id: str
    step: int
    num_steps: int
    preview: bytes | None = None


@dataclass(frozen=True, slots=True)
class Decoding:
    """All steps are done, the picture is being decoded."""

    id: str


@dataclass(frozen=True, slots=True)
class Done:
    """The picture: `file` has its record inside.

    `timings` are seconds by stage, `queue` first; `peak_bytes` is the most memory that the process has held so far;
    `fingerprint` the weights' identity; `kernels` what computed; `revised_prompt` what the model read in place of the prompt.
    """

    id: str
    file: bytes
    seed: int
    timings: dict[str, float] = field(hash=False)
    peak_bytes: int | None
    fingerprint: str
    kernels: str
    notes: tuple[str, ...] = ()
    tokens: Tokens = NO_TOKENS
    revised_prompt: str = ""


@dataclass(frozen=True, slots=True)
class Failed:
    """No picture. `kind` is the name of the error's class in `core.errors`, or of another exception: a bug of ours."""

    id: str
    kind: str
    message: str
    hint: str = ""

    @classmethod
    def of(cls, name: str, error: Exception) -> Failed:
        """What `core.errors.error_of` makes the error of again, on the other side."""
        if isinstance(error, KleinbildError):
            return cls(name, type(error).__name__, error.message, error.hint)
        return cls(name, type(error).__name__, str(error))


Event = Queued | Encoding | Stepped | Decoding | Done | Failed
ToWorker = Submit | Cancel
FromWorker = Ready | Event
