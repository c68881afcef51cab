"""Adapters with random numbers, of every kind and in files, for tests that need no trained ones."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from kleinbild.model.adapters.adapter import Adapter, Change, Entry, Full, Hadamard, Kronecker, LowRank
from kleinbild.model.spec import TransformerSpec
from kleinbild.model.weights.shapes import transformer_shapes
from tests import tiny

Kind = Literal["lora", "lokr", "lokr products", "loha", "full", "dora", "dora of columns", "dora of lokr"]
KINDS: tuple[Kind, ...] = ("lora", "lokr", "lokr products", "loha", "full", "dora", "dora of columns", "dora of lokr")


def shapes(spec: TransformerSpec = tiny.SPEC.transformer) -> dict[str, tuple[int, int]]:
    """Every linear layer with its (output, input) features."""
    weights = {name.removesuffix(".weight"): shape for name, shape in transformer_shapes(spec).items()}
    return {name: (shape[0], shape[1]) for name, shape in weights.items() if len(shape) == 2}


def in_blocks(spec: TransformerSpec = tiny.SPEC.transformer) -> tuple[str, ...]:
    return tuple(name for name in shapes(spec) if "_blocks." in name)


class Maker:
    """Draws adapters. `size` is about how large a change is beside the weights of `tests.tiny`."""

    def __init__(self, seed: int = 0, size: float = 0.3, rank: int = 3) -> None:
        self._generator = torch.Generator().manual_seed(seed)
        self.size, self.rank = size, rank

    def adapter(
        self,
        kind: Kind = "lora",
        modules: Iterable[str] | None = None,
        *,
        sliced: bool = False,
        spec: TransformerSpec = tiny.SPEC.transformer,
    ) -> Adapter:
        """One entry a module; `sliced`: three, of thirds of its output rows."""
        known, entries = shapes(spec), []
        for module in in_blocks(spec) if modules is None else modules:
            num_out, num_in = known[module]
            third = num_out // 6 * 2  # even, for Kronecker products; some rows may be left over
            slices = [(i * third, (i + 1) * third) for i in range(3)] if sliced else [None]
            entries += [self.entry(kind, module, (num_out, num_in), rows) for rows in slices]
        return Adapter(tuple(entries))

    def entry(self, kind: Kind, module: str, shape: tuple[int, int], rows: tuple[int, int] | None = None) -> Entry:
        num_out, num_in = (shape[0] if rows is None else rows[1] - rows[0]), shape[1]
        change = self.change(kind, num_out, num_in)
        scale = self.size * num_in**-0.5 / float(change.delta().std())
        magnitude = None
        if kind.startswith("dora"):
            magnitude = 1 + 0.3 * self._normal(*((1, num_in) if kind == "dora of columns" else (num_out,)))
        return Entry(module, change, scale, rows, magnitude)

    def change(self, kind: Kind, num_out: int, num_in: int) -> Change:
        if kind == "full":
            return Full(self._normal(num_out, num_in))
        if kind in ("lokr", "dora of lokr"):
            return Kronecker(self._normal(2, 4), self._normal(num_out // 2, num_in // 4))
        if kind == "lokr products":
            return Kronecker(self._low_rank(2, 4, 1), self._low_rank(num_out // 2, num_in // 4))
        if kind == "loha":
            return Hadamard(self._low_rank(num_out, num_in), self._low_rank(num_out, num_in))
        return self._low_rank(num_out, num_in)

    def _low_rank(self, num_out: int, num_in: int, rank: int | None = None) -> LowRank:
        rank = rank or self.rank
        return LowRank(self._normal(rank, num_in), self._normal(num_out, rank))

    def _normal(self, *shape: int) -> Tensor:
        return torch.randn(shape, generator=self._generator)


def write(path: Path, adapter: Adapter) -> Path:
    """A file that `read` reads: no spelling that anybody else knows."""
    tensors: dict[str, Tensor] = {}
    entries: list[dict[str, Any]] = []
    for number, entry in enumerate(adapter.entries):
        kind = type(entry.change).__name__
        nested = [isinstance(getattr(entry.change, name), LowRank) for name in ("w1", "w2") if kind == "Kronecker"]
        entries.append(
            {"module": entry.module, "scale": entry.scale, "rows": entry.rows, "kind": kind, "nested": nested}
        )
        tensors |= {f"{number}.{i}": tensor.contiguous() for i, tensor in enumerate(entry.change.tensors)}
        if entry.magnitude is not None:
            tensors[f"{number}.magnitude"] = entry.magnitude
    save_file(tensors, path, {"entries": json.dumps(entries)})
    return path


def read(path: Path, spec: TransformerSpec) -> Adapter:
    with safe_open(path, framework="pt") as file:
        described = json.loads(file.metadata()["entries"])
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - it is no dict
    entries = []
    for number, one in enumerate(described):
        own = [tensors[f"{number}.{i}"] for i in range(4) if f"{number}.{i}" in tensors]
        rows = None if one["rows"] is None else (one["rows"][0], one["rows"][1])
        change = _change(one["kind"], own, one["nested"])
        entries.append(Entry(one["module"], change, one["scale"], rows, tensors.get(f"{number}.magnitude")))
    return Adapter(tuple(entries))


def _change(kind: str, own: list[Tensor], nested: list[bool]) -> Change:
    if kind == "LowRank":
        return LowRank(own[0], own[1])
    if kind == "Full":
        return Full(own[0])
    if kind == "Hadamard":
        return Hadamard(LowRank(own[0], own[1]), LowRank(own[2], own[3]))
    factors = iter(own)
    w1, w2 = (LowRank(next(factors), next(factors)) if pair else next(factors) for pair in nested)
    return Kronecker(w1, w2)
