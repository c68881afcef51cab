"""The parity tests would notice: each fact of the architecture is changed in turn, and a comparison must fail.

If one of these fails, a comparison has become blind to the thing named in its id (weights too small, a size too even).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from kleinbild.model import attention, packing, rope, schedule, transformer
from kleinbild.model.attention import BlockCaches
from kleinbild.model.autoencoder import Autoencoder
from kleinbild.model.packing import Run
from kleinbild.model.text_encoder import TextEncoder
from kleinbild.model.transformer import FinalLayer, Modulated, Modulation
from tests.parity import comparisons

Mutate = Callable[[pytest.MonkeyPatch], None]


def axis_order(*order: int) -> Mutate:
    original = packing.rotations
    return lambda patch: patch.setattr(packing, "rotations", lambda ids, *rest: original(ids[:, list(order)], *rest))


def modulation(order: Callable[[list[Modulated]], list[Modulated]]) -> Mutate:
    original = Modulation.forward
    return lambda patch: patch.setattr(
        Modulation, "forward", lambda self, vec, *rest: order(original(self, vec, *rest))
    )


def swap_final_halves(patch: pytest.MonkeyPatch) -> None:
    original = FinalLayer.modulation
    patch.setattr(FinalLayer, "modulation", lambda self, vec, *rest: original(self, vec, *rest)[::-1])


def normalisation(name: str, changed: Callable[[Autoencoder], Tensor]) -> Mutate:
    return lambda patch: patch.setattr(Autoencoder, name, changed)


def patch_order(patch: pytest.MonkeyPatch) -> None:
    def columns_first(x: Tensor, factor: int) -> Tensor:
        return F.pixel_unshuffle(x.transpose(-1, -2), factor).transpose(-1, -2)

    patch.setattr("kleinbild.model.autoencoder.F", Shadow(F, pixel_unshuffle=columns_first))


class Shadow:
    """A module with some of its functions replaced."""

    def __init__(self, module: object, **replaced: object) -> None:
        self._module, self._replaced = module, replaced

    def __getattr__(self, name: str) -> object:
        return self._replaced.get(name) or getattr(self._module, name)


def text_layers(*layers: int) -> Mutate:
    original = TextEncoder.forward

    def forward(self: TextEncoder, ids_BL: Tensor, mask_BL: Tensor) -> Tensor:
        whole, self.spec = self.spec, dataclasses.replace(self.spec, layers=layers)
        try:
            return original(self, ids_BL, mask_BL)
        finally:
            self.spec = whole

    return lambda patch: patch.setattr(TextEncoder, "forward", forward)


def ignore_mask(patch: pytest.MonkeyPatch) -> None:
    original = TextEncoder.forward
    patch.setattr(TextEncoder, "forward", lambda self, ids, mask: original(self, ids, torch.ones_like(mask)))


def shifted(change: Callable[[int, int], float]) -> Mutate:
    return lambda patch: patch.setattr(schedule, "shift", change)


def references_see_all(patch: pytest.MonkeyPatch) -> None:
    original = attention._attend_run

    def attend(q: Tensor, k: Tensor, v: Tensor, run: Run, caches: BlockCaches) -> Tensor:
        out = original(q, k, v, run, caches)
        return attention._attention(q, k, v) if run.mode == "store" else out

    patch.setattr(attention, "_attend_run", attend)


def setting(owner: object, name: str, value: object) -> Mutate:
    return lambda patch: patch.setattr(owner, name, value)


original_shift = schedule.shift

VELOCITY = {
    "RoPE axes: h and w swapped": axis_order(0, 2, 1, 3),
    "RoPE axes: t and l swapped": axis_order(3, 1, 2, 0),
    "RoPE axes: t last": axis_order(1, 2, 3, 0),
    "modulation: scale before shift": modulation(lambda sets: [Modulated(m.scale, m.shift, m.gate) for m in sets]),
    "modulation: gate first": modulation(lambda sets: [Modulated(m.scale, m.gate, m.shift) for m in sets]),
    "modulation: MLP before attention": modulation(lambda sets: sets[::-1]),
    "final layer: scale before shift": swap_final_halves,
    "references: 20 apart": setting(rope, "REFERENCE_TIME_OFFSET", 20),
    "references: at the image's time": setting(rope, "REFERENCE_TIME_OFFSET", 0),
    "time: not in thousandths": setting(transformer, "TIME_FACTOR", 1.0),
}
ENCODING = {
    "latents: mean left in": normalisation("_mean", lambda self: torch.zeros(1)),
    "latents: not scaled": normalisation("_std", lambda self: torch.ones(1)),
    "latents: eps of 1e-5": normalisation("_std", lambda self: torch.sqrt(self._buffer("running_var") + 1e-5)),
    "latents: variance for deviation": normalisation("_std", lambda self: self._buffer("running_var")),
    "patches: columns before rows": patch_order,
}
TEXT = {
    "text layers: one earlier": text_layers(1, 2, 3),
    "text layers: another first": text_layers(3, 2, 4),
    "text layers: other order": text_layers(2, 1, 4),
    "text: padding attended to": ignore_mask,
}
SCHEDULE = {
    "shift: without steps": shifted(lambda tokens, steps: original_shift(tokens, 10)),
    "shift: of half the tokens": shifted(lambda tokens, steps: original_shift(tokens // 2, steps)),
    "shift: limit ignored": setting(schedule, "HIGH_RESOLUTION_TOKENS", 10**9),
    "shift: none": shifted(lambda tokens, steps: 0.0),
}
CACHING = {
    "caching: references see all": references_see_all,
    "caching: 20 apart": setting(rope, "REFERENCE_TIME_OFFSET", 20),
}


def cases(table: dict[str, Mutate]) -> list[pytest.ParameterSet]:
    return [pytest.param(mutate, id=name) for name, mutate in table.items()]


@pytest.mark.parametrize("mutate", cases(VELOCITY))
def test_velocity_notices(mutate: Mutate, monkeypatch: pytest.MonkeyPatch) -> None:
    mutate(monkeypatch)
    with pytest.raises(AssertionError, match="error"):
        comparisons.compare_velocity()


@pytest.mark.parametrize("mutate", cases(ENCODING))
def test_encoding_notices(mutate: Mutate, monkeypatch: pytest.MonkeyPatch) -> None:
    mutate(monkeypatch)
    with pytest.raises(AssertionError, match="error"):
        comparisons.compare_encoding()


@pytest.mark.parametrize("mutate", cases(ENCODING)[:-1])
def test_decoding_notices(mutate: Mutate, monkeypatch: pytest.MonkeyPatch) -> None:
    mutate(monkeypatch)
    with pytest.raises(AssertionError, match="error"):
        comparisons.compare_decoding()


@pytest.mark.parametrize("mutate", cases(TEXT))
def test_text_context_notices(mutate: Mutate, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    mutate(monkeypatch)
    with pytest.raises(AssertionError, match="error"):
        comparisons.compare_text_context(tmp_path)


@pytest.mark.parametrize("mutate", cases(SCHEDULE))
def test_schedule_notices(mutate: Mutate, monkeypatch: pytest.MonkeyPatch) -> None:
    mutate(monkeypatch)
    with pytest.raises(AssertionError, match="error"):
        comparisons.compare_schedule()


@pytest.mark.parametrize("mutate", cases(CACHING))
def test_reference_caching_notices(mutate: Mutate, monkeypatch: pytest.MonkeyPatch) -> None:
    mutate(monkeypatch)
    with pytest.raises(AssertionError, match="error"):
        comparisons.compare_reference_caching()
