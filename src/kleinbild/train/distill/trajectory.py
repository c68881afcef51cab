"""Stage 1: in each of its four windows the student learns the one straight step that the guided teacher takes many for.

A lesson begins somewhere at the window's start: on the way from a real picture to noise, where the teacher itself came
from noise, or, late in training, where the student arrives by its own steps, so that it learns to mend its own errors.

Shape suffixes: N tokens of a picture, C latent channels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from random import Random

import torch
from torch import Tensor

from kleinbild.train.distill.field import Sample, Velocity, finer, integrate, noise, windows
from kleinbild.train.distill.recipe import Recipe
from kleinbild.train.distill.rollouts import Rollouts


@dataclass(frozen=True, slots=True, eq=False)
class Lesson:
    """Where a window begins for the student, and the velocity that leads to where the teacher ends it."""

    sample: Sample
    window: int
    time: float
    latent_NC: Tensor
    wanted_NC: Tensor


@dataclass(frozen=True, slots=True)
class _Begun:
    sample: Sample
    window: int
    latent_NC: Tensor
    end_NC: Tensor | None = None  # where it is known already


def lessons(student: Velocity, rollouts: Rollouts, step: int, progress: float) -> list[Lesson]:
    """The lessons of update `step`; `progress` is that of stage 1, from 0 to 1."""
    recipe = rollouts.recipe
    random = Random(f"{recipe.seed}-lessons-{step}")
    own_share = recipe.own_share if progress >= recipe.own_from else 0.0
    begun: list[_Begun] = []
    own: list[tuple[Sample, int, Tensor]] = []
    for _ in range(recipe.batch_size):
        window = random.choices(range(recipe.num_steps), recipe.window_weights)[0]
        sample, seed = random.choice(rollouts.samples), random.getrandbits(60)
        if random.random() < own_share:
            own.append((sample, window, noise(sample, rollouts.channels, seed, rollouts.device)))
        elif sample.target_NC is None or random.random() < recipe.rollout_share:
            way = rollouts.draw(step, random)
            begun.append(_Begun(way.sample, window, way.states[window], way.states[window + 1]))
        else:
            time = windows(sample.num_tokens, recipe.num_steps)[window]
            drawn_NC = noise(sample, rollouts.channels, seed, rollouts.device)
            begun.append(_Begun(sample, window, (1 - time) * sample.target_NC.float() + time * drawn_NC))
    begun += [
        _Begun(sample, window, latent_NC)
        for (sample, window, _), latent_NC in zip(own, arrive(student, own, recipe.num_steps), strict=True)
    ]
    return _answered(rollouts.teacher, begun, recipe)


@torch.no_grad()
def arrive(student: Velocity, starts: Sequence[tuple[Sample, int, Tensor]], num_steps: int) -> list[Tensor]:
    """Where the student's own steps lead: from noise (the last of each) to the start of a window."""
    at = [noise_NC for _, _, noise_NC in starts]
    for step in range(max((window for _, window, _ in starts), default=0)):
        going = [i for i, (_, window, _) in enumerate(starts) if window > step]
        samples = [starts[i][0] for i in going]
        times = [windows(sample.num_tokens, num_steps)[step : step + 2] for sample in samples]
        for i, moved_NC in zip(going, integrate(student, samples, [at[i] for i in going], times), strict=True):
            at[i] = moved_NC
    return at


def _answered(teacher: Velocity, begun: Sequence[_Begun], recipe: Recipe) -> list[Lesson]:
    """The teacher's answers, where they are not known, all in one pass a substep."""
    asked = [one for one in begun if one.end_NC is None]
    times = [finer(one.sample.num_tokens, recipe.num_steps, one.window, recipe.num_substeps) for one in asked]
    found = iter(
        integrate(teacher, [one.sample for one in asked], [one.latent_NC for one in asked], times) if asked else ()
    )
    lessons = []
    for one in begun:
        end_NC = next(found) if one.end_NC is None else one.end_NC
        start, end = windows(one.sample.num_tokens, recipe.num_steps)[one.window : one.window + 2]
        wanted_NC = (end_NC - one.latent_NC) / (end - start)
        lessons.append(Lesson(one.sample, one.window, start, one.latent_NC, wanted_NC))
    return lessons


def errors(student: Velocity, given: Sequence[Lesson], recipe: Recipe) -> list[Tensor]:
    """The loss of each lesson: pseudo-Huber of the velocity's root mean square error, or its square."""
    velocities = student(
        [lesson.sample for lesson in given], [lesson.latent_NC for lesson in given], [lesson.time for lesson in given]
    )
    squares = [(v_NC - lesson.wanted_NC).square().mean() for v_NC, lesson in zip(velocities, given, strict=True)]
    if recipe.loss == "mse":
        return squares
    width = recipe.huber_width
    return [(square + width**2).sqrt() - width for square in squares]


def few_steps(student: Velocity, samples: Sequence[Sample], start: Sequence[Tensor], num_steps: int) -> list[Tensor]:
    """The student's pictures (N, C) from noise."""
    return integrate(student, samples, start, [windows(sample.num_tokens, num_steps) for sample in samples])
