"""Which adapters change which rows of a pass, and how: the one place where serving and training meet an adapter.

`bind` ties an adapter to a transformer's layers; the transformer asks `project` instead of its layers, which adds to each
request's rows what its own adapters say. Requests with different adapters, or none, share a pass.

Shape suffixes: M rows of a stream, I input features, O output features.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from kleinbild.core.errors import WeightsError
from kleinbild.model.adapters.adapter import Adapter, Entry

if TYPE_CHECKING:
    from kleinbild.model.packing import Packing


@dataclass(frozen=True, slots=True, eq=False)
class Bound:
    """An adapter tied to the layers of one transformer."""

    by_layer: Mapping[nn.Module, tuple[Entry, ...]]


@dataclass(frozen=True, slots=True, eq=False)
class Use:
    """A bound adapter and how strongly it is applied; 1 is as it was trained."""

    bound: Bound
    strength: float = 1.0


def bind(adapter: Adapter, transformer: nn.Module) -> Bound:
    """Ties `adapter` to `transformer`. Raises WeightsError for a layer that is not there."""
    layers = dict(transformer.named_modules())
    by_layer: dict[nn.Module, tuple[Entry, ...]] = {}
    for entry in adapter.entries:
        layer = layers.get(entry.module)
        if layer is None:
            raise WeightsError(f"the adapter changes {entry.module}, which this model does not have")
        by_layer[layer] = (*by_layer.get(layer, ()), entry)
    return Bound(by_layer)


@dataclass(frozen=True, slots=True, eq=False)
class Changes:
    """What happens to the rows of one stream: spans (start, stop) of rows, each with its adapters."""

    spans: tuple[tuple[int, int, tuple[Use, ...]], ...]

    def add(self, layer: nn.Module, x_MI: Tensor, out_MO: Tensor) -> Tensor:
        """`out_MO`, the layer's own product, with everything that adapters change in it."""
        parts: list[Tensor] = []
        for start, stop, uses in self.spans:
            x, base = x_MI[start:stop], out_MO[start:stop]
            out = base
            for use in uses:
                for entry in use.bound.by_layer.get(layer, ()):
                    out = _changed(layer, entry, use.strength, x, base, out)
            parts.append(out)
        return parts[0] if len(parts) == 1 else torch.cat(parts)


def _changed(layer: nn.Module, entry: Entry, strength: float, x_MI: Tensor, base_MO: Tensor, out_MO: Tensor) -> Tensor:
    rows = slice(*(entry.rows or (0, out_MO.shape[-1])))
    change = strength * entry.scale * entry.change(x_MI)
    if entry.magnitude is not None:
        factor_O = _factor(layer, entry, strength, rows)
        change = factor_O * change + (factor_O - 1) * base_MO[:, rows]
    if entry.rows is None:
        return out_MO + change
    return torch.cat((out_MO[:, : rows.start], out_MO[:, rows] + change, out_MO[:, rows.stop :]), dim=-1)


def _factor(layer: nn.Module, entry: Entry, strength: float, rows: slice) -> Tensor:
    """DoRA: what the changed weight's rows have to be multiplied with to have the norms that were learned."""
    assert entry.magnitude is not None
    weight_OI = layer.get_parameter("weight").detach()[rows].float()
    changed_OI = weight_OI + strength * entry.delta().detach().float()
    norms_O: Tensor = changed_OI.norm(dim=1)
    return entry.magnitude / norms_O


def project(layer: nn.Module, x_MI: Tensor, changes: Changes | None) -> Tensor:
    """The layer's product for rows of a stream, with what adapters change in it."""
    out: Tensor = layer(x_MI)
    return out if changes is None else changes.add(layer, x_MI, out)


@dataclass(frozen=True, slots=True, eq=False)
class Adapted:
    """The changes of a pass, for each stream; all None without adapters."""

    text: Changes | None = None
    stream: Changes | None = None
    joint: Changes | None = None

    @classmethod
    def of(cls, packing: Packing, adapters: Sequence[tuple[Use, ...]]) -> Adapted:
        """`adapters`: those of each of the packing's segments in turn; an empty sequence is none at all."""
        if not any(adapters):
            return cls()
        segments = packing.segments
        return cls(
            text=_changes(adapters, [segment.num_text for segment in segments]),
            stream=_changes(adapters, [segment.num_stream for segment in segments]),
            joint=_changes(adapters, [segment.num_rows for segment in segments]),
        )


def _changes(adapters: Sequence[tuple[Use, ...]], lengths: Iterable[int]) -> Changes:
    """Neighbours with the same adapters are one span."""
    spans: list[tuple[int, int, tuple[Use, ...]]] = []
    at = 0
    for uses, length in zip(adapters, lengths, strict=True):
        if spans and spans[-1][2] == uses:
            spans[-1] = (spans[-1][0], at + length, uses)
        else:
            spans.append((at, at + length, uses))
        at += length
    return Changes(tuple(spans))
