"""Linear layers in 8-bit integers, weights and activations (W8A8): half the memory of bfloat16, twice its products.

A weight gets one scale per output row, once; activations one scale per row, in every product. The products are exact
sums of integers, so that a row's numbers never depend on other rows or on the number of threads. What is lost is in the
rounding to eight bits: about 1 % of a product's norm where numbers are normally distributed.

Shape suffixes: M rows of activations, N output features, K input features, S slices of the output, C columns of a slice.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

LARGEST = 127
SMALLEST_SCALE = 1e-12  # for rows of zeros
COLUMNS_AT_ONCE = 3072  # sums of 32 bits of so many columns are scaled while they are in the processor's cache
ROWS_AT_ONCE = 64  # likewise, of activations that are rounded


class Int8Linear(nn.Module):
    """x · Wᵀ without bias, W in int8. The weight is kept as slices (S, K, C) of its transpose."""

    weight: Tensor
    scale: Tensor

    def __init__(self, weight_NK: Tensor) -> None:
        super().__init__()
        num_slices = _num_slices(len(weight_NK))
        weight_SCK = weight_NK.unflatten(0, (num_slices, -1))
        scale_SC1 = weight_NK.new_empty(*weight_SCK.shape[:2], 1, dtype=torch.float32)
        weight_SKC = weight_NK.new_empty(weight_SCK.mT.shape, dtype=torch.int8)
        for exact_CK, scale_C1, rounded_KC in zip(weight_SCK, scale_SC1, weight_SKC, strict=True):  # little on top
            rounded_CK, row_scale_C1 = quantize_rows(exact_CK)
            scale_C1.copy_(row_scale_C1)
            rounded_KC.copy_(rounded_CK.mT)
        self.register_buffer("weight", weight_SKC)
        self.register_buffer("scale", scale_SC1.squeeze(-1))

    def forward(self, x: Tensor) -> Tensor:
        """`x` (..., K) to (..., N), in its type."""
        x_MK, x_scale_M1 = quantize_rows(x.reshape(-1, x.shape[-1]))
        out_MSC = x.new_empty(len(x_MK), *self.scale.shape)
        for i, (weight_KC, scale_C) in enumerate(zip(self.weight, self.scale, strict=True)):
            sums_MC = torch._int_mm(x_MK, weight_KC).float()  # noqa: SLF001 - the only product of such numbers in torch
            torch.mul(sums_MC.mul_(x_scale_M1), scale_C, out=out_MSC[:, i])
        return out_MSC.view(*x.shape[:-1], self.scale.numel())

    def plain_weight(self) -> Tensor:
        """The weight (N, K) that it computes with, in float32."""
        return (self.weight.float() * self.scale.unsqueeze(1)).mT.flatten(0, 1)


def quantize_rows(x_MK: Tensor) -> tuple[Tensor, Tensor]:
    """Rows in int8, and the scale (M, 1) in float32 that each has to be multiplied with."""
    rounded_MK = torch.empty_like(x_MK, dtype=torch.int8, memory_format=torch.contiguous_format)
    scales_M1 = x_MK.new_empty(len(x_MK), 1, dtype=torch.float32)
    for some, out, scales in zip(*(x.split(ROWS_AT_ONCE) for x in (x_MK, rounded_MK, scales_M1)), strict=True):
        exact = some.float()
        scales.copy_(row_scale(exact, LARGEST))
        out.copy_((exact / scales).round_())
    return rounded_MK, scales_M1


def row_scale(x_MK: Tensor, largest: float) -> Tensor:
    """What each row has to be divided by for `largest` to be its largest number: (M, 1) in float32."""
    return (x_MK.abs().amax(dim=-1, keepdim=True).float() / largest).clamp_(min=SMALLEST_SCALE)


def _num_slices(num_out: int) -> int:
    """The fewest equal slices of the output that are narrow enough."""
    fewest = -(-num_out // COLUMNS_AT_ONCE)
    return next(number for number in range(fewest, num_out + 1) if num_out % number == 0)
