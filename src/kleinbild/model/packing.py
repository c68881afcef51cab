"""How requests of different sizes share one forward pass: rows, segments and runs.

All tokens of all requests are packed into one row per stream. A `Segment` is one request's share: text, image and
reference tokens. Neighbouring requests with equal segments form a `Run`, which attention handles as one batch without
copying; any mix of sizes is a list of runs. A packing depends on shapes alone, so it is built once and serves all steps.

Shape suffixes: N image-stream rows, M text-stream rows, A axes (4), R requests, D width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Literal

import torch
from torch import Tensor

from kleinbild.model.rope import image_ids, rotations, text_ids
from kleinbild.model.spec import TransformerSpec

ReferenceMode = Literal["joint", "store", "stored"]


@dataclass(frozen=True, slots=True)
class Segment:
    """One request's tokens. `image` and each of `references` are (rows, columns) of tokens."""

    num_text: int
    image: tuple[int, int]
    references: tuple[tuple[int, int], ...] = ()

    @property
    def num_image(self) -> int:
        return self.image[0] * self.image[1]

    @property
    def num_references(self) -> int:
        return sum(rows * columns for rows, columns in self.references)


@dataclass(frozen=True, slots=True)
class Run:
    """`count` neighbouring requests with equal numbers of tokens; `num_stream` counts image and packed references."""

    count: int
    num_text: int
    num_image: int
    num_references: int

    @property
    def num_stream(self) -> int:
        return self.num_image + self.num_references

    @property
    def num_all(self) -> int:
        return self.num_text + self.num_stream


@dataclass(frozen=True, slots=True)
class RowSource:
    """Which of the time vectors modulates each row: `index` (rows,), or None where one vector serves all."""

    index: Tensor | None
    repeats: tuple[int, int] | None = None

    def expand(self, values_RD: Tensor) -> Tensor:
        """Per-request values to something that broadcasts over the rows."""
        if self.repeats is not None:  # equal segments: cheaper than a gather, above all backwards
            count, length = self.repeats
            return values_RD[:, None].expand(count, length, -1).reshape(count * length, -1)
        return values_RD if self.index is None else values_RD.index_select(0, self.index)


@dataclass(frozen=True, slots=True)
class Packing:
    """The layout of one forward pass. `mode` says how references take part (see `Flux2Transformer.forward`)."""

    segments: tuple[Segment, ...]
    mode: ReferenceMode
    runs: tuple[Run, ...]
    text_rotations: tuple[Tensor, Tensor]
    stream_rotations: tuple[Tensor, Tensor]
    joint_rotations: tuple[Tensor, Tensor]
    text_source: RowSource
    stream_source: RowSource
    joint_source: RowSource


def pack(
    segments: Sequence[Segment],
    spec: TransformerSpec,
    *,
    mode: ReferenceMode = "joint",
    device: torch.device | str = "cpu",
) -> Packing:
    """Lays out requests. With mode "stored" the references' keys and values come from a cache, not from rows."""
    in_rows = [replace_references(segment) if mode == "stored" else segment for segment in segments]
    # Grouped with their references even where these have no rows: a run's requests share one cache entry.
    shapes = [(s.num_text, s.num_image, s.num_references) for s in segments]
    groups = [(len(list(group)), shape) for shape, group in groupby(shapes)]
    runs = tuple(Run(count, *shape[:2], 0 if mode == "stored" else shape[2]) for count, shape in groups)
    text = [text_ids(segment.num_text) for segment in in_rows]
    stream = [_stream_ids(segment) for segment in in_rows]
    joint = [part for pair in zip(text, stream, strict=True) for part in pair]

    def turn(ids: list[Tensor]) -> tuple[Tensor, Tensor]:
        cos, sin = rotations(torch.cat(ids), spec.rope_axes, spec.rope_theta)
        return cos.to(device), sin.to(device)

    # With mode "store" reference rows are modulated as at t = 0: by one more time vector, the last.
    still = len(segments) if mode == "store" else None
    text_rows = [[r] * s.num_text for r, s in enumerate(in_rows)]
    stream_rows = [
        [r] * s.num_image + [r if still is None else still] * s.num_references for r, s in enumerate(in_rows)
    ]
    joint_rows = [t + s for t, s in zip(text_rows, stream_rows, strict=True)]
    return Packing(
        segments=tuple(segments),
        mode=mode,
        runs=runs,
        text_rotations=turn(text),
        stream_rotations=turn(stream),
        joint_rotations=turn(joint),
        text_source=_source(text_rows, device, one_more=still is not None),
        stream_source=_source(stream_rows, device, one_more=still is not None),
        joint_source=_source(joint_rows, device, one_more=still is not None),
    )


def replace_references(segment: Segment) -> Segment:
    """The segment without its references' rows."""
    return Segment(segment.num_text, segment.image)


def _stream_ids(segment: Segment) -> Tensor:
    references = [image_ids(*shape, reference=k) for k, shape in enumerate(segment.references)]
    return torch.cat([image_ids(*segment.image), *references])


def _source(rows: list[list[int]], device: torch.device | str, *, one_more: bool) -> RowSource:
    """`one_more`: there is a time vector beyond those of the requests, so that rows have to be told which is theirs."""
    lengths = {len(own) for own in rows}
    pure = not one_more and all(set(own) <= {r} for r, own in enumerate(rows))
    if pure and len(rows) == 1:
        return RowSource(None)
    if pure and len(lengths) == 1:
        return RowSource(None, (len(rows), lengths.pop()))
    return RowSource(torch.tensor([r for own in rows for r in own], device=device))
