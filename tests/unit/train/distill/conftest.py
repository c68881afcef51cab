"""A family of models small enough to distil within a test: nano's text and pictures around a random transformer."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from kleinbild.model.transformer import Flux2Transformer
from kleinbild.model.weights import Model, load_model
from kleinbild.train.distill.field import Sample
from kleinbild.train.distill.samples import context_of
from tests.unit.train.distill.tiny import TINY


@pytest.fixture(scope="session")
def nano_base() -> Model:
    return load_model("nano-base")


@pytest.fixture
def tiny(nano_base: Model) -> Model:
    """The same random weights every time, strong enough for its ways to be curved and for prompts to matter."""
    torch.manual_seed(1)
    transformer = Flux2Transformer(TINY).requires_grad_(False).eval()
    for name in ("txt_in", "final_layer.linear"):
        transformer.get_submodule(name).get_parameter("weight").mul_(6)
    return replace(nano_base, name="tiny", transformer=transformer, spec=replace(nano_base.spec, transformer=TINY))


@pytest.fixture(scope="session")
def samples(nano_base: Model) -> list[Sample]:
    """Without and with references, of several sizes, with and without a real picture."""
    torch.manual_seed(2)
    fox, cats, snow = (context_of(nano_base, prompt) for prompt in ("a fox on blue", "two cats on red", "make it snow"))
    return [
        Sample((2, 2), fox),
        Sample((2, 3), cats, target_NC=torch.randn(6, 128)),
        Sample((2, 2), snow, ((torch.randn(4, 128), (2, 2)), (torch.randn(2, 128), (1, 2)))),
        Sample((2, 2), fox, ((torch.randn(4, 128), (2, 2)),), torch.randn(4, 128)),
    ]
