"""The first steps of a run, in a folder that is thrown away: how long a step takes, and that the loss is a number.

It is the trainer's own worker, in a process of its own (`kleinbild.train.worker`), so that what is measured is what will be.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Generator
from contextlib import closing
from dataclasses import replace
from itertools import islice
from pathlib import Path

from kleinbild.core.errors import EngineError, error_of
from kleinbild.core.training import Failed, Progressed, from_line
from kleinbild.train.data.check import Smoke
from kleinbild.train.recipe import FILE, Recipe, write

NEVER = 1000  # steps more than are looked at: a run that came to its end would register what it has learnt
WARM_UP = 2  # steps that are not timed: kernels are chosen, memory is taken


def smoke_run(recipe: Recipe, num_steps: int) -> Smoke:
    """Raises what the run fails with. No prior pictures are made for it: its steps see those of the data only."""
    short = replace(
        recipe,
        steps=num_steps + NEVER,
        progress_every=1,
        validate_every=0,
        preview_every=0,
        checkpoint_every=0,
        early_stop=False,
        prior_pictures=0,
        regularization_share=0.0 if recipe.prior_pictures else recipe.regularization_share,
        sweep=False,
        wandb="",
    )
    with tempfile.TemporaryDirectory(prefix="kleinbild-smoke-") as folder:
        write(short, Path(folder) / FILE)
        with closing(_steps(Path(folder))) as told:
            steps = list(islice(told, num_steps))
    if len(steps) <= WARM_UP + 1:
        raise EngineError("the smoke run ended without having told of its steps", "train without it: --no-smoke")
    begun, ended = steps[WARM_UP][1], steps[-1][1]
    return Smoke((ended - begun) / (len(steps) - 1 - WARM_UP), steps[0][0], steps[-1][0])


def _steps(folder: Path) -> Generator[tuple[float, float]]:
    """Loss and time of each step."""
    worker = [sys.executable, "-m", "kleinbild.train.worker", str(folder)]
    with subprocess.Popen(worker, stdout=subprocess.PIPE, text=True) as process:  # noqa: S603 - our own
        try:
            assert process.stdout is not None
            for line in process.stdout:
                event, at = from_line(line)
                if isinstance(event, Failed):
                    raise error_of(event.kind, event.message, event.hint)
                if isinstance(event, Progressed):
                    yield event.loss, at
        finally:
            process.kill()  # nothing of it is to be kept
