"""The teacher's own ways from noise to picture: computed in blocks, kept, and replaced bit by bit.

A block depends on its number, the seed and the samples alone, and is always computed in one piece: so a run that resumes
computes again, to the last bit, what it had.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field
from random import Random

import torch
from torch import Tensor

from kleinbild.train.distill.field import Sample, Velocity, finer, integrate, noise
from kleinbild.train.distill.recipe import Recipe


@dataclass(frozen=True, slots=True, eq=False)
class Way:
    """Where the teacher is at each of the student's times, from noise to picture: (N, C) each."""

    sample: Sample
    states: tuple[Tensor, ...]


@dataclass(slots=True, eq=False)
class Rollouts:
    teacher: Velocity
    samples: Sequence[Sample]
    recipe: Recipe
    channels: int
    device: torch.device
    _blocks: OrderedDict[int, tuple[Way, ...]] = field(default_factory=OrderedDict)

    @property
    def num_blocks(self) -> int:
        return max(1, self.recipe.num_rollouts // self.recipe.batch_size)

    def draw(self, step: int, random: Random) -> Way:
        """One of those that are kept at update `step`."""
        oldest = step // self.recipe.refresh_every
        return random.choice(self.block(oldest + random.randrange(self.num_blocks)))

    def block(self, number: int) -> tuple[Way, ...]:
        if number not in self._blocks:
            self._blocks[number] = self._computed(number)
            while len(self._blocks) > self.num_blocks:
                self._blocks.popitem(last=False)
        return self._blocks[number]

    def _computed(self, number: int) -> tuple[Way, ...]:
        random = Random(f"{self.recipe.seed}-rollouts-{number}")
        samples = [random.choice(self.samples) for _ in range(self.recipe.batch_size)]
        start = [noise(sample, self.channels, random.getrandbits(60), self.device) for sample in samples]
        return ways(self.teacher, samples, start, self.recipe)


def ways(teacher: Velocity, samples: Sequence[Sample], start: Sequence[Tensor], recipe: Recipe) -> tuple[Way, ...]:
    """The teacher's ways from `start`, window by window."""
    states = [list(start)]
    for window in range(recipe.num_steps):
        times = [finer(sample.num_tokens, recipe.num_steps, window, recipe.num_substeps) for sample in samples]
        states.append(integrate(teacher, samples, states[-1], times))
    return tuple(Way(sample, own) for sample, own in zip(samples, zip(*states, strict=True), strict=True))
