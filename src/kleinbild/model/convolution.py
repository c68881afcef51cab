"""The autoencoder's convolutions: numbers whose last bits do not depend on the number of threads.

On a CPU oneDNN shares the cells of a picture out among its threads and computes those left over at the end of a share
with another kernel, which adds up in another order. With rows of whole eights there are none left over. Small pictures
are torch's own to convolve, with a product by MKL; where that is not strict (`kleinbild.model.linear`), they too go to
oneDNN.

Shape suffixes: B batch, C channels, H W cells, N all cells.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kleinbild.model.linear import linear, needs_onednn, of_columns

COLUMNS_AT_ONCE = 8


class Convolution(nn.Conv2d):
    """A 3x3 convolution that keeps the size."""

    def __init__(self, num_in: int, num_out: int) -> None:
        super().__init__(num_in, num_out, 3, padding=1)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        return _cut(convolve(self, _fill(x_BCHW)), x_BCHW.shape[-1])  # beyond the right edge there are zeros anyway


class Pointwise(nn.Conv2d):
    """A 1x1 convolution, computed as the matrix product that it is: the kernel for convolutions depends on threads."""

    def __init__(self, num_in: int, num_out: int) -> None:
        super().__init__(num_in, num_out, 1)

    def of_tokens(self, x_NC: Tensor) -> Tensor:
        """The same of cells in rows (..., N, C)."""
        return linear(x_NC, self.weight.flatten(1), self.bias)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        assert self.bias is not None
        filled_BCHW = _fill(x_BCHW)
        out_BCN: Tensor = of_columns(self.weight.flatten(1), filled_BCHW.flatten(2)) + self.bias[:, None]
        return _cut(out_BCN.reshape(len(x_BCHW), -1, *filled_BCHW.shape[2:]), x_BCHW.shape[-1])


def convolve(layer: nn.Conv2d, x_BCHW: Tensor) -> Tensor:
    """What `layer` makes of x."""
    if not needs_onednn(x_BCHW, layer.weight):
        return nn.Conv2d.forward(layer, x_BCHW)
    assert isinstance(layer.padding, tuple)
    return torch.mkldnn_convolution(
        x_BCHW, layer.weight, layer.bias, layer.padding, layer.stride, layer.dilation, layer.groups
    )


def _fill(x_BCHW: Tensor) -> Tensor:
    """Columns of zeros on the right, up to whole eights. Not where nothing hangs on last bits: on a GPU, in training."""
    left_over = x_BCHW.shape[-1] % COLUMNS_AT_ONCE
    if not left_over or x_BCHW.device.type != "cpu" or torch.is_grad_enabled():
        return x_BCHW
    return F.pad(x_BCHW, (0, COLUMNS_AT_ONCE - left_over))


def _cut(x_BCHW: Tensor, num_columns: int) -> Tensor:
    return x_BCHW[..., :num_columns].contiguous()
