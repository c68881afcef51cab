"""Precisions of eight bits: what is quantized, how far it moves results, and that they must prove themselves first."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from kleinbild.core.errors import ModelError
from kleinbild.core.precision import Precision
from kleinbild.engine.runtime import Engine
from kleinbild.model import precision as precisions
from kleinbild.model.linear import Linear
from kleinbild.model.packing import Segment, pack
from kleinbild.model.precision import QUANTIZED, prove
from kleinbild.model.weights import load_model
from tests import tiny
from tests.unit.engine.test_pipeline import A, request
from tests.unit.model.test_int8 import random, relative_error

CPU = torch.device("cpu")
EIGHT_BITS: tuple[Precision, ...] = ("int8", "fp8")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tiny.write_model(tmp_path)


@pytest.mark.parametrize("precision", EIGHT_BITS)
def test_the_blocks_linear_layers_are_quantized_and_nothing_else_is(path: Path, precision: Precision) -> None:
    plain, quantized = load_model(path), load_model(path, precision=precision)
    assert (quantized.precision, quantized.dtype, quantized.notes) == (precision, torch.bfloat16, ())
    assert quantized.fingerprint == plain.fingerprint
    for name in ("transformer", "text_encoder", "autoencoder"):
        kinds = {place: type(module) for place, module in getattr(quantized, name).named_modules()}
        for place, module in getattr(plain, name).named_modules():
            is_in_a_block = "_blocks." in place or place.startswith("model.layers.")
            expected = QUANTIZED[precision] if isinstance(module, nn.Linear) and is_in_a_block else type(module)
            assert kinds[place] is expected
    tensors = [*quantized.transformer.buffers(), *quantized.text_encoder.buffers(), *quantized.transformer.parameters()]
    assert not any(tensor.is_meta or tensor.requires_grad for tensor in tensors)


@torch.no_grad()
@pytest.mark.parametrize(("precision", "limit"), [("int8", 0.05), ("fp8", 0.15)])
def test_what_the_rounding_does_to_a_velocity(path: Path, precision: Precision, limit: float) -> None:
    networks = [load_model(path, precision=each).transformer for each in (precision, "float32")]
    spec = networks[0].spec
    packing = pack([Segment(7, (4, 6), ((5, 2),))], spec)
    img, txt, times = random(34, spec.in_channels), random(7, spec.context_size, seed=1), torch.tensor([0.7])
    made, expected = (
        network(img.to(dtype), txt.to(dtype), times, packing)
        for network, dtype in zip(networks, (torch.bfloat16, torch.float32), strict=True)
    )
    assert 0.001 < relative_error(made, expected) < limit


def test_an_engine_makes_and_repeats_pictures_in_int8(path: Path) -> None:
    engine = Engine(path, device="cpu", dtype="int8")
    asked = request(engine, 3, references=(A,))
    picture = engine.generate(asked)
    assert (engine.dtype, picture.record.dtype, engine.notes) == ("int8", "int8", ())
    assert engine.replay(picture.record, asked.references).pil.tobytes() == picture.pil.tobytes()


def test_a_plain_precision_needs_no_proof() -> None:
    assert prove("float32", CPU) is prove("bfloat16", CPU) is None


class Wrong(Linear):
    def __init__(self, weight: torch.Tensor) -> None:
        super().__init__(*reversed(weight.shape))
        self.weight = nn.Parameter(weight, requires_grad=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return 1.1 * super().forward(x)


def absent(weight: torch.Tensor) -> nn.Module:
    raise ModelError("no such products here", "")


@pytest.mark.parametrize(("make", "words"), [(Wrong, "off by 10.0%"), (absent, "no such products here")])
def test_what_fails_its_proof_is_not_used_and_that_is_said(
    path: Path, monkeypatch: pytest.MonkeyPatch, make: type[nn.Module], words: str
) -> None:
    monkeypatch.setitem(precisions.QUANTIZED, "int8", make)
    engine = Engine(path, device="cpu", dtype="int8")
    assert engine.dtype == "bfloat16"
    assert words in engine.notes[0]
    assert engine.generate(request(engine, 1)).record.dtype == "bfloat16"
