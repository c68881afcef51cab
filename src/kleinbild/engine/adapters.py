"""The adapters of a model that is served: opened when they are asked for, kept in a budget of bytes, opened anew if changed.

A file is looked at before a request is taken (`facts`) and opened when it begins (`hold`); until `release` it stays. Of those
that nobody uses the one that was not used for longest goes first. Everything is kept by the file's SHA-256: a file
that has changed is another adapter, and pictures under way keep the one that they began with.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch

from kleinbild.core.errors import ModelError, WeightsError
from kleinbild.engine.caches import Counters
from kleinbild.engine.named import Named
from kleinbild.model.adapters.adapter import Adapter
from kleinbild.model.adapters.applied import Bound
from kleinbild.model.adapters.registry import digest
from kleinbild.model.adapters.served import serve, served_bytes, work_bytes
from kleinbild.model.spec import TransformerSpec
from kleinbild.model.weights import Model
from kleinbild.model.weights.shapes import transformer_shapes

ADAPTER_BYTES = 2 * 2**30  # 20 of rank 32 in all blocks of klein-4B, in bfloat16; thousands of nano's

Load = Callable[[Path, TransformerSpec], Adapter]
"""Reads an adapter's file for a model. Raises WeightsError."""


def load_file(path: Path, spec: TransformerSpec) -> Adapter:
    from kleinbild.model.adapters.read import read_adapter

    return read_adapter(path, spec).adapter


@dataclass(frozen=True, slots=True)
class Facts:
    """What is known of a file without keeping it: bytes as long as it is on the device, and for a moment in each layer."""

    sha256: str
    num_bytes: int
    work_bytes: int


@dataclass(slots=True, eq=False)
class Loaded:
    """An adapter on the device; `num_users` requests under way use it, `num_uses` have done so since it was opened."""

    facts: Facts
    bound: Bound
    num_users: int = 0
    num_uses: int = 0


@dataclass(slots=True)
class AdapterCache:
    """The adapters of one model: at most `limit_bytes` of them, in use or not. Not for several threads."""

    model: Model
    limit_bytes: int = ADAPTER_BYTES
    load: Load = load_file
    counters: Counters = field(default_factory=Counters)
    _loaded: OrderedDict[str, Loaded] = field(default_factory=OrderedDict)
    _seen: dict[Path, tuple[tuple[int, ...], Facts]] = field(default_factory=dict)

    def facts(self, named: Named, spare_bytes: float = math.inf) -> Facts:
        """Of the adapter's file as it is now; if it had to be opened for them it stays, where `spare_bytes` suffice.

        Raises WeightsError where it does not fit the model, ModelError if it is gone.
        """
        facts, adapter = self._look(named)
        spare_bytes = min(spare_bytes, self.limit_bytes - self.counters.num_bytes)
        if adapter is not None and facts.num_bytes <= spare_bytes and facts.sha256 not in self:
            self._keep(facts, adapter)
        return facts

    def hold(self, named: Named) -> Loaded:
        """The adapter, which stays until `release`. Whoever asks sees to it that there is room beside those in use."""
        facts, adapter = self._look(named)
        if facts.sha256 not in self:
            self._keep(facts, adapter or self._open(named))
        loaded = self._loaded[facts.sha256]
        self._loaded.move_to_end(facts.sha256)
        if loaded.num_uses:
            self.counters.num_hits += 1
        else:
            self.counters.num_misses += 1
        loaded.num_uses += 1
        loaded.num_users += 1
        return loaded

    def release(self, loaded: Loaded) -> None:
        loaded.num_users -= 1

    def shrink(self, limit_bytes: int) -> None:
        """Lets those go that nobody uses, the one that was not used for longest first, until no more than this is left."""
        for sha256, loaded in list(self._loaded.items()):
            if self.counters.num_bytes <= limit_bytes:
                return
            if not loaded.num_users:
                del self._loaded[sha256]
                self.counters.num_bytes -= loaded.facts.num_bytes
                self.counters.num_evicted += 1

    def __contains__(self, sha256: str) -> bool:
        return sha256 in self._loaded

    def _look(self, named: Named) -> tuple[Facts, Adapter | None]:
        """The facts, and the adapter if it had to be opened for them."""
        try:
            signature = _signature(named.path)
        except OSError as error:
            raise ModelError(
                f"the adapter {named.name!r} is gone: there is no {named.path}", "register it again"
            ) from error
        known = self._seen.get(named.path)
        if known is not None and known[0] == signature:
            _require(named, known[1].sha256)
            return known[1], None
        sha256 = digest(named.path)
        _require(named, sha256)
        adapter = self._open(named)
        facts = Facts(sha256, served_bytes(adapter, self.model.dtype), work_bytes(adapter, self.model.dtype))
        self._seen[named.path] = signature, facts
        return facts, adapter

    def _open(self, named: Named) -> Adapter:
        adapter = self.load(named.path, self.model.spec.transformer)
        require_fit(adapter, self.model, named.name)
        return adapter

    @torch.inference_mode(False)  # what is kept is of use in every mode
    @torch.no_grad()
    def _keep(self, facts: Facts, adapter: Adapter) -> None:
        self.shrink(self.limit_bytes - facts.num_bytes)
        model = self.model
        bound = serve(adapter, model.transformer, device=model.device, dtype=model.dtype, name=facts.sha256)
        self._loaded[facts.sha256] = Loaded(facts, bound)
        self.counters.num_bytes += facts.num_bytes


def require_fit(adapter: Adapter, model: Model, name: str) -> None:
    """Raises WeightsError where an entry is for another layer, or holds what is no number."""
    shapes = transformer_shapes(model.spec.transformer)
    hint = "use it with the model that it was trained for"
    for entry in adapter.entries:
        shape = shapes.get(f"{entry.module}.weight", ())
        if len(shape) != 2:
            raise WeightsError(f"the adapter {name!r} changes {entry.module}, which {model.name} does not have", hint)
        rows = (0, shape[0]) if entry.rows is None else entry.rows
        wanted = (rows[1] - rows[0], shape[1])
        if entry.change.shape != wanted or not 0 <= rows[0] < rows[1] <= shape[0]:
            raise WeightsError(
                f"the adapter {name!r} is for another model: it changes {_by(entry.change.shape)} of {entry.module}, "
                f"{model.name} has {_by(wanted)}",
                hint,
            )
        tensors = (*entry.change.tensors, *(() if entry.magnitude is None else (entry.magnitude,)))
        if not all(bool(torch.isfinite(tensor).all()) for tensor in tensors):
            raise WeightsError(
                f"the adapter {name!r} holds NaN or infinity for {entry.module}: it is damaged", "fetch it again"
            )


def _by(shape: tuple[int, int]) -> str:
    return f"{shape[0]}x{shape[1]}"


def _require(named: Named, sha256: str) -> None:
    if named.sha256 and sha256 != named.sha256:
        raise WeightsError(
            f"the file of the adapter {named.name!r} has changed (sha256 {named.sha256[:12]}… then, {sha256[:12]}… now)",
            "register it again, or put the file back",
        )


def _signature(path: Path) -> tuple[int, ...]:
    """What tells whether a file is still the one that was read."""
    stat = path.stat()
    return stat.st_mtime_ns, stat.st_size, stat.st_ino
