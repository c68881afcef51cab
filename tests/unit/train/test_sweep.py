"""The sweep of strengths, over pictures whose features are known."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from kleinbild.core.adapters import Kind
from kleinbild.model.adapters.adapter import Adapter, Entry, LowRank
from kleinbild.model.adapters.write import write_adapter
from kleinbild.model.transformer import Flux2Transformer
from kleinbild.model.weights import load_model
from kleinbild.train.finish import sweep_strengths
from kleinbild.train.likeness import Look
from kleinbild.train.studio import Ask, Studio, open_studio
from kleinbild.train.sweep import STRENGTHS, Taught, recommended, sweep


def flat(value: float) -> Look:
    return Look(torch.full((4,), float(value)), torch.full((2,), float(value)))


def made(best: dict[str, float], drift: float = 0.0):
    """Pictures that come to what was taught, 1, at the strength `best`; neutral ones move the faster the stronger."""

    def make(kind: Kind, strength: float) -> tuple[Sequence[Look], Sequence[Look]]:
        return [flat(strength / best[kind])] * 2, [flat(drift * strength**2), flat(5 + drift * strength**2)]

    return make


def test_each_model_gets_the_strength_that_is_best_on_it() -> None:
    trials = sweep(("base", "distilled"), [Taught(flat(1), exact=True)] * 2, made({"base": 0.8, "distilled": 1.4}))
    assert recommended(trials) == {"base": 0.8, "distilled": 1.4}
    assert [trial.strength for trial in trials if trial.kind == "base"] == [0.0, *STRENGTHS]
    assert trials[0].score == 0
    assert trials[0].distance == 1


def test_drift_makes_less_better() -> None:
    taught = [Taught(flat(1), exact=False)] * 2
    careful = recommended(sweep(["base"], taught, made({"base": 1.6}, drift=6.0)))["base"]
    assert 0.8 <= careful < recommended(sweep(["base"], taught, made({"base": 1.6})))["base"] == 1.6


def test_of_equals_the_nearest_to_one_is_taken() -> None:
    def make(kind: Kind, strength: float) -> tuple[Sequence[Look], Sequence[Look]]:
        return [flat(min(strength, 0.6))], [flat(0), flat(1)]

    assert recommended(sweep(["base"], [Taught(flat(1), exact=True)], make)) == {"base": 1.0}


def test_nothing_is_recommended_where_nothing_helps() -> None:
    assert recommended(sweep(["base"], [Taught(flat(-1), exact=True)] * 2, made({"base": 1.0}))) == {}
    assert recommended(()) == {}


def test_an_adapter_that_was_saved_too_weak_is_used_the_stronger(tmp_path: Path) -> None:
    """Its change is the right one divided by 1.4, so that 1.4 makes the pictures that are right, on both models."""
    torch.set_num_threads(1)
    studio = open_studio(load_model("nano-base"))
    right, weak = tmp_path / "right.safetensors", tmp_path / "weak.safetensors"
    transformer = studio.models["base"].transformer
    for path, size in ((right, 1.0), (weak, 1 / 1.4)):
        write_adapter(path, changed(transformer, size), transformer.spec)
    asks = [Ask("a fox on white", seed=0, most_steps=4), Ask("two cats on teal", seed=1, most_steps=4)]
    for kind in studio.kinds:
        taught = [Taught(look, exact=True) for look in studio.looks(kind, asks, right)]
        alone = Studio(studio.models[kind], None)
        trials = sweep_strengths(alone, weak, asks, taught, (), strengths=(0.6, 1.0, 1.2, 1.4, 1.6))
        assert recommended(trials) == {"base": 1.4}, kind
        distances = {trial.strength: trial.distance for trial in trials}
        assert distances[1.4] < 0.2 * distances[0.0]


def changed(transformer: Flux2Transformer, size: float) -> Adapter:
    """A change that shows: noise of rank 4 in the last layers of all single blocks."""
    generator = torch.Generator().manual_seed(0)
    entries = []
    for i, block in enumerate(transformer.single_blocks):
        num_out, num_in = block.linear2.weight.shape
        a, b = torch.randn(4, num_in, generator=generator), torch.randn(num_out, 4, generator=generator)
        entries.append(Entry(f"single_blocks.{i}.linear2", LowRank(a, 0.004 * size * b)))
    return Adapter(tuple(entries))
