"""The steps: any number of pictures in one packed forward pass, of any sizes, times and numbers of steps.

A step is all that happens here: who takes part in it is decided between two steps, by `kleinbild.engine.batcher`.
Guidance is a second segment with the empty prompt, under the same adapters: so they were trained. Sequences that cache references store their keys and values in the
first step and read them in the others.

Shape suffixes: N rows of the image stream, C channels, X context width, L tokens of a text.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from kleinbild.engine.caches import Caches
from kleinbild.engine.compiled import Compiled
from kleinbild.engine.latents import Sequence
from kleinbild.model.attention import ReferenceCache
from kleinbild.model.weights import Model


@dataclass(frozen=True, slots=True, eq=False)
class Branch:
    """One segment of the pack: a sequence under its own prompt, or under the empty one that guidance compares with."""

    sequence: Sequence
    context_LX: Tensor
    cache: ReferenceCache | None


def step(model: Model, caches: Caches, sequences: list[Sequence], compiled: Compiled | None = None) -> None:
    """One step of every sequence, in one forward pass. If it fails, none has moved."""
    for sequence, velocity_NC in predict(model, caches, sequences, compiled):
        sequence.advance(velocity_NC)


def predict(
    model: Model, caches: Caches, sequences: list[Sequence], compiled: Compiled | None = None
) -> list[tuple[Sequence, Tensor]]:
    """One forward pass: every sequence with its velocity, guidance applied. `compiled` computes it, if given."""
    transformer = model.transformer if compiled is None else compiled.transformer
    # Equal shapes side by side are one run, and equal adapters therein one span.
    alike = sorted(sequences, key=lambda sequence: (sequence.segment.shape, sequence.adapter_names))
    branches = [branch for sequence in alike for branch in _branches(sequence)]
    packing = caches.layouts(tuple(branch.sequence.segment for branch in branches))
    rows = [branch.sequence.rows for branch in branches]
    adapters = [branch.sequence.adapters for branch in branches]
    out_NC: Tensor = transformer(
        torch.cat(rows).to(model.dtype),
        torch.cat([branch.context_LX for branch in branches]),
        caches.modulator([branch.sequence.time for branch in branches], adapters),
        packing,
        [branch.cache for branch in branches],
        adapters,
    )
    velocities = iter(out_NC.float().split([len(own) for own in rows]))
    return [(sequence, _guided(sequence, velocities)) for sequence in alike]


def _guided(sequence: Sequence, velocities: Iterator[Tensor]) -> Tensor:
    velocity = next(velocities)[: sequence.segment.num_image]
    if sequence.context.empty_LX is None:
        return velocity
    of_empty = next(velocities)[: sequence.segment.num_image]
    return of_empty + sequence.guidance * (velocity - of_empty)


def _branches(sequence: Sequence) -> Iterator[Branch]:
    yield Branch(sequence, sequence.context.prompt_LX, sequence.caches[0])
    if sequence.context.empty_LX is not None:
        yield Branch(sequence, sequence.context.empty_LX, sequence.caches[1])
