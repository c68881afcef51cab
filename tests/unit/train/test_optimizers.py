"""Every optimizer learns, with every method; moments, schedules and averages are what they are called."""

from __future__ import annotations

import builtins
import io
from typing import Any

import pytest
import torch
from torch import nn

from kleinbild.core.errors import ModelError
from kleinbild.model.packing import Segment
from kleinbild.train.networks import Network, trained_from
from kleinbild.train.objective import Sample, loss_of
from kleinbild.train.optimizers import average, optimizers_of, rate_factor
from tests import tiny
from tests.parity.comparisons import random
from tests.unit.train.made import recipe

CPU = torch.device("cpu")
SEGMENT = Segment(5, (3, 4))
SAMPLE = Sample(random(12, 128), random(12, 128, seed=1), (), random(5, 72, seed=2), SEGMENT, 0.6)


@pytest.mark.parametrize("method", ["lora", "dora", "lokr", "full"])
@pytest.mark.parametrize("optimizer", ["adamw", "adamw8bit", "prodigy", "muon"])
def test_every_optimizer_reduces_the_loss_and_resumes(optimizer: str, method: str) -> None:
    wanted = recipe(optimizer=optimizer, method=method, rank=4, learning_rate=1.0 if optimizer == "prodigy" else 0.01)
    trained = trained_from(tiny.transformer.__wrapped__(), wanted)
    network, optimizers = Network(trained), optimizers_of(trained.parameters, wanted)

    def step() -> float:
        loss = loss_of(network, [SAMPLE], tiny.SPEC.transformer, CPU)
        loss.backward()
        optimizers.step(1.0)
        optimizers.clear()
        return float(loss.detach())

    losses = [step() for _ in range(80 if optimizer == "prodigy" else 8)]  # which finds its rate on the way
    assert losses[-1] < (1 - 1e-3) * losses[0]
    stream = io.BytesIO()
    torch.save([{n: p.detach() for n, p in trained.parameters.items()}, optimizers.state()], stream)
    next_loss = [step(), step()]
    weights, moments = torch.load(io.BytesIO(stream.getvalue()), weights_only=True)
    with torch.no_grad():
        for name, parameter in trained.parameters.items():
            parameter.copy_(weights[name])
    optimizers = optimizers_of(trained.parameters, wanted)
    optimizers.restore(moments)
    assert [step(), step()] == next_loss


def test_muon_takes_matrices_and_adamw_the_rest() -> None:
    trained = trained_from(tiny.transformer(), recipe(method="dora", optimizer="muon", rank=2))
    muon, adamw = optimizers_of(trained.parameters, recipe(optimizer="muon")).members
    assert {p.ndim for group in muon.param_groups for p in group["params"]} == {2}
    assert {p.ndim for group in adamw.param_groups for p in group["params"]} == {1}


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [("constant", [1 / 3, 2 / 3, 1, 1]), ("linear", [1 / 3, 2 / 3, 1, 0.125]), ("cosine", [1 / 3, 2 / 3, 1, 0.038])],
)
def test_schedules(schedule: str, expected: list[float]) -> None:
    wanted = recipe(schedule=schedule, steps=10, warmup_steps=2)
    assert [rate_factor(wanted, step) for step in (0, 1, 2, 9)] == pytest.approx(expected, abs=1e-3)


def test_the_average_forgets_its_start_quickly_and_then_follows_slowly() -> None:
    parameters, averages = [nn.Parameter(torch.ones(3))], [torch.zeros(3)]
    average(averages, parameters, 0.9, step=1)
    assert averages[0].tolist() == pytest.approx([10 / 11] * 3)
    averages[0].zero_()
    average(averages, parameters, 0.9, step=1000)
    assert averages[0].tolist() == pytest.approx([0.1] * 3)


def test_an_optimizer_that_is_not_installed_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def refuse(name: str, *args: Any, **kwargs: Any) -> Any:
        if name.split(".", maxsplit=1)[0] in ("bitsandbytes", "prodigyopt"):
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", refuse)
    for optimizer in ("adamw8bit", "prodigy"):
        with pytest.raises(ModelError, match="not installed") as raised:
            optimizers_of({"a": nn.Parameter(torch.zeros(2, 2))}, recipe(optimizer=optimizer))
        assert "pip install" in raised.value.hint
