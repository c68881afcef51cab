"""Linear layers in 8-bit floating point (e4m3), weights and activations.

A weight gets one scale per output row, once; activations one scale per row, in every product. Results are bfloat16.
GPUs have such products from compute capability 8.9 on. On a CPU the same rounding is computed in float32: not fast,
but it shows what fp8 costs in accuracy.

Shape suffixes: M rows of activations, N output features, K input features.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from kleinbild.core.errors import ModelError
from kleinbild.model.int8 import row_scale

E4M3 = torch.float8_e4m3fn
E4M3_MAX = 448.0
FIRST_CAPABILITY = (8, 9)


def require_fp8(device: torch.device) -> None:
    if device.type == "cpu":
        return
    capability = torch.cuda.get_device_capability(device) if device.type == "cuda" else (0, 0)
    if capability < FIRST_CAPABILITY:
        raise ModelError(
            f"{device.type} of compute capability {'.'.join(map(str, capability))} has no fp8 products",
            f"use a GPU of capability {'.'.join(map(str, FIRST_CAPABILITY))} or newer, or bfloat16",
        )


class Fp8Linear(nn.Module):
    """x · Wᵀ without bias, W in fp8."""

    weight: Tensor
    scale: Tensor

    def __init__(self, weight_NK: Tensor) -> None:
        super().__init__()
        weight, scale = quantize_rows(weight_NK)
        self.register_buffer("weight", weight)
        self.register_buffer("scale", scale)

    def forward(self, x_MK: Tensor) -> Tensor:
        return scaled_product(*quantize_rows(x_MK), self.weight, self.scale).to(x_MK.dtype)

    def plain_weight(self) -> Tensor:
        """The weight (N, K) that it computes with, in float32."""
        return self.weight.float() * self.scale


def quantize_rows(x_MK: Tensor) -> tuple[Tensor, Tensor]:
    """Rows in e4m3, and the scale (M, 1) in float32 that each has to be multiplied with."""
    scale_M1 = row_scale(x_MK, E4M3_MAX)
    return (x_MK.float() / scale_M1).to(E4M3), scale_M1


def scaled_product(a_MK: Tensor, a_scale_M1: Tensor, b_NK: Tensor, b_scale_N1: Tensor) -> Tensor:
    """a · bᵀ of two quantized matrices, (M, N) in bfloat16."""
    if a_MK.device.type == "cpu":
        return (a_MK.float() @ b_NK.float().t() * a_scale_M1 * b_scale_N1.t()).bfloat16()
    # Private, but the only row-scaled product in torch. Fast accumulation rounds sums earlier than float32 would; that
    # is little beside the rounding of the numbers themselves to eight bits.
    product: Tensor = torch._scaled_mm(  # noqa: SLF001
        a_MK, b_NK.t(), a_scale_M1, b_scale_N1.t(), out_dtype=torch.bfloat16, use_fast_accum=True
    )
    return product
