"""How much the pictures of one prompt differ: what a prompt leaves open shall vary with the seed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice
from random import Random
from typing import TYPE_CHECKING

from kleinbild.nano.evaluate import attempts
from kleinbild.nano.scenes.draw import Draw
from kleinbild.nano.scenes.lexicon import NOUNS
from kleinbild.nano.scenes.tasks import Sample, Task, samples

if TYPE_CHECKING:
    from kleinbild.engine.runtime import Engine

NUM_SEEDS, NUM_PROMPTS = 16, 8
ASKED: tuple[Task, ...] = ("one", "two", "three", "bare")


@dataclass(frozen=True, slots=True)
class Variety:
    """Of the `ways` in which what a prompt leaves open may be, `seeds` pictures of it show `seen` different ones.

    As many draws from a hat would show `expected`. A picture that is not all right shows none. All are means over prompts.
    """

    task: str
    seeds: int
    ways: float
    seen: float
    expected: float


def variety(
    engine: Engine,
    num_prompts: int = NUM_PROMPTS,
    on_progress: Callable[[int, int], None] | None = None,
    *,
    steps: int | None = None,
) -> list[Variety]:
    """Makes `NUM_SEEDS` pictures of each of `num_prompts` prompts a task that leave something open."""
    found, done = [], 0
    for task in ASKED:
        ways, seen, expected = 0, 0, 0.0
        for sample in islice(leaving_open(task), num_prompts):
            shown = set()
            seeds = ((sample, Random(f"{sample.target}-{seed}")) for seed in range(NUM_SEEDS))
            for trial in attempts(engine, seeds, steps=steps):
                if trial.verdict.all_right:
                    shown.add(trial.verdict.expected)
                done += 1
                if on_progress:
                    on_progress(done, len(ASKED) * num_prompts * NUM_SEEDS)
            ways += len(sample.right)
            seen += len(shown)
            expected += len(sample.right) * (1 - (1 - 1 / len(sample.right)) ** NUM_SEEDS)
        found.append(Variety(task, NUM_SEEDS, ways / num_prompts, seen / num_prompts, expected / num_prompts))
    return found


def leaving_open(task: Task) -> Iterator[Sample]:
    """New pictures that leave something open, each in one wording."""
    draw = Draw(Random(f"variety of {task}"), evaluation=True, codes=tuple(noun.code for noun in NOUNS))
    for sample in samples(draw):
        if sample.task == task and len(sample.right) > 1:
            yield replace(sample, wording=partial(_said, sample.wording(draw.random)))


def _said(prompt: str, _: Random) -> str:
    return prompt
