"""fp8: what is quantized, and how far the rounding moves a result. The products here are the CPU's emulation."""

from __future__ import annotations

import pytest
import torch

from kleinbild.core.errors import ModelError
from kleinbild.model.fp8 import E4M3, Fp8Linear, quantize_rows, require_fp8, scaled_product, to_fp8
from kleinbild.model.linear import Linear
from kleinbild.model.packing import Segment, pack
from tests import tiny


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def relative_error(one: torch.Tensor, other: torch.Tensor) -> float:
    return float((one.double() - other.double()).norm() / other.double().norm())


def test_rows_keep_their_size_whatever_it_is() -> None:
    rows = random(4, 64) * torch.tensor([1e-6, 1.0, 1e6, 0.0])[:, None]
    numbers, scales = quantize_rows(rows.bfloat16())
    assert (numbers.dtype, scales.dtype, scales.shape) == (E4M3, torch.float32, (4, 1))
    back = numbers.float() * scales
    assert (
        relative_error(back[:3] / rows[:3].norm(dim=1, keepdim=True), rows[:3] / rows[:3].norm(dim=1, keepdim=True))
        < 0.04
    )
    assert back[3].abs().max() == 0


def test_a_product_is_off_by_the_rounding_alone() -> None:
    a, b = random(40, 256), random(96, 256, seed=1)
    product = scaled_product(*quantize_rows(a), *quantize_rows(b))
    assert product.dtype == torch.bfloat16
    assert 0.01 < relative_error(product, a @ b.t()) < 0.05


@torch.no_grad()
def test_the_blocks_of_a_transformer_are_in_fp8_and_nothing_else_is() -> None:
    network = tiny.transformer()
    quantized = to_fp8(network)
    kinds = {name: type(module) for name, module in quantized.named_modules()}
    linear = [name for name, module in network.named_modules() if isinstance(module, Linear)]
    assert len(linear) == 9 + 2 * 8 + 3 * 2
    assert all((kinds[name] is Fp8Linear) == ("_blocks." in name) for name in linear)
    assert quantized.img_in.weight.data_ptr() == network.img_in.weight.data_ptr()
    assert isinstance(network.single_blocks[0].linear1, Linear)

    segment, spec = Segment(7, (4, 6), ((5, 2),)), network.spec
    inputs = (
        random(34, spec.in_channels),
        random(7, spec.context_size, seed=1),
        torch.tensor([0.7]),
        pack([segment], spec),
    )
    assert 0.001 < relative_error(quantized(*inputs), network(*inputs)) < 0.15


def test_a_device_without_such_products_is_told() -> None:
    with pytest.raises(ModelError, match="has no fp8 products"):
        require_fp8(torch.device("mps"))
