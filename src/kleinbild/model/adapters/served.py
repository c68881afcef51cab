"""An adapter tied to a model for serving: on its device, in its type, with everything computed that does not change.

The low-rank entries of a layer share one product with its input. What a magnitude (DoRA) comes to depends on the model's
weights and the adapter, not on a request, so that it is computed here, once.

Shape suffixes: M rows of a stream, I input features, O output features (of the rows that are changed), R ranks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from kleinbild.model.adapters.adapter import Adapter, Change, Entry, Full, Hadamard, Kronecker, LowRank
from kleinbild.model.adapters.applied import Bound, Live, Rows, accumulate, entries_by_layer, of
from kleinbild.model.adapters.magnitude import column_factor, row_factor
from kleinbild.model.linear import add_linear_, linear


def serve(
    adapter: Adapter, transformer: nn.Module, *, device: torch.device, dtype: torch.dtype, name: str = ""
) -> Bound:
    """Ties `adapter` to `transformer`. Raises WeightsError for a layer that is not there."""
    by_layer: dict[nn.Module, tuple[Stack | Live, ...]] = {}
    for layer, entries in entries_by_layer(adapter, transformer).items():
        own = [_placed(entry, device, dtype) for entry in entries]
        low_rank = [entry for entry in own if _stacks(entry)]
        stack = [_stack(layer, low_rank)] if low_rank else []
        by_layer[layer] = (*stack, *(_alone(layer, entry) for entry in own if not _stacks(entry)))
    return Bound(by_layer, name)


def served_bytes(adapter: Adapter, dtype: torch.dtype) -> int:
    """What `serve` makes of it takes as long as it is there."""
    numbers = sum(tensor.numel() for entry in adapter.entries for tensor in entry.change.tensors)
    magnitudes = [
        (1 if _stacks(entry) else 2) * entry.magnitude.numel()
        for entry in adapter.entries
        if entry.magnitude is not None
    ]
    return numbers * dtype.itemsize + sum(magnitudes) * torch.float32.itemsize


def work_bytes(adapter: Adapter, dtype: torch.dtype) -> int:
    """What it takes for a moment, at most: products entry by entry (LoHa) are written out, with both of their factors."""
    written = [entry.change.shape for entry in adapter.entries if isinstance(entry.change, Hadamard)]
    return 3 * dtype.itemsize * max((num_out * num_in for num_out, num_in in written), default=0)


@dataclass(frozen=True, slots=True, eq=False)
class Up:
    """One entry's share of a stack: its ranks, the output rows that it changes, its B with all factors but the scale."""

    ranks: slice
    rows: Rows
    b_OR: Tensor
    scale: float
    gain_O: Tensor | None  # by how much more than once the layer's own product is in there


@dataclass(frozen=True, slots=True, eq=False)
class Stack:
    """The low-rank entries of a layer, their A's under each other."""

    a_RI: Tensor
    ups: tuple[Up, ...]

    @property
    def scales(self) -> bool:
        return any(up.gain_O is not None for up in self.ups)

    def add(self, layer: nn.Module, x_MI: Tensor, base_MO: Tensor, out_MO: Tensor, strength: float) -> Tensor:  # noqa: ARG002
        down_MR = linear(x_MI, self.a_RI)
        for up in self.ups:
            if up.gain_O is not None:
                out_MO = accumulate(out_MO, up.rows, up.gain_O * of(base_MO, up.rows), strength)
            own_MR = down_MR[:, up.ranks] if len(self.ups) > 1 else down_MR
            if torch.is_grad_enabled():
                out_MO = accumulate(out_MO, up.rows, linear(own_MR, up.b_OR), strength * up.scale)
            else:
                add_linear_(of(out_MO, up.rows), own_MR, up.b_OR, strength * up.scale)
        return out_MO


def _stacks(entry: Entry) -> bool:
    return isinstance(entry.change, LowRank) and (entry.magnitude is None or entry.magnitude.ndim == 1)


def _stack(layer: nn.Module, entries: Sequence[Entry]) -> Stack:
    ups: list[Up] = []
    downs: list[Tensor] = []
    at = 0
    for entry in entries:
        assert isinstance(entry.change, LowRank)
        b_OR, gain_O = entry.change.b_OR, None
        if entry.magnitude is not None:
            factor_O = row_factor(layer, entry)
            b_OR, gain_O = (factor_O[:, None] * b_OR).to(b_OR.dtype), factor_O - 1
        ups.append(Up(slice(at, at + entry.change.rank), entry.rows, b_OR, entry.scale, gain_O))
        downs.append(entry.change.a_RI)
        at += entry.change.rank
    return Stack(downs[0] if len(downs) == 1 else torch.cat(downs), tuple(ups))


def _alone(layer: nn.Module, entry: Entry) -> Live:
    if entry.magnitude is None:
        return Live(entry)
    return Live(entry, row_factor(layer, entry) if entry.magnitude.ndim == 1 else column_factor(layer, entry))


def _placed(entry: Entry, device: torch.device, dtype: torch.dtype) -> Entry:
    """Magnitudes stay float32: what they come to is near 1."""

    def put(tensor: Tensor) -> Tensor:
        return tensor.detach().to(device, dtype).contiguous()

    def low_rank(change: LowRank) -> LowRank:
        return LowRank(put(change.a_RI), put(change.b_OR))

    def factor(one: Tensor | LowRank) -> Tensor | LowRank:
        return low_rank(one) if isinstance(one, LowRank) else put(one)

    def placed(change: Change) -> Change:
        match change:
            case LowRank():
                return low_rank(change)
            case Kronecker():
                return Kronecker(factor(change.w1), factor(change.w2))
            case Hadamard():
                return Hadamard(low_rank(change.first), low_rank(change.second))
            case Full():
                return Full(put(change.weight_OI))

    magnitude = None if entry.magnitude is None else entry.magnitude.detach().to(device, torch.float32)
    return replace(entry, change=placed(entry.change), magnitude=magnitude)
