"""The autoencoder's convolutions: numbers whose last bits do not depend on the number of threads.

On a CPU the library shares the cells of a picture out among its threads and computes those left over at the end of a
share with another kernel, which adds up in another order. With rows of whole eights there are none left over.

Shape suffixes: B batch, C channels, H W cells, N all cells.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

COLUMNS_AT_ONCE = 8


class Convolution(nn.Conv2d):
    """A 3x3 convolution that keeps the size."""

    def __init__(self, num_in: int, num_out: int) -> None:
        super().__init__(num_in, num_out, 3, padding=1)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        return _cut(super().forward(_fill(x_BCHW)), x_BCHW.shape[-1])  # beyond the right edge there are zeros anyway


class Pointwise(nn.Conv2d):
    """A 1x1 convolution, computed as the matrix product that it is: the kernel for convolutions depends on threads."""

    def __init__(self, num_in: int, num_out: int) -> None:
        super().__init__(num_in, num_out, 1)

    def of_tokens(self, x_NC: Tensor) -> Tensor:
        """The same of cells in rows (..., N, C)."""
        return F.linear(x_NC, self.weight.flatten(1), self.bias)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        assert self.bias is not None
        filled_BCHW = _fill(x_BCHW)
        out_BCN: Tensor = self.weight.flatten(1) @ filled_BCHW.flatten(2) + self.bias[:, None]
        return _cut(out_BCN.reshape(len(x_BCHW), -1, *filled_BCHW.shape[2:]), x_BCHW.shape[-1])


def _fill(x_BCHW: Tensor) -> Tensor:
    """Columns of zeros on the right, up to whole eights. Not where nothing hangs on last bits: on a GPU, in training."""
    left_over = x_BCHW.shape[-1] % COLUMNS_AT_ONCE
    if not left_over or x_BCHW.device.type != "cpu" or torch.is_grad_enabled():
        return x_BCHW
    return F.pad(x_BCHW, (0, COLUMNS_AT_ONCE - left_over))


def _cut(x_BCHW: Tensor, num_columns: int) -> Tensor:
    return x_BCHW[..., :num_columns].contiguous()
