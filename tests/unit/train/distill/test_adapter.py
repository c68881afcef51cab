"""A lightning adapter: what a base lacks to need four steps only, beside whatever adapters it has already."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from kleinbild.model.adapters.adapter import Adapter, Entry, Full, LowRank
from kleinbild.model.adapters.applied import Use, bind
from kleinbild.model.adapters.read import read_adapter
from kleinbild.model.adapters.write import write_adapter
from kleinbild.model.weights import Model
from kleinbild.train.distill.field import Field, Sample, noise
from kleinbild.train.distill.job import run_of
from kleinbild.train.distill.loop import train
from kleinbild.train.distill.student import frozen, whole
from tests.unit.train.distill.tiny import QUICK, TINY

LEARNS = replace(
    QUICK, product="adapter", num_updates=60, batch_size=6, num_substeps=4, num_rollouts=36, rate=2e-2, rank=16,
    ema_decay=0.9, validate_every=1000,
)  # fmt: skip


def custom(seed: int) -> Adapter:
    """An adapter that somebody trained: low rank, a whole difference, and one with a magnitude."""
    torch.manual_seed(seed)
    low = LowRank(0.3 * torch.randn(4, 32), 0.3 * torch.randn(32, 4))
    return Adapter(
        (
            Entry("double_blocks.0.img_attn.qkv", low, 0.5, rows=(32, 64)),
            Entry("single_blocks.0.linear2", Full(0.1 * torch.randn(32, 128))),
            Entry("double_blocks.0.txt_attn.proj", low, magnitude=1 + torch.rand(32)),
        )
    )


def test_the_base_with_it_is_nearer_to_its_own_pictures_in_four_steps(
    tiny: Model, samples: list[Sample], tmp_path: Path
) -> None:
    run = run_of(tiny, (), samples[:1], LEARNS)
    weights = {name: tensor.clone() for name, tensor in tiny.transformer.state_dict().items()}
    report = train(run, tmp_path, lambda _event: None)
    assert report is not None
    assert all(torch.equal(tensor, weights[name]) for name, tensor in tiny.transformer.state_dict().items())
    with run.student.averaged():
        assert run.student.adapter is not None
        write_adapter(tmp_path / "adapter.safetensors", frozen(run.student.adapter), TINY)
    loaded = read_adapter(tmp_path / "adapter.safetensors", TINY)
    assert loaded.coverage.complete
    served = Field(tiny.transformer, (Use(bind(loaded.adapter, tiny.transformer)),))
    with_it, alone = run.examination.measure(served), run.examination.measure(Field(tiny.transformer))
    # Not by half, as a whole student: here much of the way's curve is in the random last layer, which adapters leave alone.
    assert with_it.distance < 0.9 * alone.distance
    assert all(now < was for now, was in zip(with_it.by_window, alone.by_window, strict=True))
    assert with_it.distance == pytest.approx(report.after.distance, rel=1e-3)


def test_a_customised_base_teaches_with_its_adapters(tiny: Model, samples: list[Sample]) -> None:
    use = Use(bind(custom(0), tiny.transformer), 0.8)
    plain, customised = (
        run_of(tiny, (), samples, QUICK),
        run_of(tiny, (use,), samples, replace(QUICK, product="adapter")),
    )
    ways, others = plain.examination.ways, customised.examination.ways
    assert not torch.allclose(ways[0].states[-1], others[0].states[-1], atol=1e-2)
    latents = [noise(sample, 128, seed, torch.device("cpu")) for seed, sample in enumerate(samples)]
    times = [0.9] * len(samples)
    for student_NC, teacher_NC in zip(
        customised.student.field(samples, latents, times), customised.teacher(samples, latents, times), strict=True
    ):
        torch.testing.assert_close(student_NC, teacher_NC)


def test_adapters_are_folded_into_a_student_that_is_a_model(tiny: Model, samples: list[Sample]) -> None:
    teacher = Field(
        tiny.transformer, (Use(bind(custom(0), tiny.transformer), 0.8), Use(bind(custom(1), tiny.transformer)))
    )
    one = Field(tiny.transformer, (Use(bind(custom(2), tiny.transformer), 0.8),))
    latents = [noise(sample, 128, seed, torch.device("cpu")) for seed, sample in enumerate(samples)]
    for field in (one, Field(tiny.transformer, (Use(bind(without_magnitude(custom(0)), tiny.transformer)),) * 2)):
        folded = whole(field).field
        assert folded.uses == ()
        for a, b in zip(folded(samples, latents, [0.9] * 4), field(samples, latents, [0.9] * 4), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-3)
    assert whole(teacher).field.transformer is not tiny.transformer


def without_magnitude(adapter: Adapter) -> Adapter:
    return Adapter(tuple(replace(entry, magnitude=None) for entry in adapter.entries))
