"""The linear layer of the transformer."""

from __future__ import annotations

from torch import nn


class Linear(nn.Linear):
    """x · Wᵀ without bias. A row's last bits are its own, however many others there are (`kleinbild.model`)."""

    def __init__(self, num_in: int, num_out: int) -> None:
        super().__init__(num_in, num_out, bias=False)
