"""The steps: all pictures of a pass in one packed forward pass each, of any sizes, times and numbers of steps.

A picture that is finished leaves the pack. Guidance is a second segment with the empty prompt. Models that cache
references keep their keys and values from the first step on, and the references leave the pack, too.

Shape suffixes: N rows of the image stream, C channels, M rows of text, X context width, L tokens of a text.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from kleinbild.engine.latents import Sequence
from kleinbild.model.attention import ReferenceCache
from kleinbild.model.packing import Packing, ReferenceMode, pack
from kleinbild.model.weights import Model

OnStep = Callable[[int, int], None]
"""Called after each step with the number of steps done and of steps in all."""


@dataclass(frozen=True, slots=True, eq=False)
class Branch:
    """One segment of the pack: a sequence under its own prompt, or under the empty one that guidance compares with."""

    sequence: Sequence
    context_LX: Tensor


@dataclass(frozen=True, slots=True)
class Layout:
    """What stays the same from step to step while the same sequences are in the pack."""

    branches: tuple[Branch, ...]
    packing: Packing
    txt_MX: Tensor
    cache: ReferenceCache | None = None


def denoise(model: Model, sequences: list[Sequence], on_step: OnStep | None = None) -> None:
    """Runs every sequence through all of its steps."""
    total = max((sequence.num_steps for sequence in sequences), default=0)
    layout = first_layout(model, sequences) if sequences else None
    for done in range(1, total + 1):
        assert layout is not None
        for sequence, velocity_NC in predict(model, layout):
            sequence.advance(velocity_NC)
        if on_step is not None:
            on_step(done, total)
        if done < total:
            layout = next_layout(model, layout)


def first_layout(model: Model, sequences: list[Sequence]) -> Layout:
    """The pack of the first step."""
    branches = tuple(branch for sequence in sequences for branch in _branches(sequence))
    caches = model.settings.reference_caching and any(sequence.segment.references for sequence in sequences)
    segments = [branch.sequence.segment for branch in branches]
    packing = pack(segments, model.transformer.spec, mode="store" if caches else "joint", device=model.device)
    return Layout(branches, packing, _texts(branches), ReferenceCache() if caches else None)


def next_layout(model: Model, layout: Layout) -> Layout:
    """The pack of a later step: without what is finished, and without references once they are cached."""
    keep = [i for i, branch in enumerate(layout.branches) if not branch.sequence.finished]
    mode: ReferenceMode = "joint" if layout.cache is None else "stored"
    if len(keep) == len(layout.branches) and layout.packing.mode == mode:
        return layout
    branches = tuple(layout.branches[i] for i in keep)
    segments = [branch.sequence.segment for branch in branches]
    packing = pack(segments, model.transformer.spec, mode=mode, device=model.device)
    cache = layout.cache.select(layout.packing, keep) if layout.cache is not None else None
    return Layout(branches, packing, _texts(branches), cache)


def predict(model: Model, layout: Layout) -> Iterator[tuple[Sequence, Tensor]]:
    """One forward pass: every sequence of the pack with its velocity, guidance applied."""
    rows = [_rows(branch.sequence, layout.packing) for branch in layout.branches]
    times = torch.tensor([branch.sequence.time for branch in layout.branches], device=model.device)
    img_NC = torch.cat(rows).to(model.dtype)
    out_NC: Tensor = model.transformer(img_NC, layout.txt_MX, times, layout.packing, layout.cache)
    velocities = iter(out_NC.float().split([len(own) for own in rows]))
    for sequence in dict.fromkeys(branch.sequence for branch in layout.branches):
        velocity = next(velocities)[: sequence.segment.num_image]
        if sequence.context.empty_LX is not None:
            of_empty = next(velocities)[: sequence.segment.num_image]
            velocity = of_empty + sequence.guidance * (velocity - of_empty)
        yield sequence, velocity


def _branches(sequence: Sequence) -> Iterator[Branch]:
    yield Branch(sequence, sequence.context.prompt_LX)
    if sequence.context.empty_LX is not None:
        yield Branch(sequence, sequence.context.empty_LX)


def _rows(sequence: Sequence, packing: Packing) -> Tensor:
    """The sequence's rows of the image stream: the picture being made, then its references unless they are cached."""
    if packing.mode == "stored":
        return sequence.latent_NC
    return torch.cat((sequence.latent_NC, sequence.references_KC.float()))


def _texts(branches: tuple[Branch, ...]) -> Tensor:
    return torch.cat([branch.context_LX for branch in branches])
