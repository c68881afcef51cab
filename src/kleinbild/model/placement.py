"""Which of a model's weights are on the device while which network computes, in bytes, counted from shapes.

`model.offload` brings it about, `engine.residence` chooses.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import prod

from kleinbild.core.offload import Offload
from kleinbild.core.precision import Precision
from kleinbild.model.precision import BLOCKS, QUANTIZED, compute_dtype
from kleinbild.model.spec import ModelSpec
from kleinbild.model.weights.fit import expected_shapes

ALIGNMENT = 512  # bytes; as torch's allocator lays tensors out, so that kernels meet them no differently here
BLOCK = re.compile(rf"((?:{'|'.join(map(re.escape, BLOCKS))})\.\d+)\.")
SCALE = 4  # bytes of the number that each row of a quantized weight has
LOOKED_UP = "model.embed_tokens"  # a prompt needs some hundred of its rows: they are looked up on the host


@dataclass(frozen=True, slots=True)
class Placement:
    """The bytes of all weights that are on the device while each of the networks computes."""

    offload: Offload
    text_encoder: int
    transformer: int
    autoencoder: int

    @property
    def most(self) -> int:
        return max(self.text_encoder, self.transformer, self.autoencoder)


@dataclass(frozen=True, slots=True)
class WeightBytes:
    """Of a model's three networks."""

    text_encoder: NetworkBytes
    transformer: NetworkBytes
    autoencoder: NetworkBytes

    @classmethod
    def of(cls, spec: ModelSpec, precision: Precision) -> WeightBytes:
        text_encoder, transformer, autoencoder = (
            NetworkBytes.of(expected_shapes(each), precision)
            for each in (spec.text_encoder, spec.transformer, spec.autoencoder)
        )
        return cls(text_encoder, transformer, autoencoder)

    def placements(self) -> Iterator[Placement]:
        """All there are, from the fastest to the smallest. In turns, the transformer stays while the autoencoder works
        or, where memory is short, leaves."""
        text, transformer, autoencoder = self.text_encoder.whole, self.transformer.whole, self.autoencoder.whole
        yield Placement("none", *[text + transformer + autoencoder] * 3)
        taken = text + autoencoder, transformer + autoencoder
        yield Placement("components", *taken, max(taken))
        yield Placement("components", *taken, autoencoder)
        rests = self.text_encoder.rest + self.transformer.rest
        blocks = 2 * max(self.text_encoder.block, self.transformer.block)
        yield Placement("blocks", *[rests + blocks + autoencoder] * 3)


@dataclass(frozen=True, slots=True)
class NetworkBytes:
    """Of one network's weights on a device: all, all but blocks and embedding, and the largest block."""

    whole: int
    rest: int
    block: int
    blocks: int  # all of them

    @classmethod
    def of(cls, shapes: Mapping[str, Sequence[int]], precision: Precision) -> NetworkBytes:
        """From the tensors' names and shapes."""
        blocks, rest = divide(shapes)

        def packed(names: Iterable[str]) -> int:
            return packed_bytes(size for name in names for size in tensor_bytes(name, shapes[name], precision))

        in_blocks = [packed(names) for names in blocks.values()]
        return cls(packed(shapes), packed(rest), max(in_blocks, default=0), sum(in_blocks))


def tensor_bytes(name: str, shape: Sequence[int], precision: Precision) -> list[int]:
    """Of what a tensor of a weight file becomes: one tensor, or if it is quantized, numbers and scales."""
    if precision in QUANTIZED and BLOCK.match(name) and len(shape) == 2:
        return [prod(shape), SCALE * shape[0]]
    return [compute_dtype(precision).itemsize * prod(shape)]


def divide(names: Iterable[str]) -> tuple[dict[str, list[str]], list[str]]:
    """Tensors' names by block, in their order, and those in no block. What is looked up on the host is in neither."""
    blocks: dict[str, list[str]] = {}
    rest: list[str] = []
    for name in names:
        if match := BLOCK.match(name):
            blocks.setdefault(match[1], []).append(name)
        elif not name.startswith(LOOKED_UP):
            rest.append(name)
    return blocks, rest


def packed_bytes(sizes: Iterable[int]) -> int:
    """Of tensors of these sizes in bytes, each beginning at a multiple of `ALIGNMENT`."""
    return sum(-(-size // ALIGNMENT) * ALIGNMENT for size in sizes)
