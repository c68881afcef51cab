"""Velocities: a transformer, with adapters and with or without guidance, asked about any mix of samples in one packed pass.

Everything in this package speaks of models as `Velocity`: samples, where each is and at which time in, velocities out.

Shape suffixes: N tokens of a picture, C latent channels, L text tokens, X context width, K reference tokens.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise

import torch
from torch import Tensor

from kleinbild.model import schedule
from kleinbild.model.adapters.applied import Use
from kleinbild.model.packing import Packing, Segment, pack
from kleinbild.model.spec import TransformerSpec
from kleinbild.model.transformer import Flux2Transformer

Grid = tuple[int, int]


@dataclass(frozen=True, slots=True, eq=False)
class Sample:
    """What a picture is made from: its size in tokens, the prompt's context, references; and a real one, if there is one."""

    grid: Grid
    context_LX: Tensor
    references: tuple[tuple[Tensor, Grid], ...] = ()
    target_NC: Tensor | None = None

    @property
    def num_tokens(self) -> int:
        return self.grid[0] * self.grid[1]

    def segment(self, context_LX: Tensor) -> Segment:
        return Segment(len(context_LX), self.grid, tuple(grid for _, grid in self.references))

    def rows(self, latent_NC: Tensor) -> Tensor:
        """Its rows of the image stream: the picture where it is now, then the references."""
        return torch.cat([latent_NC, *(tokens_KC.to(latent_NC) for tokens_KC, _ in self.references)])


Velocity = Callable[[Sequence[Sample], Sequence[Tensor], Sequence[float]], list[Tensor]]
"""(samples, latents (N, C), times) to velocities (N, C), float32, of each."""


@dataclass(frozen=True, slots=True, eq=False)
class Field:
    """A transformer with adapters, without guidance. `mixed`: computes in bfloat16 whatever its weights are kept in."""

    transformer: Flux2Transformer
    uses: tuple[Use, ...] = ()
    mixed: bool = False

    def __call__(self, samples: Sequence[Sample], latents: Sequence[Tensor], times: Sequence[float]) -> list[Tensor]:
        return self.under([sample.context_LX for sample in samples], samples, latents, times)

    def under(
        self, contexts: Sequence[Tensor], samples: Sequence[Sample], latents: Sequence[Tensor], times: Sequence[float]
    ) -> list[Tensor]:
        """The velocities under other contexts than the samples' own."""
        segments = [sample.segment(context) for sample, context in zip(samples, contexts, strict=True)]
        order = sorted(range(len(segments)), key=lambda i: segments[i].shape)  # equal shapes side by side are one run
        device, dtype = latents[0].device, self.transformer.img_in.weight.dtype
        packing = _packing(tuple(segments[i] for i in order), self.transformer.spec, str(device))
        rows = [samples[i].rows(latents[i]) for i in order]
        with torch.autocast(device.type, torch.bfloat16, enabled=self.mixed):
            out_NC: Tensor = self.transformer(
                torch.cat(rows).to(dtype),
                torch.cat([contexts[i] for i in order]).to(dtype),
                torch.tensor([times[i] for i in order], device=device),
                packing,
                adapters=[self.uses] * len(order) if self.uses else (),
            )
        parts = out_NC.float().split([len(own) for own in rows])
        velocities = dict(zip(order, parts, strict=True))
        return [velocities[i][: sample.num_tokens] for i, sample in enumerate(samples)]


@lru_cache(maxsize=64)
def _packing(segments: tuple[Segment, ...], spec: TransformerSpec, device: str) -> Packing:
    return pack(segments, spec, device=device)


@dataclass(frozen=True, slots=True, eq=False)
class Guided:
    """A field under classifier-free guidance against the empty prompt; references stay in both branches. No gradients.

    At times of `below` and later (nearer to noise) the field is left as it is: there guidance only makes all pictures alike.
    """

    field: Field
    empty_LX: Tensor
    guidance: float
    below: float

    @torch.no_grad()
    def __call__(self, samples: Sequence[Sample], latents: Sequence[Tensor], times: Sequence[float]) -> list[Tensor]:
        guided = [i for i, time in enumerate(times) if time < self.below and self.guidance != 1]
        contexts = [sample.context_LX for sample in samples] + [self.empty_LX] * len(guided)

        def both(values: Sequence[object]) -> list[object]:
            return [*values, *(values[i] for i in guided)]

        out = self.field.under(contexts, both(samples), both(latents), both(times))  # type: ignore[arg-type]
        velocities, of_empty = out[: len(samples)], out[len(samples) :]
        for i, empty_NC in zip(guided, of_empty, strict=True):
            velocities[i] = empty_NC + self.guidance * (velocities[i] - empty_NC)
        return velocities


def windows(num_tokens: int, num_steps: int) -> tuple[float, ...]:
    """The student's times: exactly those that the engine will visit."""
    return schedule.times(num_tokens, num_steps)


def finer(num_tokens: int, num_steps: int, window: int, num_substeps: int) -> tuple[float, ...]:
    """The teacher's times within a window, from its start to its end, spaced as the engine's own."""
    stretch = math.exp(schedule.shift(num_tokens, num_steps))
    linear = [1.0 - (window + i / num_substeps) / num_steps for i in range(1, num_substeps)]
    start, end = windows(num_tokens, num_steps)[window : window + 2]
    return (start, *(stretch / (stretch + 1.0 / t - 1.0) for t in linear), end)


@torch.no_grad()
def integrate(
    velocity: Velocity, samples: Sequence[Sample], latents: Sequence[Tensor], times: Sequence[tuple[float, ...]]
) -> list[Tensor]:
    """Euler from each sample's first time to its last; all must have the same number of times."""
    at = list(latents)
    for steps in zip(*(list(pairwise(own)) for own in times), strict=True):
        velocities = velocity(samples, at, [now for now, _ in steps])
        at = [x_NC + (then - now) * v_NC for x_NC, v_NC, (now, then) in zip(at, velocities, steps, strict=True)]
    return at


def noise(sample: Sample, channels: int, seed: int, device: torch.device) -> Tensor:
    """The noise (N, C) that a seed stands for in the engine: drawn as (1, C, rows, columns) on the CPU."""
    drawn = torch.randn((1, channels, *sample.grid), generator=torch.Generator("cpu").manual_seed(seed))
    return drawn[0].flatten(1).t().contiguous().to(device)
