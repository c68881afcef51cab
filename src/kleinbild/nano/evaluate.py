"""How well a nano model does what it is asked: the oracle's verdicts on fixed, held-out prompts and edits.

Every row asks for combinations that no training picture shows (`scenes.tasks.is_held_out`) or for objects that never
stood in one; prompts, pictures and seeds are fixed, so two models or two versions can be compared.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import islice
from math import sqrt
from random import Random
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from kleinbild.core.adapters import AdapterUse
from kleinbild.core.requests import PictureRequest
from kleinbild.core.sizes import Size
from kleinbild.nano.scenes.draw import SMALL, TALL, WIDE, Draw
from kleinbild.nano.scenes.lexicon import NOUNS, UNSEEN
from kleinbild.nano.scenes.oracle import Verdict, judge_any
from kleinbild.nano.scenes.render import NATIVE, TOKEN, Grid, Scene, render
from kleinbild.nano.scenes.tasks import Sample, Task, is_held_out, readable, samples

if TYPE_CHECKING:
    from kleinbild.engine.runtime import Engine

DEFAULT_COUNT = 200
BATCH = 8  # pictures that are made in one pass


@dataclass(frozen=True, slots=True)
class Goal:
    """One row of the table: a task, the share that must be right, which sprites are the object of image 1, which size."""

    label: str
    task: Task
    bar: float
    unseen: bool = False
    grid: Grid = NATIVE


GOALS = (
    Goal("one object", "one", 0.98),
    Goal("one object in a colour", "colored", 0.90),
    Goal("small things", "sized", 0.90),
    Goal("big things", "big", 0.90),
    Goal("two objects", "two", 0.96),
    Goal("three objects", "three", 0.90),
    Goal("two to four of a kind", "count", 0.92),
    Goal("things alone, no background named", "bare", 0.90),
    Goal("two objects, 192x128", "two", 0.90, grid=WIDE),
    Goal("two objects, 128x192", "two", 0.90, grid=TALL),
    Goal("one object, 96x96", "one", 0.90, grid=SMALL),
    Goal("edit: background", "background", 0.98),
    Goal("edit: remove", "remove", 0.96),
    Goal("edit: add", "add", 0.95),
    Goal("edit: replace", "replace", 0.93),
    Goal("edit: move", "move", 0.88),
    Goal("edit: recolour", "recolor", 0.88),
    Goal("edit: a variation", "vary", 0.88),
    Goal("object 1 on background 2", "object on background", 0.96),
    Goal("object 1 on background 2, unseen objects", "object on background", 0.94, unseen=True),
    Goal("object 1 into scene 2", "object into scene", 0.90),
    Goal("object 1 into scene 2, unseen objects", "object into scene", 0.85, unseen=True),
    Goal("both objects", "both objects", 0.88),
    Goal("both objects, unseen objects", "both objects", 0.82, unseen=True),
)


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the table.

    `right` is the share (0 to 1) of pictures that are all right, `low` and `high` its 95 % interval (Wilson's), `bar` what is
    asked. In dB, means: `box_psnr` where things stand, `kept_psnr` of what an edit was not asked to change (None: no edit).
    """

    task: str
    count: int
    right: float
    low: float
    high: float
    bar: float
    box_psnr: float
    kept_psnr: float | None


@dataclass(frozen=True, slots=True)
class Trial:
    """One asked-for picture: what was shown, what came, what the oracle says."""

    sample: Sample
    prompt: str
    picture: Image.Image
    verdict: Verdict


def evaluate(
    engine: Engine,
    count: int = DEFAULT_COUNT,
    on_progress: Callable[[int, int], None] | None = None,
    on_trial: Callable[[Goal, Trial], None] | None = None,
    *,
    steps: int | None = None,
) -> list[Row]:
    """Runs `count` held-out trials a row at the model's default guidance, and at its default steps if `steps` is None."""
    rows, done = [], 0
    for goal in GOALS:
        verdicts = []
        for trial in attempts(engine, asks(goal, count), steps=steps):
            verdicts.append(trial.verdict)
            done += 1
            if on_trial:
                on_trial(goal, trial)
            if on_progress:
                on_progress(done, count * len(GOALS))
        rows.append(_row(goal, verdicts))
    return rows


def held_out_samples(goal: Goal) -> Iterator[Sample]:
    """The endless fixed list of a row's samples."""
    codes = UNSEEN if goal.unseen else tuple(noun.code for noun in NOUNS)
    draw = Draw(Random(f"evaluation of {goal.task}"), evaluation=True, codes=codes, grids=(goal.grid,))
    for sample in samples(draw):
        if sample.task == goal.task and (goal.unseen or is_held_out(sample)):
            yield sample


def attempts(
    engine: Engine,
    wanted: Iterable[tuple[Sample, Random]],
    *,
    steps: int | None = None,
    adapters: tuple[AdapterUse, ...] = (),
) -> Iterator[Trial]:
    """Asks the engine for samples, several at a time, and judges what comes. The random stream of each draws wording and seed."""
    left = iter(wanted)
    while batch := list(islice(left, BATCH)):
        requests = [replace(asked(engine, sample, random), steps=steps, adapters=adapters) for sample, random in batch]
        for (sample, _), request, made in zip(batch, requests, engine.generate_all(requests), strict=True):
            yield Trial(sample, request.prompt, made.pil, verdict_of(sample, made.pil))


def verdict_of(sample: Sample, picture: Image.Image) -> Verdict:
    """What the oracle says of a picture that was made for the sample."""
    before = sample.references[-1] if sample.references else None
    return judge_any(np.asarray(picture), sample.right, before=before)


def asked(engine: Engine, sample: Sample, random: Random) -> PictureRequest:
    """The request for one sample, in one of its wordings."""
    tokenizer = engine.model.tokenizer
    prompt = readable(sample, random, tokenizer.count, tokenizer.max_tokens)
    references = tuple(encoded(scene) for scene in sample.references)
    height, width = (tokens * TOKEN for tokens in sample.target.grid)
    size = Size(width, height)
    return PictureRequest(prompt, model=engine.name, size=size, seed=random.getrandbits(32), references=references)


def asks(goal: Goal, count: int) -> Iterator[tuple[Sample, Random]]:
    """The first `count` samples of a row, each with what its wording and seed are drawn from: always the same."""
    for index, sample in enumerate(islice(held_out_samples(goal), count)):
        yield sample, Random(f"{goal.label}-{index}")


def encoded(scene: Scene) -> bytes:
    """The rendered scene as a PNG file."""
    buffer = io.BytesIO()
    Image.fromarray(render(scene)).save(buffer, "PNG")
    return buffer.getvalue()


def interval(right: int, count: int) -> tuple[float, float]:
    """Wilson's 95 % interval of a share, of `right` in `count`."""
    z, share = 1.96, right / count
    middle, spread = share + z * z / (2 * count), z * sqrt(share * (1 - share) / count + z * z / (4 * count**2))
    return max(0.0, (middle - spread) / (1 + z * z / count)), min(1.0, (middle + spread) / (1 + z * z / count))


def _row(goal: Goal, verdicts: list[Verdict]) -> Row:
    right, count = sum(verdict.all_right for verdict in verdicts), len(verdicts)
    kept = [verdict.kept_psnr for verdict in verdicts if verdict.kept_psnr is not None]
    return Row(
        goal.label, count, right / count, *interval(right, count), goal.bar,
        float(np.mean([verdict.box_psnr for verdict in verdicts])), float(np.mean(kept)) if kept else None,
    )  # fmt: skip
