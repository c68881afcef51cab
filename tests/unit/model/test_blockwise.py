"""Attention block by block: the fused kernel's numbers, as far as bfloat16 holds them."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from kleinbild.model import blockwise
from tests.unit.model.test_int8 import random, relative_error

SHAPE = (2, 3, 700, 64)


def inputs(scale: float = 1.0) -> list[torch.Tensor]:
    return [scale * random(*SHAPE), random(*SHAPE, seed=1), random(*SHAPE, seed=2)]


@torch.inference_mode()
@pytest.mark.parametrize(("scale", "factor"), [(1.0, 1.6), (3.0, 2.5)])
def test_how_far_it_is_off_beside_what_rounding_the_inputs_costs(scale: float, factor: float) -> None:
    exact, rounded = inputs(scale), [x.bfloat16() for x in inputs(scale)]
    expected = F.scaled_dot_product_attention(*(x.double() for x in exact))
    fused = relative_error(F.scaled_dot_product_attention(*rounded), expected)
    made = blockwise.attention(*rounded)
    assert made.dtype == torch.bfloat16
    assert relative_error(made, expected) < factor * fused


@torch.inference_mode()
def test_what_is_hidden_is_not_seen() -> None:
    q, k, v = (x.bfloat16() for x in inputs())
    seen = torch.ones(700, 700, dtype=torch.bool).tril()
    made = blockwise.attention(q, k, v, seen.expand(2, 700, 700))
    assert relative_error(made, F.scaled_dot_product_attention(q, k, v, attn_mask=seen)) < 0.01
    k[:, :, 650:], v[:, :, 650:] = 100.0, 100.0
    assert torch.equal(blockwise.attention(q, k, v, seen.expand(2, 700, 700))[:, :, :650], made[:, :, :650])


@torch.inference_mode()
def test_a_picture_does_not_depend_on_its_company() -> None:
    q, k, v = (x.bfloat16() for x in inputs())
    together = blockwise.attention(q, k, v)
    assert torch.equal(blockwise.attention(q[1:], k[1:], v[1:]), together[1:])


def test_where_it_is_used() -> None:
    q, k = torch.zeros(1, 1, 600, 8, dtype=torch.bfloat16), torch.zeros(1, 1, 900, 8, dtype=torch.bfloat16)
    assert not blockwise.pays(q, k)  # gradients
    with torch.no_grad():
        assert blockwise.pays(q, k)
        assert not blockwise.pays(q[:, :, :100], k)
        assert not blockwise.pays(q.float(), k.float())
        assert not blockwise.pays(q.to("meta"), k)
