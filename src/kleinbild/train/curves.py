"""A run's curves in the files that others' viewers read: TensorBoard's, and Weights & Biases where that is asked for.

What is drawn is what the run's events say. Nothing leaves this machine unless the recipe names a project of W&B.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, Self

from kleinbild.core.errors import RequestError
from kleinbild.core.training import Progressed, TrainingEvent, Validated
from kleinbild.train.recipe import Recipe


class Sink(Protocol):
    """Where points of curves go."""

    def add(self, points: Mapping[str, float], step: int) -> None: ...

    def close(self) -> None: ...


class TensorBoard:
    """Files in `folder`. Of a run that goes on at `step`, viewers drop what the files say of later steps."""

    def __init__(self, folder: Path, step: int = 0) -> None:
        from torch.utils.tensorboard.writer import SummaryWriter  # pulls in much, for those who train only

        self._writer = SummaryWriter(str(folder), purge_step=step or None)

    def add(self, points: Mapping[str, float], step: int) -> None:
        for name, value in points.items():
            self._writer.add_scalar(name, value, step)
        self._writer.flush()

    def close(self) -> None:
        self._writer.close()


class WeightsAndBiases:
    """A run of the W&B project `project`: the curves and `config` are sent to the service, or, with WANDB_MODE=offline, kept
    in `folder` for `wandb sync`. A run that goes on in its folder goes on there. Raises RequestError without wandb.
    """

    def __init__(self, project: str, folder: Path, config: Mapping[str, Any]) -> None:
        try:
            import wandb
        except ImportError as error:
            raise RequestError(
                f"the recipe sends its curves to the W&B project {project!r}, but wandb is not installed",
                "pip install 'kleinbild[wandb]', or leave wandb out: the curves are in tensorboard/ and report.html, too",
            ) from error
        place = hashlib.sha256(str(folder.resolve()).encode()).hexdigest()[:8]  # two folders may have the same name
        try:
            self._run = wandb.init(
                project=project,
                dir=str(folder),
                config=dict(config),
                name=folder.name,
                id=f"{folder.name}-{place}",
                resume="allow",
                settings=wandb.Settings(console="off", silent=True),  # stdout is for events
            )
        except wandb.Error as error:
            raise RequestError(
                f"W&B does not take the run for the project {project!r}: {error}",
                "wandb login; or set WANDB_MODE=offline, which keeps the curves here; or leave wandb out",
            ) from error

    def add(self, points: Mapping[str, float], step: int) -> None:
        self._run.log(dict(points), step=step)

    def close(self) -> None:
        self._run.finish()


def sinks_of(recipe: Recipe, folder: Path) -> list[Sink]:
    """TensorBoard's files in the run's folder, and the project that the recipe names. Raises RequestError without wandb."""
    files: list[Sink] = [TensorBoard(folder / "tensorboard")]
    return [*files, WeightsAndBiases(recipe.wandb, folder, asdict(recipe))] if recipe.wandb else files


class Curves:
    """Tells every sink what an event says; used with `with`."""

    def __init__(self, *sinks: Sink) -> None:
        self.sinks = sinks

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def add(self, event: TrainingEvent) -> None:
        points = dict(points_of(event))
        if points and isinstance(event, Progressed | Validated):
            for sink in self.sinks:
                sink.add(points, event.step)

    def close(self) -> None:
        for sink in self.sinks:
            sink.close()


def points_of(event: TrainingEvent) -> Iterator[tuple[str, float]]:
    """The curves' names and their values at an event."""
    if isinstance(event, Progressed):
        yield "training/loss", event.loss
        yield "training/learning rate", event.learning_rate
    elif isinstance(event, Validated):
        yield "validation/loss", event.loss
        for time, loss in event.by_time.items():
            yield f"validation/at time {time}", loss
        for name, value in event.metrics.items():
            yield f"watch/{name}", value
