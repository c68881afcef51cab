"""What a training run says on its way: lines of JSON in `events.jsonl` of its folder, and on the worker's stdout.

The trainer's worker is a process of its own; these values are all that passes from it to those who watch it: the command
line, the server.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True)
class Prepared:
    """Before it begins: what is being done ("encoding pictures"), and how many of it are done. Told now and then."""

    what: str
    done: int
    total: int


@dataclass(frozen=True, slots=True)
class Started:
    """Training begins, or goes on at `step`. `seed` is the run's."""

    step: int
    num_steps: int
    model: str
    num_examples: int
    seed: int


@dataclass(frozen=True, slots=True)
class Progressed:
    """`loss` is the mean since the last such event, `seconds_left` a forecast."""

    step: int
    num_steps: int
    loss: float
    learning_rate: float
    seconds_left: float


@dataclass(frozen=True, slots=True)
class Validated:
    """Losses on fixed pictures, noise and times: the mean, and by band of times ("0.1", "0.3", …)."""

    step: int
    loss: float
    by_time: Mapping[str, float] = field(default_factory=dict, hash=False)
    metrics: Mapping[str, float] = field(default_factory=dict, hash=False)


@dataclass(frozen=True, slots=True)
class Previewed:
    """A sheet of previews, at `path` in the run's folder, made by `model`."""

    step: int
    model: str
    path: str


@dataclass(frozen=True, slots=True)
class Checkpointed:
    """An adapter that can be used already, at `path` in the run's folder."""

    step: int
    path: str
    loss: float | None = None


@dataclass(frozen=True, slots=True)
class Warned:
    """Something to know: of a step, or, at step 0, of model and data before the first one."""

    message: str
    step: int = 0


@dataclass(frozen=True, slots=True)
class Paused:
    """Stopped from outside (SIGTERM, Ctrl-C) with its state kept: started again, it goes on to the same weights."""

    step: int


@dataclass(frozen=True, slots=True)
class Finished:
    """Trained, measured and registered under `adapter`; `path` is the file in the run's folder.

    A run's `metrics` have its "tokens": how many it was trained on.
    """

    step: int
    adapter: str
    path: str
    sha256: str
    metrics: Mapping[str, float] = field(default_factory=dict, hash=False)


@dataclass(frozen=True, slots=True)
class Failed:
    """`kind`, `message` and `hint` as those of `core.messages.Failed`."""

    kind: str
    message: str
    hint: str = ""


TrainingEvent = (
    Prepared | Started | Progressed | Validated | Previewed | Checkpointed | Warned | Paused | Finished | Failed
)

_KINDS: dict[str, type[Any]] = {
    kind.__name__.lower(): kind
    for kind in (Prepared, Started, Progressed, Validated, Previewed, Checkpointed, Warned, Paused, Finished, Failed)
}


def to_line(event: TrainingEvent, at: float) -> str:
    """One line of JSON, without its end; `at`: seconds since 1970."""
    return json.dumps({"event": type(event).__name__.lower(), "at": at, **asdict(event)})


def from_line(line: str) -> tuple[TrainingEvent, float]:
    """The event and its time. Raises ValueError for anything that `to_line` did not write."""
    try:
        values = json.loads(line)
        kind, at = _KINDS[values.pop("event")], float(values.pop("at"))
        event: TrainingEvent = kind(**values)
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise ValueError(f"not an event of a training run: {error}") from error
    return event, at
