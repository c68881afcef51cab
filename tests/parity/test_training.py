"""One step of training equals one written with diffusers' transformer and PEFT's layers: loss and every gradient.

The reference makes one picture at a time, with diffusers' ids, PEFT's split q, k and v, and plain sums. Ours makes all in
one packed pass.
"""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from diffusers import Flux2Transformer2DModel
from peft import LoKrConfig, LoraConfig, get_peft_model
from torch import Tensor

from kleinbild.model.packing import Segment
from kleinbild.model.weights.layouts import DOUBLE_BLOCK, SINGLE_BLOCK
from kleinbild.train.networks import Network, Trained, trained_from
from kleinbild.train.objective import Sample, loss_of
from tests import tiny
from tests.parity import comparisons, reference
from tests.parity.reference import assert_close
from tests.unit.train.made import recipe

TARGETS = (
    r"transformer_blocks\.\d+\.(attn\.(to_q|to_k|to_v|add_q_proj|add_k_proj|add_v_proj|to_out\.0|to_add_out)"
    r"|ff\.linear_(in|out)|ff_context\.linear_(in|out))|single_transformer_blocks\.\d+\.attn\.(to_qkv_mlp_proj|to_out)"
)
RANK, ALPHA = (
    2,
    3.0,
)  # so small that LoKr's large factors are products, too: PEFT scales whole ones as well, nobody else
GRIDS = {
    "no reference": [Segment(7, (3, 5))],
    "one": [Segment(7, (4, 6), ((5, 2),))],
    "two": [Segment(9, (2, 7), ((3, 4), (6, 1)))],
    "mixed": [
        Segment(9, (2, 7), ((3, 4), (6, 1))),
        Segment(7, (3, 5)),
        Segment(7, (4, 6), ((5, 2),)),
        Segment(7, (3, 5)),
    ],
}
NAMES = {"a": "lora_A", "b": "lora_B", "w1": "lokr_w1", "w2": "lokr_w2", "w2_a": "lokr_w2_a", "w2_b": "lokr_w2_b"}


@pytest.mark.parametrize("segments", GRIDS.values(), ids=GRIDS)
@pytest.mark.parametrize("method", ["lora", "dora", "lokr"])
def test_loss_and_gradients_are_those_of_diffusers_and_peft(method: str, segments: list[Segment]) -> None:
    trained = shaken(method)
    samples = [made(segment, seed) for seed, segment in enumerate(segments)]
    loss = loss_of(Network(trained), samples, tiny.SPEC.transformer, torch.device("cpu"))
    loss.backward()
    theirs = peft_of(method, trained)
    expected = torch.stack([reference_loss(theirs, sample) for sample in samples]).mean()
    expected.backward()
    assert_close(loss.detach(), expected.detach())
    gradients = their_parameters(theirs, trained)
    assert set(gradients) == set(trained.parameters)
    for name, parameter in trained.parameters.items():
        assert parameter.grad is not None, name
        assert gradients[name].grad is not None, name
        assert_close(parameter.grad, gradients[name].grad)


@pytest.mark.parametrize("segments", [GRIDS["mixed"]], ids=["mixed"])
def test_full_fine_tuning_has_the_gradients_of_diffusers(segments: list[Segment]) -> None:
    ours = tiny.transformer.__wrapped__()  # its weights get gradients: not the shared one
    trained = trained_from(ours, recipe(method="full"))
    samples = [made(segment, seed) for seed, segment in enumerate(segments)]
    loss_of(Network(trained), samples, ours.spec, torch.device("cpu")).backward()
    theirs = reference.transformer(ours).requires_grad_()
    torch.stack([reference_loss(theirs, sample) for sample in samples]).mean().backward()
    for stem, name in (
        ("double_blocks.1.img_mlp.2", "transformer_blocks.1.ff.linear_out"),
        ("single_blocks.2.linear1", "single_transformer_blocks.2.attn.to_qkv_mlp_proj"),
        ("txt_in", "context_embedder"),
        ("single_stream_modulation.lin", "single_stream_modulation.linear"),
    ):
        assert_close(ours.get_submodule(stem).weight.grad, theirs.get_submodule(name).weight.grad)


def shaken(method: str) -> Trained:
    """An adapter away from its start, where half of all gradients are nothing."""
    trained = trained_from(tiny.transformer(), recipe(method=method, rank=RANK, alpha=ALPHA))
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in trained.parameters.values():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return trained


def made(segment: Segment, seed: int) -> Sample:
    stream, text = comparisons.inputs(segment, seed)
    target, *references = stream.split([segment.num_image, *(rows * columns for rows, columns in segment.references)])
    noise = comparisons.random(*target.shape, seed=seed + 500)
    return Sample(target, noise, tuple(references), text, segment, time=(0.9, 0.6, 0.3, 0.037)[seed % 4])


def reference_loss(theirs: Any, sample: Sample) -> Tensor:
    text_ids, image_ids, reference_ids = comparisons.ids(sample.segment)
    noisy = (1 - sample.time) * sample.target_NC + sample.time * sample.noise_NC
    velocity = theirs(
        hidden_states=torch.cat([noisy, *sample.references])[None],
        encoder_hidden_states=sample.context_LX[None],
        timestep=torch.tensor([sample.time]),
        img_ids=torch.cat([image_ids, reference_ids]),
        txt_ids=text_ids,
    ).sample[0, : len(noisy)]
    return (velocity - (sample.noise_NC - sample.target_NC)).square().mean()


def peft_of(method: str, trained: Trained) -> Any:
    """diffusers' transformer with PEFT's layers that hold the numbers of ours."""
    base: Flux2Transformer2DModel = reference.transformer(trained.transformer).requires_grad_(False)
    if method == "lokr":
        config: Any = LoKrConfig(r=RANK, alpha=ALPHA, target_modules=TARGETS)
    else:
        config = LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules=TARGETS, use_dora=method == "dora")
    theirs = get_peft_model(base, config)
    with torch.no_grad():
        for name, parameter in their_parameters(theirs, trained).items():
            parameter.copy_(trained.parameters[name])
    return theirs


def their_parameters(theirs: Any, trained: Trained) -> dict[str, torch.nn.Parameter]:
    """PEFT's parameters by the names of ours; all of them."""
    by_name = dict(theirs.named_parameters())
    found = {}
    for name in trained.parameters:
        stem, _, kind = name.rpartition(".")
        place = f"base_model.model.{their_name(stem)}"
        if kind == "magnitude":
            theirs_name = f"{place}.lora_magnitude_vector.default.weight"
        else:
            theirs_name = f"{place}.{NAMES[kind]}.default{'.weight' if kind in 'ab' else ''}"
        found[name] = by_name[theirs_name]
    assert len(found) == sum(parameter.requires_grad for parameter in by_name.values())
    return found


def their_name(stem: str) -> str:
    kind, number, layer = re.fullmatch(r"(double|single)_blocks\.(\d+)\.(.*)", stem).groups()
    if kind == "single":
        return f"single_transformer_blocks.{number}.{SINGLE_BLOCK[f'{layer}.weight'].removesuffix('.weight')}"
    layer, _, letter = layer.partition(".qkv.")
    names = DOUBLE_BLOCK[f"{layer}.qkv.weight" if letter else f"{layer}.weight"]
    return f"transformer_blocks.{number}.{names['qkv'.index(letter) if letter else 0].removesuffix('.weight')}"
