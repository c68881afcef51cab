"""Whether the student does what the teacher does: measured on fixed prompts and noise, held against bounds.

Shape suffixes: N tokens of a picture, C latent channels.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from pathlib import Path
from random import Random
from statistics import median

import torch
from PIL import Image
from torch import Tensor

from kleinbild.engine.decode import to_image
from kleinbild.model.autoencoder import Autoencoder
from kleinbild.train.distill.field import Sample, Velocity, noise
from kleinbild.train.distill.recipe import Recipe
from kleinbild.train.distill.rollouts import Rollouts, Way, ways
from kleinbild.train.distill.trajectory import few_steps

STD_RATIO = (0.95, 1.05)  # of latents, student to teacher
MORE_CLIPPED = 0.02  # share of pixels beyond what a picture can show, above the teacher's
BEYOND = 1.05  # pixels are in [-1, 1]
LEAST_DIVERSITY = 0.9  # of the teacher's
FAKE_LOSS = (0.5, 2.0)  # of its median over the last updates
REMEMBERED, LEAST_REMEMBERED = 100, 20


@dataclass(frozen=True, slots=True)
class Measured:
    """Student against teacher, from the same noise. Distances are root mean squares of latents; diversity 1 is as various
    as the teacher."""

    distance: float
    by_window: tuple[float, ...]
    std_ratio: float
    clipped: float
    diversity: float | None = None

    def metrics(self) -> dict[str, float]:
        known = {"distance": self.distance, "std_ratio": self.std_ratio, "more_clipped": self.clipped}
        return known if self.diversity is None else {**known, "diversity": self.diversity}

    def tripped(self) -> tuple[str, ...]:
        """What is out of bounds, in words."""
        bounds: Mapping[str, tuple[float | None, float, float]] = {
            "the spread of latents is {:.3f} of the teacher's": (self.std_ratio, *STD_RATIO),
            "{:.1%} more pixels than the teacher's are clipped": (self.clipped, -1.0, MORE_CLIPPED),
            "pictures are {:.2f} times as various as the teacher's": (self.diversity, LEAST_DIVERSITY, float("inf")),
        }
        return tuple(
            f"{words.format(value)} (allowed: {least:g} to {most:g})"
            for words, (value, least, most) in bounds.items()
            if value is not None and not least <= value <= most
        )


@dataclass(frozen=True, slots=True, eq=False)
class Examination:
    """Fixed samples with the teacher's ways from fixed noise."""

    ways: tuple[Way, ...]
    of_one: tuple[Way, ...]  # one sample's, by many seeds
    clipped: float
    autoencoder: Autoencoder
    recipe: Recipe

    @torch.no_grad()
    def measure(self, student: Velocity, *, with_diversity: bool = False) -> Measured:
        """`with_diversity` takes `num_seeds` more pictures."""
        num_steps = self.recipe.num_steps
        made = ways(
            student, [way.sample for way in self.ways], [way.states[0] for way in self.ways], _plain(self.recipe)
        )
        by_window = tuple(
            _rms([way.states[k] - own.states[k] for way, own in zip(self.ways, made, strict=True)])
            for k in range(1, num_steps + 1)
        )
        ends = [way.states[-1] for way in made]
        teachers = [way.states[-1] for way in self.ways]
        std_ratio = float(torch.cat(ends).std() / torch.cat(teachers).std())
        clipped = clip_rate(self.autoencoder, made) - self.clipped
        diversity = None
        if with_diversity and len(self.of_one) > 1:
            start = [way.states[0] for way in self.of_one]
            own = few_steps(student, [way.sample for way in self.of_one], start, num_steps)
            diversity = spread(own) / spread([way.states[-1] for way in self.of_one])
        return Measured(by_window[-1], by_window, std_ratio, clipped, diversity)

    @torch.no_grad()
    def sheet(self, student: Velocity, path: Path) -> None:
        """The teacher's pictures above the student's."""
        starts = [way.states[0] for way in self.ways]
        samples = [way.sample for way in self.ways]
        rows = ([way.states[-1] for way in self.ways], few_steps(student, samples, starts, self.recipe.num_steps))
        pictures = [
            [to_image(pixels(self.autoencoder, sample, end_NC)) for sample, end_NC in zip(samples, row, strict=True)]
            for row in rows
        ]
        width, height = (max(picture.size[axis] for row in pictures for picture in row) for axis in (0, 1))
        sheet = Image.new("RGB", (width * len(samples), height * len(rows)), "white")
        for top, row in enumerate(pictures):
            for left, picture in enumerate(row):
                sheet.paste(picture, (left * width, top * height))
        path.parent.mkdir(parents=True, exist_ok=True)
        sheet.save(path)


def examine(rollouts: Rollouts, autoencoder: Autoencoder) -> Examination:
    """The teacher takes the examination first."""
    recipe = rollouts.recipe
    random = Random(f"{recipe.seed}-examination")
    count = min(recipe.num_validated, len(rollouts.samples))
    samples = random.sample(list(rollouts.samples), count)
    one = next((sample for sample in samples if not sample.references), samples[0])

    def taken(of: Sequence[Sample]) -> tuple[Way, ...]:
        drawn = [noise(sample, rollouts.channels, random.getrandbits(60), rollouts.device) for sample in of]
        return ways(rollouts.teacher, of, drawn, recipe)

    fixed, of_one = taken(samples), taken([one] * recipe.num_seeds)
    return Examination(fixed, of_one, clip_rate(autoencoder, fixed), autoencoder, recipe)


def _plain(recipe: Recipe) -> Recipe:
    """One substep a window: the student's own way."""
    return replace(recipe, num_substeps=1)


@torch.no_grad()
def pixels(autoencoder: Autoencoder, sample: Sample, latent_NC: Tensor) -> Tensor:
    """(1, 3, H, W), about [-1, 1]."""
    dtype = next(autoencoder.parameters()).dtype
    return autoencoder.decode(latent_NC.t().reshape(1, -1, *sample.grid).to(dtype)).float()


def clip_rate(autoencoder: Autoencoder, made: Sequence[Way]) -> float:
    shares = [(pixels(autoencoder, way.sample, way.states[-1]).abs() > BEYOND).float().mean() for way in made]
    return float(torch.stack(shares).mean())


def spread(pictures: Sequence[Tensor]) -> float:
    """The mean distance between two of them."""
    distances = [_rms([first - second]) for first, second in combinations(pictures, 2)]
    return sum(distances) / len(distances)


def _rms(differences: Sequence[Tensor]) -> float:
    return float(torch.cat(list(differences)).square().mean().sqrt())


def fake_loss_tripped(losses: Sequence[float]) -> str | None:
    """Whether the last of the fake score's losses is far from what they have been: the student has left the teacher's world,
    or found a hole in it."""
    *before, last = losses
    before = before[-REMEMBERED:]
    if len(before) < LEAST_REMEMBERED:
        return None
    usual = median(before)
    low, high = FAKE_LOSS
    if low * usual <= last <= high * usual:
        return None
    return f"the fake score's loss is {last:.4f}, its median {usual:.4f} (allowed: {low:g} to {high:g} times that)"
