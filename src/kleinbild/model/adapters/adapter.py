"""An adapter in memory, in one form whatever file it came from: entries of (module, rows, change, scale).

A module is named as in our transformer (BFL's names: "double_blocks.0.img_attn.qkv"). An entry may change only some of
its output rows: the query's share of a fused projection, say. So split and fused spellings are the same thing here, and
nothing has to be padded with zeros.

Shape suffixes: M rows of activations, I input features, O output features (of the entry's rows), R rank, P Q and S T
the two factors of a Kronecker product.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from kleinbild.model.linear import linear


@dataclass(frozen=True, slots=True, eq=False)
class LowRank:
    """ΔW = B · A (LoRA)."""

    a_RI: Tensor
    b_OR: Tensor

    @property
    def shape(self) -> tuple[int, int]:
        return self.b_OR.shape[0], self.a_RI.shape[1]

    @property
    def rank(self) -> int:
        return self.a_RI.shape[0]

    def delta(self) -> Tensor:
        return self.b_OR @ self.a_RI

    def __call__(self, x_MI: Tensor) -> Tensor:
        return linear(linear(x_MI, self.a_RI), self.b_OR)

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        return self.a_RI, self.b_OR


@dataclass(frozen=True, slots=True, eq=False)
class Kronecker:
    """ΔW = W1 ⊗ W2 (LoKr); each factor is a matrix (P, Q), (S, T), or a product of two."""

    w1: Tensor | LowRank
    w2: Tensor | LowRank

    @property
    def shape(self) -> tuple[int, int]:
        (p, q), (s, t) = self.w1.shape, self.w2.shape
        return p * s, q * t

    def delta(self) -> Tensor:
        return torch.kron(_matrix(self.w1).contiguous(), _matrix(self.w2).contiguous())

    def __call__(self, x_MI: Tensor) -> Tensor:
        w1_PQ, w2_ST = _matrix(self.w1), _matrix(self.w2)
        x_MQT = x_MI.unflatten(-1, (w1_PQ.shape[1], w2_ST.shape[1]))
        x_MQS = linear(x_MQT, w2_ST)
        out_MSP = linear(x_MQS.mT, w1_PQ)
        return out_MSP.mT.flatten(-2)

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        return tuple(t for w in (self.w1, self.w2) for t in ((w,) if isinstance(w, Tensor) else w.tensors))


@dataclass(frozen=True, slots=True, eq=False)
class Hadamard:
    """ΔW = (B1 · A1) ∘ (B2 · A2), entry by entry (LoHa)."""

    first: LowRank
    second: LowRank

    @property
    def shape(self) -> tuple[int, int]:
        return self.first.shape

    def delta(self) -> Tensor:
        return self.first.delta() * self.second.delta()

    def __call__(self, x_MI: Tensor) -> Tensor:
        return linear(x_MI, self.delta())

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        return *self.first.tensors, *self.second.tensors


@dataclass(frozen=True, slots=True, eq=False)
class Full:
    """ΔW itself."""

    weight_OI: Tensor

    @property
    def shape(self) -> tuple[int, int]:
        return self.weight_OI.shape[0], self.weight_OI.shape[1]

    def delta(self) -> Tensor:
        return self.weight_OI

    def __call__(self, x_MI: Tensor) -> Tensor:
        return linear(x_MI, self.weight_OI)

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        return (self.weight_OI,)


Change = LowRank | Kronecker | Hadamard | Full


def _matrix(factor: Tensor | LowRank) -> Tensor:
    return factor if isinstance(factor, Tensor) else factor.delta()


@dataclass(frozen=True, slots=True, eq=False)
class Entry:
    """One change of one module: W + strength · scale · ΔW in its output rows `rows` (start, stop), or in all of them.

    `scale` is what the file says (alpha / rank), the strength what a request asks for. `magnitude` (DoRA): the rows of
    the changed weight are then scaled to these norms, (O,), or its columns, (1, I).
    """

    module: str
    change: Change
    scale: float = 1.0
    rows: tuple[int, int] | None = None
    magnitude: Tensor | None = None

    def delta(self) -> Tensor:
        """scale · ΔW (O, I), without the magnitude."""
        return self.scale * self.change.delta()


@dataclass(frozen=True, slots=True, eq=False)
class Adapter:
    """All changes of one adapter."""

    entries: tuple[Entry, ...]

    @property
    def num_bytes(self) -> int:
        changes = sum(tensor.nbytes for entry in self.entries for tensor in entry.change.tensors)
        return changes + sum(entry.magnitude.nbytes for entry in self.entries if entry.magnitude is not None)
