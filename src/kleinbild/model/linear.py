"""The linear layer of the transformer: rows whose last bits do not depend on how many other rows there are.

A picture made in a pass with others must be the picture made alone, and the one made by any number of threads.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

ROWS_AT_ONCE = 4
FEW_ROWS = 128


class Linear(nn.Linear):
    """x · Wᵀ without bias.

    On a CPU the library multiplies four rows at once; up to three that are left over at the end of a thread's share go
    through another kernel, which adds up in another order. With many rows there are none left over; a few are filled up
    to a multiple of four.
    """

    def __init__(self, num_in: int, num_out: int) -> None:
        super().__init__(num_in, num_out, bias=False)

    def forward(self, x_ND: Tensor) -> Tensor:
        num_rows = x_ND.shape[0]
        left_over = num_rows % ROWS_AT_ONCE
        if not left_over or num_rows > FEW_ROWS or x_ND.device.type != "cpu" or torch.is_grad_enabled():
            return super().forward(x_ND)
        filled = F.pad(x_ND, (0, 0, 0, ROWS_AT_ONCE - left_over))
        return super().forward(filled)[:num_rows]
