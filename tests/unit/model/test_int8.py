"""int8: what the rounding costs, and that nothing else is lost."""

from __future__ import annotations

import pytest
import torch

from kleinbild.model.int8 import LARGEST, Int8Linear, quantize_rows


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def relative_error(one: torch.Tensor, other: torch.Tensor) -> float:
    return float((one.double() - other.double()).norm() / other.double().norm())


def test_rows_keep_their_size_whatever_it_is() -> None:
    rows = (random(4, 64) * torch.tensor([1e-6, 1.0, 1e6, 0.0])[:, None]).bfloat16()
    numbers, scales = quantize_rows(rows)
    assert (numbers.dtype, scales.dtype, scales.shape) == (torch.int8, torch.float32, (4, 1))
    assert numbers[:3].abs().amax(dim=1).tolist() == [LARGEST] * 3
    assert ((numbers.float() * scales - rows.float()).abs() <= 0.51 * scales).all()


@pytest.mark.parametrize("shape", [(1, 32, 32), (70, 512, 768), (200, 64, 6144), (5, 96, 3079)])
def test_a_product_is_that_of_the_rounded_numbers(shape: tuple[int, int, int]) -> None:
    num_rows, num_in, num_out = shape
    x, weight = random(num_rows, num_in), random(num_out, num_in, seed=1)
    made = Int8Linear(weight)(x)
    (x_numbers, x_scale), (numbers, scale) = quantize_rows(x), quantize_rows(weight)
    exact = (x_numbers.double() * x_scale) @ (numbers.double() * scale).t()
    assert relative_error(made, exact) < 1e-6
    assert 1e-4 < relative_error(made, x.double() @ weight.double().t()) < 0.02


def test_leading_dimensions_and_the_type_stay() -> None:
    x = random(2, 7, 64).bfloat16()
    made = Int8Linear(random(96, 64, seed=1))(x)
    assert (made.shape, made.dtype) == ((2, 7, 96), torch.bfloat16)


def test_a_row_does_not_depend_on_its_company_or_on_threads() -> None:
    layer, x = Int8Linear(random(96, 64, seed=1)), random(150, 64).bfloat16()
    together, before = layer(x), torch.get_num_threads()
    try:
        for threads in (1, 2, 3, 4):
            torch.set_num_threads(threads)
            for rows in (slice(0, 1), slice(3, 70), slice(64, 150)):
                assert torch.equal(layer(x[rows]), together[rows])
    finally:
        torch.set_num_threads(before)
