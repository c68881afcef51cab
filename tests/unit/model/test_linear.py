"""A row's last bits are its own, however many rows there are beside it, and however many threads."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from kleinbild.model.linear import Linear

NANO = [(128, 224), (224, 224), (224, 672), (224, 1344), (224, 2016), (256, 224), (576, 224), (672, 224), (896, 224)]
"""Inputs and outputs of nano's products."""
OTHERS = [(800, 96), (1000, 64), (1536, 96), (2048, 64)]


@pytest.fixture
def threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("threads")
@pytest.mark.parametrize("shape", [*NANO, *OTHERS])
@torch.inference_mode()
def test_rows_depend_neither_on_their_number_nor_on_threads(shape: tuple[int, int]) -> None:
    torch.manual_seed(0)
    layer = Linear(*shape)
    x_ND = torch.randn(640, shape[0])
    whole = layer(x_ND)
    for num_threads in (1, 2, 3, 8):
        torch.set_num_threads(num_threads)
        for num_rows in [*range(1, 16), *range(16, 640, 37), 640]:
            assert torch.equal(layer(x_ND[:num_rows]), whole[:num_rows]), f"{num_rows} rows, {num_threads} threads"
