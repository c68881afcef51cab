"""Attention within each request's own tokens, over packed rows.

Shape suffixes: N rows, H heads, d head dim; g requests of a run, L tokens of one request (text, image, references).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby

import torch
import torch.nn.functional as F
from torch import Tensor

from kleinbild.model.packing import Packing, Run


@dataclass(frozen=True, slots=True)
class KeyValue:
    """Keys (after RoPE) and values of one run's references in one block, each (g, references, H, d)."""

    key: Tensor
    value: Tensor


class ReferenceCache:
    """What mode "store" keeps and mode "stored" reads: keys and values of every block, run by run."""

    def __init__(self) -> None:
        self.blocks: dict[tuple[str, int], list[KeyValue]] = {}

    def select(self, packing: Packing, keep: Sequence[int]) -> ReferenceCache:
        """What requests number `keep` of `packing` stored, laid out for a packing of these requests alone."""
        places = [(r, i) for r, run in enumerate(packing.runs) for i in range(run.count)]
        shapes = [(s.num_text, s.num_image, s.num_references) for s in packing.segments]
        groups = [[places[request] for request in group] for _, group in groupby(keep, key=lambda i: shapes[i])]
        selected = ReferenceCache()
        for block, runs in self.blocks.items():
            selected.blocks[block] = [
                KeyValue(
                    torch.stack([runs[r].key[i] for r, i in group]), torch.stack([runs[r].value[i] for r, i in group])
                )
                for group in groups
            ]
        return selected


def attend_streams(
    text: tuple[Tensor, Tensor, Tensor],
    stream: tuple[Tensor, Tensor, Tensor],
    packing: Packing,
    cached: Sequence[KeyValue] | None,
) -> tuple[Tensor, Tensor, list[KeyValue]]:
    """Joint attention of the two streams' (q, k, v), each (rows, H, d); gives text rows, stream rows, kept K/V."""
    out_text, out_stream = [], []
    kept: list[KeyValue] = []
    text_at = stream_at = 0
    for i, run in enumerate(packing.runs):
        of_text = [_view(x, text_at, run.count, run.num_text) for x in text]
        of_stream = [_view(x, stream_at, run.count, run.num_stream) for x in stream]
        q, k, v = (torch.cat(pair, dim=1) for pair in zip(of_text, of_stream, strict=True))
        out = _attend_run(q, k, v, run, packing, cached[i] if cached else None, kept)
        out_text.append(out[:, : run.num_text].flatten(0, 1))
        out_stream.append(out[:, run.num_text :].flatten(0, 1))
        text_at += run.count * run.num_text
        stream_at += run.count * run.num_stream
    return _join(out_text), _join(out_stream), kept


def attend_joint(
    q_NHd: Tensor, k_NHd: Tensor, v_NHd: Tensor, packing: Packing, cached: Sequence[KeyValue] | None
) -> tuple[Tensor, list[KeyValue]]:
    """Attention over rows that already lie request by request (text, image, references); gives rows and kept K/V."""
    outs, at = [], 0
    kept: list[KeyValue] = []
    for i, run in enumerate(packing.runs):
        q, k, v = (_view(x, at, run.count, run.num_all) for x in (q_NHd, k_NHd, v_NHd))
        outs.append(_attend_run(q, k, v, run, packing, cached[i] if cached else None, kept).flatten(0, 1))
        at += run.count * run.num_all
    return _join(outs), kept


def _attend_run(
    q: Tensor, k: Tensor, v: Tensor, run: Run, packing: Packing, cached: KeyValue | None, kept: list[KeyValue]
) -> Tensor:
    if cached is not None:
        k, v = torch.cat((k, cached.key), dim=1), torch.cat((v, cached.value), dim=1)
        return _attention(q, k, v)
    if packing.mode == "store":
        own = run.num_text + run.num_image
        kept.append(KeyValue(k[:, own:], v[:, own:]))
        if run.num_references:  # references see only themselves, everything else sees all
            of_references = _attention(q[:, own:], k[:, own:], v[:, own:])
            return torch.cat((_attention(q[:, :own], k, v), of_references), dim=1)
    return _attention(q, k, v)


def _attention(q_gLHd: Tensor, k_gLHd: Tensor, v_gLHd: Tensor) -> Tensor:
    q, k, v = (x.transpose(1, 2) for x in (q_gLHd, k_gLHd, v_gLHd))
    if q.requires_grad and q.device.type == "cpu":  # backwards the fused kernel is three times slower there (training)
        weighted: Tensor = torch.softmax(q @ k.mT * q.shape[-1] ** -0.5, dim=-1) @ v
        return weighted.transpose(1, 2)
    out: Tensor = F.scaled_dot_product_attention(q, k, v)
    return out.transpose(1, 2)


def _view(x_NHd: Tensor, at: int, count: int, length: int) -> Tensor:
    rows: Tensor = x_NHd[at : at + count * length].unflatten(0, (count, length))
    return rows


def _join(parts: list[Tensor]) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(parts)
