"""DoRA: an adapter that also says how long the rows, or the columns, of a changed weight shall be.

W' = (W + ΔW) · m / ‖W + ΔW‖, row by row with m (O,), column by column with m (1, I). What is asked for with a strength is
that share of the way from W to W', so that none is W itself; the norms are then those at full strength. They count as
constants in training, as in the paper (arXiv 2402.09353, section 4.3).

Shape suffixes: I input features, O output features (of the rows that an entry changes).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from kleinbild.model.adapters.adapter import Entry
from kleinbild.model.precision import plain_weight

SMALLEST_NORM = 1e-12  # of rows of zeros


def row_factor(layer: nn.Module, entry: Entry) -> Tensor:
    """What each row of the changed weight has to be multiplied with: (O,) in the magnitude's type."""
    assert entry.magnitude is not None
    return entry.magnitude / _norms(layer, entry, dim=1).to(entry.magnitude)


def column_factor(layer: nn.Module, entry: Entry) -> Tensor:
    """The same for columns: (1, I)."""
    assert entry.magnitude is not None
    return entry.magnitude / _norms(layer, entry, dim=0).to(entry.magnitude)


def merged(weight_OI: Tensor, entry: Entry, strength: float = 1.0) -> Tensor:
    """A layer's whole weight with the change in it, in float32."""
    merged_OI = weight_OI.float().clone()
    rows = slice(*entry.rows) if entry.rows else slice(None)
    own_OI = merged_OI[rows]
    changed_OI = own_OI + entry.delta().float()
    if entry.magnitude is not None:
        along = 1 if entry.magnitude.ndim == 1 else 0
        factors = entry.magnitude.float() / changed_OI.norm(dim=along).clamp_min(SMALLEST_NORM)
        changed_OI = changed_OI * (factors[:, None] if along else factors)
    merged_OI[rows] = torch.lerp(own_OI, changed_OI, strength)
    return merged_OI


@torch.no_grad()
def _norms(layer: nn.Module, entry: Entry, dim: int) -> Tensor:
    """Where the layer's weight is, which may be another device than the adapter's."""
    weight_OI = plain_weight(layer)
    own_OI = weight_OI[entry.rows[0] : entry.rows[1]] if entry.rows else weight_OI
    changed_OI = own_OI + entry.delta().float().to(own_OI.device)
    norms: Tensor = changed_OI.norm(dim=dim).clamp_min(SMALLEST_NORM)
    return norms
