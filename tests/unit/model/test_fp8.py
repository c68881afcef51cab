"""fp8: what is quantized, and how far the rounding moves a result. The products here are the CPU's emulation."""

from __future__ import annotations

import pytest
import torch

from kleinbild.core.errors import ModelError
from kleinbild.model.fp8 import E4M3, quantize_rows, require_fp8, scaled_product


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


def test_a_device_without_such_products_is_told() -> None:
    with pytest.raises(ModelError, match="has no fp8 products"):
        require_fp8(torch.device("mps"))
