"""Muon: momentum whose update is orthogonalised, for matrices (and convolutions, seen as matrices).

Source: Jordan et al., "Muon: an optimizer for hidden layers in neural networks" (2024), with its quintic Newton-Schulz
coefficients. The iteration runs on the small Gram matrix instead of the full one: the same polynomial, a fifth of the
arithmetic at our shapes, and one batched call for all matrices of a shape. Scalars and vectors belong to AdamW.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

COEFFICIENTS = (3.4445, -4.7750, 2.0315)
NUM_ITERATIONS = 5


def orthogonalize(x_NRC: Tensor) -> Tensor:
    """A stack of matrices to nearly orthogonal ones (singular values about 0.7 to 1.2)."""
    a, b, c = COEFFICIENTS
    transposed = x_NRC.shape[-2] > x_NRC.shape[-1]
    x = x_NRC.mT if transposed else x_NRC
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    gram = x @ x.mT
    identity = torch.eye(gram.shape[-1], dtype=x.dtype, device=x.device)
    total = identity
    for iteration in range(NUM_ITERATIONS):
        step = a * identity + b * gram + c * (gram @ gram)
        total = step @ total if iteration else step
        if iteration < NUM_ITERATIONS - 1:
            gram = step @ gram @ step
    out: Tensor = total @ x
    return out.mT if transposed else out


class Muon(Optimizer):
    """Nesterov momentum, orthogonalised; the step of an (R, C) matrix is scaled by sqrt(max(1, R/C))."""

    def __init__(
        self, params: Iterable[Tensor], lr: float = 0.02, momentum: float = 0.95, weight_decay: float = 0.0
    ) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]  # noqa: ARG002  # no closure is ever used
        for group in self.param_groups:
            by_shape: dict[tuple[int, int], list[Tensor]] = defaultdict(list)
            for parameter in group["params"]:
                if parameter.grad is not None:
                    by_shape[(parameter.shape[0], parameter[0].numel())].append(parameter)
            for (rows, columns), parameters in by_shape.items():
                updates = orthogonalize(
                    torch.stack([self._momentum(p, group["momentum"]).reshape(rows, columns) for p in parameters])
                )
                scale = max(1.0, rows / columns) ** 0.5
                for parameter, update in zip(parameters, updates, strict=True):
                    parameter.mul_(1 - group["lr"] * group["weight_decay"])
                    parameter.add_(update.reshape(parameter.shape), alpha=-group["lr"] * scale)

    def _momentum(self, parameter: Tensor, momentum: float) -> Tensor:
        state = self.state[parameter]
        if not state:
            state["momentum"] = torch.zeros_like(parameter)
        buffer: Tensor = state["momentum"]
        assert parameter.grad is not None
        buffer.lerp_(parameter.grad, 1 - momentum)
        return parameter.grad.lerp(buffer, momentum)
