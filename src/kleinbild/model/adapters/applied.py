"""Which adapters change which rows of a pass, and how: the one place where serving and training meet an adapter.

`bind` ties an adapter to a transformer's layers; the transformer asks `project` instead of its layers, which adds to each
request's rows what its own adapters say. Requests with different adapters, or none, share a pass. Several adapters of a
request add up: each changes the model's own weights, not what another one made of them.

Without gradients everything is added in place; with gradients nothing is, so that adapters can be trained here.
`model.adapters.served` ties one in a way that is faster, and cannot be trained.

Shape suffixes: M rows of a stream, I input features, O output features (of the rows that an entry changes).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor, nn

from kleinbild.core.errors import WeightsError
from kleinbild.model.adapters.adapter import Adapter, Entry
from kleinbild.model.adapters.magnitude import column_factor, row_factor

if TYPE_CHECKING:
    from kleinbild.model.packing import Packing

Rows = tuple[int, int] | None
"""Output rows of a layer that are changed, (start, stop); None is all of them."""


class Change(Protocol):
    """What an adapter does in one layer, or a part of it. `scales`: it needs the layer's own product once more."""

    @property
    def scales(self) -> bool: ...

    def add(self, layer: nn.Module, x_MI: Tensor, base_MO: Tensor, out_MO: Tensor, strength: float) -> Tensor:
        """`out_MO` with the change in it, in place or not; `base_MO` is the layer's own product of `x_MI`."""


@dataclass(frozen=True, slots=True, eq=False)
class Bound:
    """An adapter tied to the layers of one transformer. `name`: equal ones are equal adapters; "" is like no other."""

    by_layer: Mapping[nn.Module, tuple[Change, ...]]
    name: str = ""


@dataclass(frozen=True, slots=True)
class Use:
    """A bound adapter and how strongly it is applied; 1 is as it was trained."""

    bound: Bound
    strength: float = 1.0


def bind(adapter: Adapter, transformer: nn.Module) -> Bound:
    """Ties `adapter` to `transformer`. Raises WeightsError for a layer that is not there."""
    return Bound(
        {layer: tuple(map(Live, entries)) for layer, entries in entries_by_layer(adapter, transformer).items()}
    )


def entries_by_layer(adapter: Adapter, transformer: nn.Module) -> dict[nn.Module, tuple[Entry, ...]]:
    """Raises WeightsError for a layer that is not there."""
    layers = dict(transformer.named_modules())
    by_layer: dict[nn.Module, tuple[Entry, ...]] = {}
    for entry in adapter.entries:
        layer = layers.get(entry.module)
        if layer is None:
            raise WeightsError(f"the adapter changes {entry.module}, which this model does not have")
        by_layer[layer] = (*by_layer.get(layer, ()), entry)
    return by_layer


@dataclass(frozen=True, slots=True, eq=False)
class Live:
    """An entry as it is now: its tensors may be parameters that change from step to step.

    `factor` is what its magnitude comes to, where that was computed once and for all.
    """

    entry: Entry
    factor: Tensor | None = None

    @property
    def scales(self) -> bool:
        return self.entry.magnitude is not None

    def add(self, layer: nn.Module, x_MI: Tensor, base_MO: Tensor, out_MO: Tensor, strength: float) -> Tensor:
        entry, rows = self.entry, self.entry.rows
        if entry.magnitude is None:
            return accumulate(out_MO, rows, product(entry, x_MI), strength * entry.scale)
        if entry.magnitude.ndim == 1:
            factor_O = row_factor(layer, entry) if self.factor is None else self.factor
            change = factor_O * entry.scale * product(entry, x_MI) + (factor_O - 1) * of(base_MO, rows)
            return accumulate(out_MO, rows, change, strength)
        factor_1I = column_factor(layer, entry) if self.factor is None else self.factor
        own = of(layer(x_MI * (factor_1I - 1).to(x_MI.dtype)), rows)
        return accumulate(out_MO, rows, own + entry.scale * product(entry, factor_1I * x_MI), strength)


def product(entry: Entry, x_MI: Tensor) -> Tensor:
    """x · ΔWᵀ in the adapter's own type, which may be wider than the model's."""
    return entry.change(x_MI.to(entry.change.tensors[0].dtype))


def of(x_MO: Tensor, rows: Rows) -> Tensor:
    """The columns of a product that belong to these output rows."""
    return x_MO if rows is None else x_MO[:, rows[0] : rows[1]]


def accumulate(out_MO: Tensor, rows: Rows, change_MO: Tensor, factor: float) -> Tensor:
    """`out_MO` with `factor` times the change in its rows."""
    if not torch.is_grad_enabled():
        of(out_MO, rows).add_(change_MO, alpha=factor)
        return out_MO
    if factor != 1:
        change_MO = factor * change_MO
    changed = of(out_MO, rows) + change_MO.to(out_MO.dtype)
    return changed if rows is None else torch.cat((out_MO[:, : rows[0]], changed, out_MO[:, rows[1] :]), dim=-1)


@dataclass(frozen=True, slots=True, eq=False)
class Changes:
    """What happens to the rows of one stream: spans (start, stop) of rows, each with its adapters."""

    spans: tuple[tuple[int, int, tuple[Use, ...]], ...]

    def add(self, layer: nn.Module, x_MI: Tensor, out_MO: Tensor) -> Tensor:
        """`out_MO`, the layer's own product, with everything that adapters change in it; in place without gradients."""
        if len(self.spans) == 1:
            return _changed(layer, self.spans[0][2], x_MI, out_MO)
        parts = [_changed(layer, uses, x_MI[a:b], out_MO[a:b]) for a, b, uses in self.spans]
        return torch.cat(parts) if torch.is_grad_enabled() else out_MO


def _changed(layer: nn.Module, uses: Iterable[Use], x_MI: Tensor, out_MO: Tensor) -> Tensor:
    changes = [(change, use.strength) for use in uses for change in use.bound.by_layer.get(layer, ())]
    if not changes:
        return out_MO
    in_place = not torch.is_grad_enabled()
    base_MO = out_MO.clone() if in_place and any(change.scales for change, _ in changes) else out_MO
    for change, strength in changes:
        out_MO = change.add(layer, x_MI, base_MO, out_MO, strength)
    return out_MO


def project(layer: nn.Module, x_MI: Tensor, changes: Changes | None) -> Tensor:
    """The layer's product for rows of a stream, with what adapters change in it."""
    out: Tensor = layer(x_MI)
    return out if changes is None else changes.add(layer, x_MI, out)


@dataclass(frozen=True, slots=True, eq=False)
class Adapted:
    """The changes of a pass, for each stream; all None without adapters.

    `times` are those of the requests' time vectors, a row each, and `stored` those of the vectors at t = 0 that stored
    references are modulated by, a row for each request that stores.
    """

    text: Changes | None = None
    stream: Changes | None = None
    joint: Changes | None = None
    times: Changes | None = None
    stored: Changes | None = None

    @classmethod
    def of(cls, packing: Packing, adapters: Sequence[tuple[Use, ...]]) -> Adapted:
        """`adapters`: those of each of the packing's segments in turn; an empty sequence is none at all."""
        if not any(adapters):
            return cls()
        segments = packing.segments
        storing = [uses for uses, segment in zip(adapters, segments, strict=True) if segment.stores]
        return cls(
            text=_changes(adapters, [segment.num_text for segment in segments]),
            stream=_changes(adapters, [segment.num_stream for segment in segments]),
            joint=_changes(adapters, [segment.num_rows for segment in segments]),
            times=_changes(adapters, [1] * len(segments)),
            stored=_changes(storing, [1] * len(storing)),
        )


def changes_of(uses: tuple[Use, ...]) -> Changes:
    """The same for all rows of one."""
    return Changes(((0, 1, uses),))


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
