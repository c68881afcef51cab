"""Changes cut and put together by rows: what makes split and fused spellings one thing. All exact, but for `compressed`.

Fused to split: A is everybody's, B is cut. Split to fused: A's are stacked, B's become the blocks of a block diagonal,
so the ranks add up; `unjoined` finds that pattern and undoes it.

Shape suffixes: as in `adapter`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import pairwise

import torch
from torch import Tensor

from kleinbild.core.errors import WeightsError
from kleinbild.model.adapters.adapter import Change, Entry, Full, Hadamard, Kronecker, LowRank
from kleinbild.model.adapters.names import Place, Rows


def sliced(change: Change, start: int, stop: int) -> Change:
    """Rows of a change. A Kronecker product cut across its blocks is a whole matrix."""
    if isinstance(change, Kronecker):
        height = change.w2.shape[0]
        if start % height or stop % height:
            return Full(change.delta()[start:stop])
        return replace(change, w1=_of_rows(change.w1, lambda rows: rows[start // height : stop // height]))
    return _by_rows(change, lambda rows: rows[start:stop])


def swapped(change: Change) -> Change:
    """The two halves of its rows change places."""
    if isinstance(change, Kronecker):
        if change.w1.shape[0] % 2:
            return Full(_swapped(change.delta()))
        return replace(change, w1=_of_rows(change.w1, _swapped))
    return _by_rows(change, _swapped)


def gathered(entries: Sequence[Entry], place: Place) -> Entry | None:
    """What `entries`, all of one layer, change in the rows of `place`, as one entry; None if nothing."""
    start, stop = place.rows
    touching = [entry for entry in entries if _rows(entry)[0] < stop and _rows(entry)[1] > start]
    if not touching:
        return None
    if len(touching) == 1 and _rows(touching[0])[0] <= start and _rows(touching[0])[1] >= stop:
        return _cut(touching[0], place)
    inside = [_cut(entry, place) for entry in sorted(touching, key=_rows)]  # q, k, v: as others look for the blocks
    return _joined(inside, place)


def unjoined(entry: Entry, parts: Sequence[Rows]) -> list[Entry]:
    """An entry that was made of several, as these: where no column of B is used by two of the rows' `parts`."""
    change, per_input = entry.change, entry.magnitude is not None and entry.magnitude.ndim == 2
    if not isinstance(change, LowRank) or entry.rows is not None or not parts or per_input:
        return [entry]
    used = [change.b_OR[start:stop].ne(0).any(dim=0) for start, stop in parts]
    count = torch.stack(used).sum(dim=0)
    if int(count.max()) != 1 or (entry.magnitude is not None and not all(bool(own.any()) for own in used)):
        return [entry]
    return [
        Entry(
            entry.module,
            LowRank(change.a_RI[own].contiguous(), change.b_OR[start:stop, own].contiguous()),
            entry.scale,
            (start, stop),
            None if entry.magnitude is None else entry.magnitude[start:stop],
        )
        for (start, stop), own in zip(parts, used, strict=True)
        if bool(own.any())
    ]


def folded(entry: Entry) -> Entry:
    """The same with scale 1."""
    if entry.scale == 1:
        return entry
    change, times = entry.change, entry.scale
    if isinstance(change, Kronecker):
        return replace(entry, change=replace(change, w1=_of_rows(change.w1, lambda rows: rows * times)), scale=1.0)
    if isinstance(change, Hadamard):
        first = replace(change.first, b_OR=change.first.b_OR * times)
        return replace(entry, change=replace(change, first=first), scale=1.0)
    return replace(entry, change=_by_rows(change, lambda rows: rows * times), scale=1.0)


def compressed(entry: Entry, rank: int) -> tuple[Entry, float]:
    """The nearest change of at most this rank, and the share of ‖ΔW‖² that is left."""
    change = entry.change
    if isinstance(change, LowRank) and change.rank <= rank:
        return entry, 1.0
    if isinstance(change, LowRank):
        (q_OR, r_RR), (p_IR, s_RR) = torch.linalg.qr(change.b_OR.double()), torch.linalg.qr(change.a_RI.mT.double())
        u_RR, sizes_R, v_RR = torch.linalg.svd(r_RR @ s_RR.mT)
        b_OR, a_RI = q_OR @ (u_RR * sizes_R), v_RR @ p_IR.mT
        kept = float(sizes_R[:rank].square().sum() / sizes_R.square().sum().clamp_min(1e-300))
        return replace(entry, change=LowRank(a_RI[:rank].float(), b_OR[:, :rank].float())), kept
    delta_OI = change.delta().double()
    squares, v_II = torch.linalg.eigh(delta_OI.mT @ delta_OI)  # of ΔWᵀΔW: a quarter of an SVD's time, rising order
    v_IR = v_II[:, -rank:].flip(1)
    kept = float(squares[-rank:].sum() / squares.sum().clamp_min(1e-300))
    return replace(entry, change=LowRank(v_IR.mT.float().contiguous(), (delta_OI @ v_IR).float())), kept


def _cut(entry: Entry, place: Place) -> Entry:
    """The part of an entry that lies in the rows of `place`; its rows stay counted from the layer's first."""
    (begin, end), (start, stop) = _rows(entry), place.rows
    if start <= begin and end <= stop:
        return replace(entry, rows=(begin, end))
    low, high = max(begin, start), min(end, stop)
    magnitude = entry.magnitude
    if magnitude is not None:
        if magnitude.ndim == 2:
            raise WeightsError(
                f"{entry.module} has a DoRA magnitude by columns, which belongs to all of its rows at once",
                "use a spelling that names layers as this file does",
            )
        magnitude = magnitude[low - begin : high - begin]
    return replace(entry, change=sliced(entry.change, low - begin, high - begin), rows=(low, high), magnitude=magnitude)


def _joined(entries: Sequence[Entry], place: Place) -> Entry:
    start, stop = place.rows
    if len({entry.scale for entry in entries}) > 1:
        entries = [folded(entry) for entry in entries]
    at = [_rows(entry)[0] - start for entry in entries]
    changes = [entry.change for entry in entries]
    num_rows = stop - start
    change: Change
    if all(isinstance(each, LowRank) for each in changes):
        change = _stacked([each for each in changes if isinstance(each, LowRank)], at, num_rows)
    elif all(isinstance(each, Hadamard) for each in changes) and not _overlap(entries):
        pairs = [each for each in changes if isinstance(each, Hadamard)]
        change = Hadamard(
            _stacked([each.first for each in pairs], at, num_rows),
            _stacked([each.second for each in pairs], at, num_rows),
        )
    else:
        weight_OI = torch.zeros(num_rows, place.num_in)
        for each, row in zip(changes, at, strict=True):
            weight_OI[row : row + each.shape[0]] += each.delta()
        change = Full(weight_OI)
    return Entry(entries[0].module, change, entries[0].scale, place.rows, _magnitude(entries, place))


def _stacked(products: Sequence[LowRank], at: Sequence[int], num_rows: int) -> LowRank:
    b_OR = torch.zeros(num_rows, sum(each.rank for each in products), dtype=products[0].b_OR.dtype)
    column = 0
    for each, row in zip(products, at, strict=True):
        b_OR[row : row + each.shape[0], column : column + each.rank] = each.b_OR
        column += each.rank
    return LowRank(torch.cat([each.a_RI for each in products]), b_OR)


def _magnitude(entries: Sequence[Entry], place: Place) -> Tensor | None:
    magnitudes = [entry.magnitude for entry in sorted(entries, key=_rows)]
    if all(each is None for each in magnitudes):
        return None
    by_row = [each for each in magnitudes if each is not None and each.ndim == 1]
    covered = sum(len(each) for each in by_row) == place.shape[0] and not _overlap(entries)
    if len(by_row) < len(magnitudes) or not covered:
        raise WeightsError(
            f"{place.module} has DoRA magnitudes in some of its rows only, or by columns; they cannot be joined",
            "use a spelling that names layers as this file does",
        )
    return torch.cat(by_row)


def _overlap(entries: Sequence[Entry]) -> bool:
    spans = sorted(_rows(entry) for entry in entries)
    return any(first[1] > second[0] for first, second in pairwise(spans))


def _rows(entry: Entry) -> Rows:
    return entry.rows or (0, entry.change.shape[0])


def _by_rows(change: LowRank | Hadamard | Full, of: Callable[[Tensor], Tensor]) -> Change:
    if isinstance(change, LowRank):
        return replace(change, b_OR=of(change.b_OR).contiguous())
    if isinstance(change, Hadamard):
        first, second = (replace(each, b_OR=of(each.b_OR).contiguous()) for each in (change.first, change.second))
        return Hadamard(first, second)
    return Full(of(change.weight_OI).contiguous())


def _of_rows(factor: Tensor | LowRank, of: Callable[[Tensor], Tensor]) -> Tensor | LowRank:
    if isinstance(factor, LowRank):
        return replace(factor, b_OR=of(factor.b_OR).contiguous())
    return of(factor).contiguous()


def _swapped(rows: Tensor) -> Tensor:
    return torch.cat(rows.chunk(2)[::-1])
