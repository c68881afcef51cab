"""Stage 2, if wanted: the student's pictures are drawn towards what the teacher finds likely, without an adversary.

Distribution matching as DP-DMD does it (arXiv 2602.03139): a fake score learns what the student's own pictures look like;
where guided teacher and fake score would denoise a picture differently, the difference says how it should change. The
first step is left out, since it decides what the picture will be: only stage 1's regression trains it, which keeps the
pictures as various as the teacher's. The regression stays, lightly, in the other steps too, for edits above all: without
it they drift away from their references.

Shape suffixes: N tokens of a picture, C latent channels.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from random import Random

import torch
from torch import Tensor

from kleinbild.train.distill.field import Field, Sample, Velocity, noise, windows
from kleinbild.train.distill.rollouts import Rollouts
from kleinbild.train.distill.student import Trained
from kleinbild.train.distill.trajectory import arrive, errors, lessons

LEAST_TIME, MOST_TIME = 0.02, 0.98


@dataclass(frozen=True, slots=True, eq=False)
class Made:
    """A picture that the student is making: where it is before one of its steps, from the second on."""

    sample: Sample
    time: float
    latent_NC: Tensor
    noisy_time: float  # the time to which the picture will be made noisy again
    noise_NC: Tensor

    def noisy(self, picture_NC: Tensor) -> Tensor:
        return (1 - self.noisy_time) * picture_NC + self.noisy_time * self.noise_NC


def update_fake(fake: Trained, student: Velocity, rollouts: Rollouts, step: int, number: int) -> float:
    """The fake score's update `number` before the student's update `step`: plain flow matching on the student's pictures."""
    recipe = rollouts.recipe
    made = _made(student, rollouts, f"fake-{step}-{number}")
    with torch.no_grad():
        pictures = _pictures(student, made)
    velocities = _ask(fake.field, made, pictures)
    losses = [
        (v_NC - (one.noise_NC - picture_NC)).square().mean()
        for v_NC, one, picture_NC in zip(velocities, made, pictures, strict=True)
    ]
    loss = torch.stack(losses).mean()
    fake.update(loss, recipe.fake_rate, recipe)
    return float(loss.detach())


def polish_loss(student: Velocity, fake: Field, rollouts: Rollouts, step: int) -> Tensor:
    """The student's loss in update `step` of stage 2."""
    recipe = rollouts.recipe
    made = _made(student, rollouts, f"polish-{step}")
    pictures = _pictures(student, made)
    with torch.no_grad():
        still = [picture_NC.detach() for picture_NC in pictures]
        by_teacher, by_fake = (
            [
                one.noisy(picture_NC) - one.noisy_time * v_NC
                for one, picture_NC, v_NC in zip(made, still, _ask(velocity, made, still), strict=True)
            ]
            for velocity in (rollouts.teacher, fake)
        )
        wanted = [
            picture_NC - (fake_NC - teacher_NC) / (picture_NC - teacher_NC).abs().mean().clamp(min=1e-6)
            for picture_NC, fake_NC, teacher_NC in zip(still, by_fake, by_teacher, strict=True)
        ]
    matching = [
        0.5 * (picture_NC - wanted_NC).square().mean() for picture_NC, wanted_NC in zip(pictures, wanted, strict=True)
    ]
    given = lessons(student, rollouts, step, progress=1.0)
    weights = [recipe.anchor_weight if lesson.window == 0 else recipe.kept_weight for lesson in given]
    kept = [weight * error for weight, error in zip(weights, errors(student, given, recipe), strict=True)]
    return torch.stack(matching).mean() + torch.stack(kept).mean()


def _made(student: Velocity, rollouts: Rollouts, purpose: str) -> list[Made]:
    """A batch of pictures on their way, each before a random step; without gradients."""
    recipe = rollouts.recipe
    random = Random(f"{recipe.seed}-{purpose}")

    def drawn(sample: Sample) -> Tensor:
        return noise(sample, rollouts.channels, random.getrandbits(60), rollouts.device)

    samples = [random.choice(rollouts.samples) for _ in range(recipe.batch_size)]
    first = min(1, recipe.num_steps - 1)
    starts = [(sample, random.randrange(first, recipe.num_steps), drawn(sample)) for sample in samples]
    return [
        Made(
            sample,
            windows(sample.num_tokens, recipe.num_steps)[window],
            latent_NC,
            _shifted(random.uniform(LEAST_TIME, MOST_TIME), sample.num_tokens),
            drawn(sample),
        )
        for (sample, window, _), latent_NC in zip(starts, arrive(student, starts, recipe.num_steps), strict=True)
    ]


def _pictures(student: Velocity, made: Sequence[Made]) -> list[Tensor]:
    """The pictures that the student's next step heads for."""
    velocities = student([one.sample for one in made], [one.latent_NC for one in made], [one.time for one in made])
    return [one.latent_NC - one.time * v_NC for one, v_NC in zip(made, velocities, strict=True)]


def _ask(velocity: Velocity, made: Sequence[Made], pictures: Sequence[Tensor]) -> list[Tensor]:
    """The velocities of pictures that were made noisy again."""
    noisy = [one.noisy(picture_NC) for one, picture_NC in zip(made, pictures, strict=True)]
    return velocity([one.sample for one in made], noisy, [one.noisy_time for one in made])


def _shifted(time: float, num_tokens: int) -> float:
    """Towards noise, as much as the family was trained with: mu from 0.5 at 256 tokens to 1.15 at 4096."""
    stretch = math.exp(0.5 + 0.65 * (num_tokens - 256) / (4096 - 256))
    return stretch / (stretch + 1.0 / time - 1.0)
