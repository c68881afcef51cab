"""Which times a sample is trained at, and how much its loss counts there.

The default is what the model's makers are said to have trained with: logit-normal times, shifted towards noise by a
factor that grows with the picture, on a line of its own; it is not the larger shift of sampling (`model.schedule`).
"""

from __future__ import annotations

import math
from itertools import pairwise

import torch

from kleinbild.model.schedule import shift as sampling_shift
from kleinbild.model.schedule import times as sampling_times
from kleinbild.train.recipe import LossWeight, Recipe

LINE = ((256, 0.5), (4096, 1.15))  # (tokens of the picture, exponent of the shift); one token is 16 x 16 pixels
DISTILLED_STEPS = 4
PEAKED = ((0.0, 0.45), (0.5, 0.80), (0.88, 1.52), (1.0, 0.91))  # (time, weight), straight lines between


def training_shift(num_tokens: int) -> float:
    """The factor by which times are shifted for a picture of `num_tokens` tokens."""
    (few, low), (many, high) = LINE
    return math.exp(low + (high - low) * (num_tokens - few) / (many - few))


def shifted(time: float, factor: float) -> float:
    return factor * time / (1 + (factor - 1) * time)


def draw_time(recipe: Recipe, num_tokens: int, generator: torch.Generator) -> float:
    """One time in (0, 1). `generator` gives as many numbers whatever the recipe says."""
    normal = float(torch.randn((), generator=generator, dtype=torch.float64))
    even, coin = torch.rand(2, generator=generator, dtype=torch.float64).tolist()
    if recipe.times in ("uniform", "weighted"):
        return float(even)
    if recipe.times == "distilled-4" and coin < 0.5:
        return _near_distilled(num_tokens, normal)
    return shifted(
        _sigmoid(recipe.time_mean + recipe.time_spread * normal), recipe.time_shift or training_shift(num_tokens)
    )


def _near_distilled(num_tokens: int, normal: float) -> float:
    """Shifted as the distilled model's four steps are: it is asked at the times 1, 0.97, 0.91 and 0.77 or so."""
    return shifted(_sigmoid(normal), math.exp(sampling_shift(num_tokens, DISTILLED_STEPS)))


def distilled_times(num_tokens: int) -> tuple[float, ...]:
    """The times that the distilled model is asked at for a picture of `num_tokens` tokens."""
    return sampling_times(num_tokens, DISTILLED_STEPS)[:-1]


def weight_at(time: float, kind: LossWeight) -> float:
    """How much a loss at `time` counts; about 1 on average over all times."""
    if kind == "peaked":
        return next(_between(time, low, high) for low, high in pairwise(PEAKED) if time <= high[0])
    if kind == "bell":  # a Gaussian that is nothing at both ends
        mean = math.sqrt(math.pi / 2) * math.erf(math.sqrt(0.5)) - math.exp(-0.5)
        return (math.exp(-2 * (time - 0.5) ** 2) - math.exp(-0.5)) / mean
    return 1.0


def _between(time: float, low: tuple[float, float], high: tuple[float, float]) -> float:
    share = (time - low[0]) / (high[0] - low[0])
    return low[1] + share * (high[1] - low[1])


def _sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))
