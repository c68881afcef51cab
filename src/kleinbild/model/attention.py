"""Attention within each request's own tokens, over packed rows.

Shape suffixes: N rows, H heads, d head dim; g requests of a run, L tokens of one request (text, image, references).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from kleinbild.model.blockwise import attend
from kleinbild.model.packing import Packing, Run


@dataclass(frozen=True, slots=True)
class KeyValue:
    """Keys (after RoPE) and values of one request's references in one block, each (references, H, d)."""

    key: Tensor
    value: Tensor


class ReferenceCache:
    """What one request stores in its first pass and reads in later ones: keys and values of every block."""

    def __init__(self) -> None:
        self.blocks: dict[str, KeyValue] = {}


@dataclass(frozen=True, slots=True)
class BlockCaches:
    """One block's share of the requests' caches; requests that cache nothing have None."""

    block: str
    caches: Sequence[ReferenceCache | None]

    def keep(self, run: Run, key_gLHd: Tensor, value_gLHd: Tensor) -> None:
        for cache, key, value in zip(self._of(run), key_gLHd, value_gLHd, strict=True):
            cache.blocks[self.block] = KeyValue(key.clone(), value.clone())  # not views that keep all rows alive

    def read(self, run: Run) -> tuple[Tensor, Tensor]:
        """Keys and values of a run, each (g, references, H, d)."""
        stored = [cache.blocks[self.block] for cache in self._of(run)]
        if len(stored) == 1:
            return stored[0].key.unsqueeze(0), stored[0].value.unsqueeze(0)
        return torch.stack([each.key for each in stored]), torch.stack([each.value for each in stored])

    def _of(self, run: Run) -> list[ReferenceCache]:
        own = [cache for cache in self.caches[run.first : run.first + run.count] if cache is not None]
        if len(own) != run.count:
            raise ValueError(f"requests of mode {run.mode!r} need a ReferenceCache each")
        return own


def attend_streams(
    text: tuple[Tensor, Tensor, Tensor],
    stream: tuple[Tensor, Tensor, Tensor],
    packing: Packing,
    caches: BlockCaches,
) -> tuple[Tensor, Tensor]:
    """Joint attention of the two streams' (q, k, v), each (rows, H, d); gives text rows and stream rows."""
    out_text, out_stream = [], []
    text_at = stream_at = 0
    for run in packing.runs:
        of_text = [_view(x, text_at, run.count, run.num_text) for x in text]
        of_stream = [_view(x, stream_at, run.count, run.num_stream) for x in stream]
        q, k, v = (torch.cat(pair, dim=1) for pair in zip(of_text, of_stream, strict=True))
        out = _attend_run(q, k, v, run, caches)
        out_text.append(out[:, : run.num_text].flatten(0, 1))
        out_stream.append(out[:, run.num_text :].flatten(0, 1))
        text_at += run.count * run.num_text
        stream_at += run.count * run.num_stream
    return _join(out_text), _join(out_stream)


def attend_joint(q_NHd: Tensor, k_NHd: Tensor, v_NHd: Tensor, packing: Packing, caches: BlockCaches) -> Tensor:
    """Attention over rows that already lie request by request (text, image, references)."""
    outs, at = [], 0
    for run in packing.runs:
        q, k, v = (_view(x, at, run.count, run.num_all) for x in (q_NHd, k_NHd, v_NHd))
        outs.append(_attend_run(q, k, v, run, caches).flatten(0, 1))
        at += run.count * run.num_all
    return _join(outs)


def _attend_run(q: Tensor, k: Tensor, v: Tensor, run: Run, caches: BlockCaches) -> Tensor:
    if run.mode == "stored":
        key, value = caches.read(run)
        return _attention(q, torch.cat((k, key), dim=1), torch.cat((v, value), dim=1))
    own = run.num_text + run.num_image
    if run.mode in ("store", "keep"):
        caches.keep(run, k[:, own:], v[:, own:])
    if run.mode == "store":  # references see only themselves, everything else sees all
        of_references = _attention(q[:, own:], k[:, own:], v[:, own:])
        return torch.cat((_attention(q[:, :own], k, v), of_references), dim=1)
    return _attention(q, k, v)


def _attention(q_gLHd: Tensor, k_gLHd: Tensor, v_gLHd: Tensor) -> Tensor:
    q, k, v = (x.transpose(1, 2) for x in (q_gLHd, k_gLHd, v_gLHd))
    if q.requires_grad and q.device.type == "cpu":  # backwards the fused kernel is three times slower there (training)
        weighted: Tensor = torch.softmax(q @ k.mT * q.shape[-1] ** -0.5, dim=-1) @ v
        return weighted.transpose(1, 2)
    return attend(q, k, v).transpose(1, 2)


def _view(x_NHd: Tensor, at: int, count: int, length: int) -> Tensor:
    rows: Tensor = x_NHd[at : at + count * length].unflatten(0, (count, length))
    return rows


def _join(parts: list[Tensor]) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(parts)
