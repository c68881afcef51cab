"""The loss: plain rectified flow over samples of any sizes with any numbers of references, packed into one pass.

A sample is a mix x_t = (1 - t)·x_0 + t·noise; the network is asked for the velocity noise - x_0. References are there
clean, and nothing is asked of their rows. The error is averaged over each picture's own tokens first and then over the
samples, so that large pictures count as much as small ones. Where an example has a mask, tokens count by its weights,
which add up to the same whatever the mask's area. Everything random is a function of (seed, number of the sample).

Shape suffixes: N image-stream rows of a sample or of all, K of a reference, C channels, L text tokens, X context width.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from random import Random

import torch
from torch import Tensor

from kleinbild.model.packing import Packing, Segment, pack
from kleinbild.model.spec import TransformerSpec
from kleinbild.train.data.cache import Encoded
from kleinbild.train.recipe import Recipe
from kleinbild.train.times import draw_time, weight_at

Velocity = Callable[[Tensor, Tensor, Tensor, Packing], Tensor]
"""Image-stream rows (N, C), text contexts (M, X), times (R,) and their layout to velocities (N, C)."""


@dataclass(frozen=True, slots=True, eq=False)
class Sample:
    """One share of a step: what is learned, at which time, mixed with which noise, and how much it counts."""

    target_NC: Tensor
    noise_NC: Tensor
    references: tuple[Tensor, ...]
    context_LX: Tensor
    segment: Segment
    time: float
    weight: float = 1.0
    weights_N1: Tensor | None = None


def draw(encoded: Encoded, empty_LX: Tensor, recipe: Recipe, number: int) -> Sample:
    """Sample `number` of a run, made from an encoded example. `empty_LX` is the context of the empty caption."""
    random = Random(f"{recipe.seed}-sample-{number}")
    without_caption = random.random() < recipe.caption_dropout
    without_references = random.random() < recipe.reference_dropout
    generator = torch.Generator().manual_seed(random.getrandbits(60))
    time = draw_time(recipe, encoded.grid[0] * encoded.grid[1], generator)
    noise_NC = torch.randn(encoded.target_NC.shape, generator=generator)
    references = () if without_references else encoded.references
    context_LX = empty_LX if without_caption else random.choice(encoded.contexts)
    share = recipe.regularization_weight if encoded.example.regularization else 1.0
    return Sample(
        target_NC=encoded.target_NC,
        noise_NC=noise_NC,
        references=tuple(tokens for tokens, _ in references),
        context_LX=context_LX,
        segment=Segment(len(context_LX), encoded.grid, tuple(grid for _, grid in references)),
        time=time,
        weight=share * weight_at(time, recipe.loss_weight),
        weights_N1=encoded.weights_N1 if recipe.masked_loss else None,
    )


def num_tokens_of(samples: Sequence[Sample]) -> int:
    """The tokens that are trained on, in all counts of them: every row that the network is given, of each sample its
    picture's, those of the references that were not dropped, and its text's, padding included."""
    return sum(sample.segment.num_rows for sample in samples)


def loss_of(velocity: Velocity, samples: Sequence[Sample], spec: TransformerSpec, device: torch.device) -> Tensor:
    """The mean over `samples` of their weighted errors, a scalar."""
    samples = sorted(samples, key=lambda each: each.segment.shape)  # equal ones side by side are one run of attention
    packing = _packing(tuple(each.segment for each in samples), spec, str(device))
    noisy_NC = torch.cat([rows for each in samples for rows in _rows(each)]).to(device)
    context_MX = torch.cat([each.context_LX for each in samples]).to(device)
    times_R = torch.tensor([each.time for each in samples], device=device)
    error_NC = velocity(noisy_NC, context_MX, times_R, packing).float() - _wanted(samples).to(device)
    return (error_NC.square().mean(dim=-1) * _row_weights(samples).to(device)).sum()


def _rows(sample: Sample) -> list[Tensor]:
    """The sample's image-stream rows: the noisy picture, then its references."""
    noisy_NC = (1 - sample.time) * sample.target_NC.float() + sample.time * sample.noise_NC
    return [noisy_NC, *(reference_KC.float() for reference_KC in sample.references)]


def _wanted(samples: Sequence[Sample]) -> Tensor:
    """The velocity that is asked for in every row; nothing in those of references."""
    parts: list[Tensor] = []
    for each in samples:
        parts.append(each.noise_NC - each.target_NC.float())
        parts.append(each.noise_NC.new_zeros(each.segment.num_references, each.noise_NC.shape[1]))
    return torch.cat(parts)


def _row_weights(samples: Sequence[Sample]) -> Tensor:
    """How much the mean error of each row counts: each sample's rows add up to its weight, divided among the samples."""
    parts: list[Tensor] = []
    for each in samples:
        of_tokens = torch.ones(each.segment.num_image) if each.weights_N1 is None else each.weights_N1.float().flatten()
        total = of_tokens.sum().clamp(min=1e-6)  # a mask that is dark everywhere: the sample counts nothing
        parts.append(of_tokens / total * each.weight / len(samples))
        parts.append(torch.zeros(each.segment.num_references))
    return torch.cat(parts)


@lru_cache(maxsize=32)
def _packing(segments: tuple[Segment, ...], spec: TransformerSpec, device: str) -> Packing:
    return pack(segments, spec, device=device)
