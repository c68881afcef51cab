"""The validation loss: the training loss on fixed pictures with fixed noise at fixed times.

A training step's loss is noise above all: which picture, how much noise, at which time. With all three fixed, what
changes is the weights. Nothing here draws from the run's random streams, so that looking does not change what is seen.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor

from kleinbild.model.adapters.applied import Use
from kleinbild.model.packing import Packing, Segment
from kleinbild.model.transformer import Flux2Transformer
from kleinbild.train.data.cache import Encoded
from kleinbild.train.objective import Sample, Velocity, loss_of

TIMES = (0.1, 0.3, 0.5, 0.7, 0.9, 0.97)
LEAST_HELD_OUT, MOST_HELD_OUT, HELD_OUT_SHARE = 20, 8, 0.1
LEAST_DIVIDED = 4  # samples, from which on each is measured at every other time: half of the passes, all of the times
ROWS_A_PASS = 8192

T = TypeVar("T")


def hold_out(examples: Sequence[T], names: Sequence[str], seed: int) -> tuple[tuple[T, ...], tuple[T, ...]]:
    """Those to train on, and those to validate on: one in ten of at least 20, at most 8.

    With fewer every picture is needed: then all are trained on, and validated on are up to 8 of the same. Which ones,
    their names and the seed alone decide.
    """
    order = sorted(range(len(examples)), key=lambda i: hashlib.sha256(f"{seed} {names[i]}".encode()).digest())
    few = len(examples) < LEAST_HELD_OUT
    num = min(MOST_HELD_OUT, len(examples) if few else round(HELD_OUT_SHARE * len(examples)))
    chosen = sorted(order[:num])
    rest = range(len(examples)) if few else sorted(order[num:])
    return tuple(examples[i] for i in rest), tuple(examples[i] for i in chosen)


@dataclass(frozen=True, slots=True)
class Losses:
    """The mean, and the mean at each time ("0.1", "0.3", …)."""

    mean: float
    by_time: Mapping[str, float]


class Validation:
    """Fixed samples with fixed noise at fixed times, to be measured again and again."""

    def __init__(self, samples: Sequence[Encoded], seed: int, times: Sequence[float] = TIMES) -> None:
        every = 2 if len(samples) >= LEAST_DIVIDED else 1
        self.by_time = {
            time: [
                _sample(encoded, time, f"{seed} {number} {time:g}")
                for number, encoded in enumerate(samples)
                if number % every == position % every
            ]
            for position, time in enumerate(times)
        }

    @torch.no_grad()
    def losses(self, transformer: Flux2Transformer, device: torch.device, uses: tuple[Use, ...] = ()) -> Losses:
        """With these adapters applied, or with none."""
        velocity = _velocity(transformer, uses)
        by_time = {
            f"{time:g}": sum(
                len(chunk) * float(loss_of(velocity, chunk, transformer.spec, device)) for chunk in _chunks(samples)
            ) / len(samples)
            for time, samples in self.by_time.items()
        }  # fmt: skip
        return Losses(sum(by_time.values()) / len(by_time), by_time)


def _velocity(transformer: Flux2Transformer, uses: tuple[Use, ...]) -> Velocity:
    """As it is trained: an adapter's own numbers stay in float32, products are of the base's type."""
    dtype = transformer.img_in.weight.dtype

    def velocity(noisy_NC: Tensor, context_MX: Tensor, times_R: Tensor, packing: Packing) -> Tensor:
        with torch.autocast(noisy_NC.device.type, dtype, enabled=dtype != torch.float32):
            out_NC: Tensor = transformer(
                noisy_NC.to(dtype), context_MX.to(dtype), times_R, packing, adapters=[uses] * len(packing.segments)
            )
        return out_NC

    return velocity


def _sample(encoded: Encoded, time: float, key: str) -> Sample:
    seed = int.from_bytes(hashlib.sha256(key.encode()).digest()[:7])
    return Sample(
        target_NC=encoded.target_NC,
        noise_NC=torch.randn(encoded.target_NC.shape, generator=torch.Generator().manual_seed(seed)),
        references=tuple(tokens for tokens, _ in encoded.references),
        context_LX=encoded.contexts[0],
        segment=Segment(len(encoded.contexts[0]), encoded.grid, tuple(grid for _, grid in encoded.references)),
        time=time,
        weights_N1=encoded.weights_N1,
    )


def _chunks(samples: Sequence[Sample]) -> Iterator[list[Sample]]:
    """As many as one pass takes."""
    chunk: list[Sample] = []
    for sample in samples:
        if chunk and sum(each.segment.num_rows for each in (*chunk, sample)) > ROWS_A_PASS:
            yield chunk
            chunk = []
        chunk.append(sample)
    if chunk:
        yield chunk
