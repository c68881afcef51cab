"""What is trained starts as nothing, is where the recipe says, and survives fewer bits, checkpointing and averages."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from kleinbild.core.errors import RequestError
from kleinbild.model.packing import Segment
from kleinbild.train.checkpointed import checkpoint_blocks
from kleinbild.train.frozen import LAYERS, quantize_base
from kleinbild.train.networks import Network, Trained, target_layers, trained_from
from kleinbild.train.objective import Sample, loss_of
from tests import tiny
from tests.parity.comparisons import random
from tests.parity.reference import assert_close
from tests.unit.train.made import recipe

CPU = torch.device("cpu")
SAMPLE = Sample(random(12, 128), random(12, 128, seed=1), (), random(5, 72, seed=2), Segment(5, (3, 4)), 0.6)


def fresh(**values: Any) -> Trained:
    return trained_from(tiny.transformer.__wrapped__(), recipe(rank=2, **values))


def loss(trained: Trained) -> Tensor:
    return loss_of(Network(trained), [SAMPLE], tiny.SPEC.transformer, CPU)


def shake(trained: Trained) -> None:
    with torch.no_grad():
        for name, parameter in trained.parameters.items():
            parameter.add_(0.05 * random(*parameter.shape, seed=len(name)))


@pytest.mark.parametrize("method", ["lora", "dora", "lokr"])
def test_an_adapter_changes_nothing_before_its_first_step(method: str) -> None:
    plain = loss(fresh(method="full"))
    assert_close(loss(fresh(method=method)).detach(), plain.detach(), 1e-6)


def test_presets_and_patterns_name_layers() -> None:
    network = tiny.transformer()
    assert len(target_layers(network, ["blocks"])) == 2 * 8 + 3 * 2
    assert len(target_layers(network, ["attention"])) == 2 * 4 + 3 * 2
    assert len(target_layers(network, ["all"])) == 2 * 8 + 3 * 2 + 3
    assert list(target_layers(network, ["double_blocks.1.*_mlp.0", "txt_in"])) == [
        "txt_in", "double_blocks.1.img_mlp.0", "double_blocks.1.txt_mlp.0"
    ]  # fmt: skip
    with pytest.raises(RequestError, match="'to_q' names no layer"):
        target_layers(network, ["to_q"])


@pytest.mark.parametrize(("precision", "limit"), [("int8", 0.03), ("nf4", 0.4)])
def test_a_base_of_few_bits_gives_nearly_the_same_gradients(precision: str, limit: float) -> None:
    """Weights in nf4 are 9 % off each, which adds up from layer to layer; what a layer does with them is exact (below)."""
    exact, rounded = fresh(), tiny.transformer.__wrapped__()
    quantize_base(rounded, precision)
    assert sum(isinstance(module, LAYERS[precision]) for module in rounded.modules()) == 2 * 8 + 3 * 2
    few = trained_from(rounded, recipe(rank=2, precision=precision))
    for trained in (exact, few):
        shake(trained)
        loss(trained).backward()
    gradients = [torch.cat([p.grad.flatten() for p in trained.parameters.values()]) for trained in (exact, few)]
    assert float((gradients[0] - gradients[1]).norm() / gradients[0].norm()) < limit


@pytest.mark.parametrize("precision", ["int8", "nf4"])
def test_the_gradient_through_a_frozen_layer_is_that_of_its_own_numbers(precision: str) -> None:
    layer = LAYERS[precision](random(64, 32))
    x = random(5, 32, seed=3).requires_grad_()
    layer(x).square().sum().backward()
    same = x.detach().clone().requires_grad_()
    (same @ layer.dequantized(torch.float32).t()).square().sum().backward()
    assert_close(x.grad, same.grad)


def test_checkpointing_changes_no_gradient() -> None:
    plain, checkpointed = fresh(), fresh()
    checkpoint_blocks(checkpointed.transformer)
    for trained in (plain, checkpointed):
        shake(trained)
        loss(trained).backward()
    for name, parameter in plain.parameters.items():
        assert torch.equal(parameter.grad, checkpointed.parameters[name].grad), name


@pytest.mark.parametrize("method", ["lora", "full"])
def test_what_is_served_is_the_average_and_training_goes_on_from_the_weights(method: str) -> None:
    trained = fresh(method=method, ema=0.9)
    before = {name: parameter.detach().clone() for name, parameter in trained.parameters.items()}
    at_first = loss(trained).detach()
    shake(trained)
    shaken = loss(trained).detach()
    assert not torch.allclose(at_first, shaken)
    with trained.served() as uses, torch.no_grad():
        packed = loss_of(
            lambda *rows: trained.transformer(*rows, adapters=[uses]), [SAMPLE], tiny.SPEC.transformer, CPU
        )
    assert_close(packed, at_first)
    assert torch.equal(loss(trained).detach(), shaken)
    assert all(torch.equal(trained.weights()[name], tensor) for name, tensor in before.items())
