"""Frozen linear layers in 8 or 4 bits, for a base that is not trained: their weights are read, gradients pass through.

A weight is turned back into numbers for each product, forwards and backwards, and never kept. `model.int8` is faster and
for serving: it rounds activations too, and has no gradient.

Shape suffixes: M rows of activations, O output features, I input features.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kleinbild.core.errors import ModelError
from kleinbild.model.int8 import quantize_rows
from kleinbild.model.precision import quantizable
from kleinbild.train.recipe import Precision

NF4_BLOCK = 64


class FrozenLinear(nn.Module):
    """x · Wᵀ without bias; W is what `dequantized` gives."""

    def __init__(self, weight_OI: Tensor) -> None:
        super().__init__()
        self.out_features, self.in_features = weight_OI.shape

    def dequantized(self, dtype: torch.dtype) -> Tensor:
        raise NotImplementedError

    def forward(self, x_MI: Tensor) -> Tensor:
        out: Tensor = _Product.apply(x_MI, self)  # type: ignore[no-untyped-call]
        return out


class Int8Frozen(FrozenLinear):
    """A scale for each output row."""

    weight_int8: Tensor
    scale: Tensor

    def __init__(self, weight_OI: Tensor) -> None:
        super().__init__(weight_OI)
        rounded_OI, scale_O1 = quantize_rows(weight_OI)
        self.register_buffer("weight_int8", rounded_OI)
        self.register_buffer("scale", scale_O1)

    def dequantized(self, dtype: torch.dtype) -> Tensor:
        return self.weight_int8.to(dtype) * self.scale.to(dtype)


class Nf4Frozen(FrozenLinear):
    """bitsandbytes' normal floats of 4 bits, a scale for each 64 numbers."""

    packed: Tensor

    def __init__(self, weight_OI: Tensor) -> None:
        super().__init__(weight_OI)
        functional = _bitsandbytes()
        packed, self.state = functional.quantize_4bit(weight_OI.contiguous(), quant_type="nf4", blocksize=NF4_BLOCK)
        self.register_buffer("packed", packed)

    def dequantized(self, dtype: torch.dtype) -> Tensor:
        weight_OI: Tensor = _bitsandbytes().dequantize_4bit(self.packed, self.state)
        return weight_OI.to(dtype)


class _Product(torch.autograd.Function):
    """The product and its gradient for `x`, without a copy of the weight in between."""

    @staticmethod
    def forward(ctx: Any, x_MI: Tensor, layer: FrozenLinear) -> Tensor:
        ctx.layer, ctx.dtype = layer, x_MI.dtype
        dtype = (
            torch.get_autocast_dtype(x_MI.device.type) if torch.is_autocast_enabled(x_MI.device.type) else x_MI.dtype
        )
        return F.linear(x_MI.to(dtype), layer.dequantized(dtype))

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        (grad_MO,) = grads
        return (grad_MO @ ctx.layer.dequantized(grad_MO.dtype)).to(ctx.dtype), None


LAYERS: dict[Precision, type[FrozenLinear]] = {"int8": Int8Frozen, "nf4": Nf4Frozen}


def quantize_base(transformer: nn.Module, precision: Precision) -> None:
    """Replaces the linear layers of all blocks, one by one, where `precision` is one of few bits."""
    if precision in LAYERS:
        for parent, name, _ in list(quantizable(transformer)):
            setattr(parent, name, LAYERS[precision](parent.get_parameter(f"{name}.weight").detach()))


def _bitsandbytes() -> Any:
    try:
        from bitsandbytes import functional
    except ImportError as error:
        raise ModelError(
            "a base in nf4 needs bitsandbytes, which is not installed",
            "pip install 'kleinbild[train-8bit]', or precision=int8",
        ) from error
    return functional
