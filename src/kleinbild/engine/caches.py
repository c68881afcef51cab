"""What need not be computed twice: contexts of prompts, latents of references, modulations of times, layouts of passes.

Everything is kept by its content, so that a hit is what would have been computed. Sizes are bounded; what was not used
for longest goes first.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from kleinbild.model.adapters.applied import Use, changes_of
from kleinbild.model.packing import Packing, Segment, pack
from kleinbild.model.spec import TransformerSpec
from kleinbild.model.transformer import Flux2Transformer, Modulations
from kleinbild.model.weights import Model

PROMPT_BYTES = 256 * 2**20  # 32 prompts of klein-4B, thousands of nano's
REFERENCE_BYTES = 128 * 2**20  # 128 references of a megapixel
LAYOUTS_KEPT = 16  # mixes of shapes; of 4 megapixels each has 25 MB of rotations
MODULATIONS_KEPT = 512  # times; a few numbers of steps and sizes have some dozens


@dataclass(slots=True)
class Counters:
    """How a cache did: `num_bytes` is what it holds now."""

    num_hits: int = 0
    num_misses: int = 0
    num_evicted: int = 0
    num_bytes: int = 0


class TensorCache:
    """Tensors by key, at most `limit_bytes` of them; what was not used for longest goes. Not for several threads."""

    def __init__(self, limit_bytes: int) -> None:
        self.limit_bytes = limit_bytes
        self.counters = Counters()
        self._tensors: OrderedDict[Hashable, Tensor] = OrderedDict()

    def __contains__(self, key: Hashable) -> bool:
        return key in self._tensors

    def get(self, key: Hashable, compute: Callable[[], Tensor]) -> Tensor:
        """The tensor of `key`, computed if it is not here. One that is larger than the limit is not kept."""
        if key in self._tensors:
            self.counters.num_hits += 1
            self._tensors.move_to_end(key)
            return self._tensors[key]
        self.counters.num_misses += 1
        tensor = compute()
        if tensor.nbytes <= self.limit_bytes:
            self._tensors[key] = tensor
            self.counters.num_bytes += tensor.nbytes
            while self.counters.num_bytes > self.limit_bytes:
                _, oldest = self._tensors.popitem(last=False)
                self.counters.num_bytes -= oldest.nbytes
                self.counters.num_evicted += 1
        return tensor


class Modulator:
    """Modulations of times, each computed once for the model and for the adapters that change its layers of time."""

    def __init__(self, transformer: Flux2Transformer, device: torch.device) -> None:
        self._transformer, self._device = transformer, device
        self._layers = transformer.time_layers
        # By the adapters' names: they themselves must not be kept from leaving the device.
        self._kept: OrderedDict[tuple[float, tuple[tuple[str, float], ...]], Modulations] = OrderedDict()

    def __call__(self, times: Sequence[float], adapters: Sequence[tuple[Use, ...]] = ()) -> Modulations:
        """One row for each of `times` under its adapters, computed alone: it does not depend on the others."""
        uses = adapters or [()] * len(times)
        first, *others = (self._of(time, self._changing(own)) for time, own in zip(times, uses, strict=True))
        return first.join(*others) if others else first

    def _changing(self, uses: tuple[Use, ...]) -> tuple[Use, ...]:
        return tuple(use for use in uses if not self._layers.isdisjoint(use.bound.by_layer))

    def _of(self, time: float, uses: tuple[Use, ...]) -> Modulations:
        key = time, tuple((use.bound.name, use.strength) for use in uses)
        if key in self._kept:
            self._kept.move_to_end(key)
            return self._kept[key]
        changes = changes_of(uses) if uses else None
        made = self._transformer.modulations(torch.tensor([time], device=self._device), changes)
        if all(use.bound.name for use in uses):
            self._kept[key] = made
            if len(self._kept) > MODULATIONS_KEPT:
                self._kept.popitem(last=False)
        return made


class Layouts:
    """Layouts of passes, each mix of shapes laid out once."""

    def __init__(self, spec: TransformerSpec, device: torch.device) -> None:
        @lru_cache(maxsize=LAYOUTS_KEPT)
        def of(segments: tuple[Segment, ...]) -> Packing:
            return pack(segments, spec, device=device)

        self._of = of

    def __call__(self, segments: tuple[Segment, ...]) -> Packing:
        return self._of(segments)


@dataclass(frozen=True, slots=True)
class Caches:
    """All that a loaded model keeps from request to request."""

    prompts: TensorCache
    references: TensorCache
    modulator: Modulator
    layouts: Layouts

    @classmethod
    def of(cls, model: Model, prompt_bytes: int = PROMPT_BYTES, reference_bytes: int = REFERENCE_BYTES) -> Caches:
        return cls(
            TensorCache(prompt_bytes),
            TensorCache(reference_bytes),
            Modulator(model.transformer, model.device),
            Layouts(model.transformer.spec, model.device),
        )
