"""What an adapter file is, and what other programs make of it: a diagnosis for people (the command) and for programs.

The strengths of changes are norms, ‖ΔW‖ by layer and block, beside ‖W‖ where the model's weights are at hand.
What other programs read was found out with diffusers 0.42 and in ComfyUI's source.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from math import sqrt
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from kleinbild.model.adapters.adapter import Adapter, Change, Entry, Kronecker, LowRank
from kleinbild.model.adapters.convert import require_family
from kleinbild.model.adapters.families import read_adapter_header, shapes_of, specs
from kleinbild.model.adapters.plan import plan
from kleinbild.model.adapters.read import Coverage, Loaded, read_adapter
from kleinbild.model.adapters.traps import Trap, traps
from kleinbild.model.adapters.write import kind_of
from kleinbild.model.weights.convert import to_ours
from kleinbild.model.weights.fit import sources_of
from kleinbild.model.weights.load import tensor_reader
from kleinbild.model.weights.sources import find_parts, resolve
from kleinbild.model.weights.specs import Family, transformer_spec

# ‖ΔW‖ / ‖W‖ of the changed layers below and above which strength 1 is unlikely to be right: a rule of thumb.
FAINT, STRONG = 0.002, 0.2


@dataclass(frozen=True, slots=True)
class Block:
    """A block, or all layers beside the blocks ("edges"): how much is changed, and beside what."""

    name: str
    num_layers: int
    norm: float
    relative: float | None


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """`kinds`, `ranks` and `scales` count changes; `dead` are the layers that a change of nothing stands for."""

    path: str
    family: Family
    origin: str
    size_bytes: int
    kinds: Mapping[str, int]
    ranks: Mapping[int, int]
    scales: Mapping[float, int]
    magnitudes: int
    coverage: Coverage
    reasons: Mapping[str, str]
    dead: tuple[str, ...]
    blocks: tuple[Block, ...]
    norm: float
    relative: float | None
    traps: tuple[Trap, ...]
    advice: tuple[str, ...]
    metadata: Mapping[str, str]

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "ranks": {str(k): n for k, n in self.ranks.items()}, "scales": _named(self.scales)}


def diagnose(path: Path, *, norms: Mapping[str, float] | None = None) -> Diagnosis:
    """What the file is. `norms`: ‖W‖ of each layer of a model of its family (`weight_norms`).

    Keys that do not match are told, not an error. Raises WeightsError for a file that is damaged or no adapter of a known
    family.
    """
    family = require_family(path)
    spec = specs()[family]
    planned = plan(shapes_of(read_adapter_header(path)), spec)
    loaded = read_adapter(path, spec, lenient=True)
    blocks = _blocks(loaded.adapter, norms)
    whole = _block("all", loaded.adapter.entries, norms)
    dead = tuple(sorted(entry.module for entry in loaded.adapter.entries if _norm(entry) == 0))
    found = traps(planned.groups, loaded.metadata, path)
    return Diagnosis(
        path=str(path),
        family=family,
        origin=loaded.origin,
        size_bytes=path.stat().st_size,
        kinds=dict(Counter(kind_of(entry.change) for entry in loaded.adapter.entries)),
        ranks=dict(Counter(rank for entry in loaded.adapter.entries if (rank := _rank(entry.change)) is not None)),
        scales=dict(Counter(entry.scale for entry in loaded.adapter.entries)),
        magnitudes=sum(entry.magnitude is not None for entry in loaded.adapter.entries),
        coverage=loaded.coverage,
        reasons=planned.unmatched,
        dead=dead,
        blocks=blocks,
        norm=whole.norm,
        relative=whole.relative,
        traps=found,
        advice=tuple(_advice(loaded, whole, dead, found)),
        metadata=loaded.metadata,
    )


def weight_norms(model: str) -> dict[str, float]:
    """‖W‖ of each linear layer of a model's transformer, read one tensor at a time. Raises ModelError."""
    entry, path = resolve(model)
    component = find_parts(path, entry.variant if entry else None).components["transformer"]
    sources, read = sources_of(component, transformer_spec(component)), tensor_reader(component)
    return {
        name.removesuffix(".weight"): float(to_ours(source, read).float().norm())
        for name, source in sources.items()
        if name.endswith(".weight")
    }


def _advice(loaded: Loaded, whole: Block, dead: tuple[str, ...], found: tuple[Trap, ...]) -> Iterable[str]:
    num_layers = len(loaded.coverage.matched)
    if len(dead) == len(loaded.adapter.entries):
        yield "nothing is changed: the adapter was never trained, or half of it was lost"
    elif dead:
        yield f"{len(dead)} of {num_layers} layers are not changed: they were never trained, or half of them was lost"
    if loaded.coverage.unmatched:
        yield "some of its keys match nothing: what they say is lost"
    if any(trap.factor not in (None, 1.0) for trap in found):
        yield "`kleinbild adapters convert FILE --to diffusers -o OUT` writes it so that all read the same"
    if whole.relative is None or whole.relative == 0:
        return
    if whole.relative < FAINT:
        yield f"faint (‖ΔW‖/‖W‖ {whole.relative:.2%}): try strengths from 1 to 2"
    elif whole.relative > STRONG:
        yield f"strong (‖ΔW‖/‖W‖ {whole.relative:.0%}): try strengths from 0.4 to 1"
    else:
        yield "of ordinary strength: begin with 1"


def _blocks(adapter: Adapter, norms: Mapping[str, float] | None) -> tuple[Block, ...]:
    by_block: dict[str, list[Entry]] = defaultdict(list)
    for entry in adapter.entries:
        first, number, *_ = entry.module.split(".")
        by_block[f"{first}.{number}" if first.endswith("_blocks") else "edges"].append(entry)
    order = sorted(by_block, key=lambda name: (name.split(".")[0], int(name.rpartition(".")[2]) if "." in name else 0))
    return tuple(_block(name, by_block[name], norms) for name in order)


def _block(name: str, entries: Iterable[Entry], norms: Mapping[str, float] | None) -> Block:
    entries = list(entries)
    changed = sqrt(sum(_norm(entry) ** 2 for entry in entries))
    modules = {entry.module for entry in entries}
    weight = sqrt(sum(norms.get(module, 0.0) ** 2 for module in modules)) if norms else 0.0
    return Block(name, len(modules), changed, changed / weight if weight else None)


def _norm(entry: Entry) -> float:
    """‖scale · ΔW‖, without ΔW where it is a product."""
    return abs(entry.scale) * _size(entry.change)


def _size(change: Change) -> float:
    if isinstance(change, LowRank):  # ‖BA‖² = tr(BᵀB · AAᵀ)
        a_RI, b_OR = change.a_RI.double(), change.b_OR.double()
        return sqrt(max(0.0, float(((b_OR.mT @ b_OR) * (a_RI @ a_RI.mT)).sum())))
    if isinstance(change, Kronecker):
        return _factor_size(change.w1) * _factor_size(change.w2)
    return float(change.delta().norm())


def _factor_size(factor: Tensor | LowRank) -> float:
    return _size(factor) if isinstance(factor, LowRank) else float(torch.linalg.matrix_norm(factor))


def _rank(change: Change) -> int | None:
    if isinstance(change, LowRank):
        return change.rank
    if isinstance(change, Kronecker):
        return next((factor.rank for factor in (change.w2, change.w1) if isinstance(factor, LowRank)), None)
    return getattr(getattr(change, "first", None), "rank", None)


def _named(scales: Mapping[float, int]) -> dict[str, int]:
    return {f"{scale:.6g}": number for scale, number in scales.items()}
