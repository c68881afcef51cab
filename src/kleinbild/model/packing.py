"""How requests of different sizes share one forward pass: rows, segments and runs.

All tokens of all requests are packed into one row per stream. A `Segment` is one request's share: text, image and
reference tokens. Neighbouring requests with equal segments form a `Run`, which attention handles as one batch without
copying; any mix of sizes is a list of runs. A packing depends on shapes alone, so it is built once and serves all steps.

Shape suffixes: N image-stream rows, M text-stream rows, A axes (4), R requests, D width.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import count, groupby
from typing import Literal

import torch
from torch import Tensor

from kleinbild.model.rope import image_ids, rotations, text_ids
from kleinbild.model.spec import TransformerSpec

ReferenceMode = Literal["joint", "store", "keep", "stored"]
"""How a request's references take part in a pass (see `Flux2Transformer.forward`)."""


@dataclass(frozen=True, slots=True)
class Segment:
    """One request's tokens. `image` and each of `references` are (rows, columns) of tokens."""

    num_text: int
    image: tuple[int, int]
    references: tuple[tuple[int, int], ...] = ()
    mode: ReferenceMode = "joint"

    @property
    def num_image(self) -> int:
        return self.image[0] * self.image[1]

    @property
    def num_references(self) -> int:
        return sum(rows * columns for rows, columns in self.references)

    @property
    def num_stream(self) -> int:
        """Rows of the image stream: the image's and, unless they are read from a cache, the references'."""
        return self.num_image + (0 if self.mode == "stored" else self.num_references)

    @property
    def num_rows(self) -> int:
        return self.num_text + self.num_stream

    @property
    def stores(self) -> bool:
        """Whether it has references that stand at t = 0."""
        return self.mode == "store" and bool(self.references)

    @property
    def shape(self) -> tuple[int, int, int, str]:
        """What two segments must have in common to be one run. Without references all modes are the same."""
        mode = self.mode if self.references else "joint"
        return self.num_text, self.num_image, self.num_references, mode


@dataclass(frozen=True, slots=True)
class Run:
    """`count` neighbouring requests, from number `first` on, with equal numbers of tokens and the same mode."""

    first: int
    count: int
    num_text: int
    num_image: int
    num_references: int  # with rows of their own: none with mode "stored"
    mode: ReferenceMode

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
    """The layout of one forward pass. `num_stores` requests store their references, which stand at t = 0."""

    segments: tuple[Segment, ...]
    num_stores: int
    runs: tuple[Run, ...]
    text_rotations: tuple[Tensor, Tensor]
    stream_rotations: tuple[Tensor, Tensor]
    joint_rotations: tuple[Tensor, Tensor]
    text_source: RowSource
    stream_source: RowSource
    joint_source: RowSource


def pack(segments: Sequence[Segment], spec: TransformerSpec, *, device: torch.device | str = "cpu") -> Packing:
    """Lays out requests. With mode "stored" the references' keys and values come from a cache, not from rows."""
    text = [text_ids(segment.num_text) for segment in segments]
    stream = [_stream_ids(segment) for segment in segments]
    joint = [part for pair in zip(text, stream, strict=True) for part in pair]

    def turn(ids: list[Tensor]) -> tuple[Tensor, Tensor]:
        cos, sin = rotations(torch.cat(ids), spec.rope_axes, spec.rope_theta)
        return cos.to(device), sin.to(device)

    # References that are stored are modulated as at t = 0: by more time vectors, after those of the requests.
    num_stores = sum(segment.stores for segment in segments)
    further = count(len(segments))
    text_rows = [[r] * segment.num_text for r, segment in enumerate(segments)]
    stream_rows = [
        [r] * segment.num_image + [next(further) if segment.stores else r] * (segment.num_stream - segment.num_image)
        for r, segment in enumerate(segments)
    ]
    joint_rows = [t + s for t, s in zip(text_rows, stream_rows, strict=True)]
    return Packing(
        segments=tuple(segments),
        num_stores=num_stores,
        runs=tuple(_runs(segments)),
        text_rotations=turn(text),
        stream_rotations=turn(stream),
        joint_rotations=turn(joint),
        text_source=_source(text_rows, device, more=num_stores > 0),
        stream_source=_source(stream_rows, device, more=num_stores > 0),
        joint_source=_source(joint_rows, device, more=num_stores > 0),
    )


def _runs(segments: Sequence[Segment]) -> Iterator[Run]:
    first = 0
    for _, group in groupby(segments, key=lambda segment: segment.shape):
        alike = list(group)
        one = alike[0]
        mode = one.mode if one.references else "joint"
        yield Run(first, len(alike), one.num_text, one.num_image, one.num_stream - one.num_image, mode)
        first += len(alike)


def _stream_ids(segment: Segment) -> Tensor:
    of_image = image_ids(*segment.image)
    if segment.mode == "stored":
        return of_image
    return torch.cat([of_image, *(image_ids(*shape, reference=k) for k, shape in enumerate(segment.references))])


def _source(rows: list[list[int]], device: torch.device | str, *, more: bool) -> RowSource:
    """`more`: there are time vectors beyond those of the requests, so that rows have to be told which is theirs."""
    lengths = {len(own) for own in rows}
    pure = not more and all(set(own) <= {r} for r, own in enumerate(rows))
    if pure and len(rows) == 1:
        return RowSource(None)
    if pure and len(lengths) == 1:
        return RowSource(None, (len(rows), lengths.pop()))
    return RowSource(torch.tensor([r for own in rows for r in own], device=device))
