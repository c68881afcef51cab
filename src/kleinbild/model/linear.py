"""Products with weights whose rows have last bits of their own, however many rows and threads there are beside them.

On Intel's processors MKL's strict mode sees to that (`kleinbild.model`). On others it does not hold: a few rows, or what a
thread gets of them, are added up in another order. There oneDNN computes them, as fast; of its products only those of a
single row are unlike others. Not the processor's name decides, but a product.

Shape suffixes: I inputs, O outputs, M rows; B batch, N columns.
"""

from __future__ import annotations

from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Linear(nn.Linear):
    """x · Wᵀ without bias, as `linear`."""

    def __init__(self, num_in: int, num_out: int) -> None:
        super().__init__(num_in, num_out, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return linear(x, self.weight)


def linear(x: Tensor, weight_OI: Tensor, bias_O: Tensor | None = None) -> Tensor:
    """x · Wᵀ + bias, of (..., I) as (..., O)."""
    if not needs_onednn(x, weight_OI):
        return F.linear(x, weight_OI, bias_O)
    rows_MI = x.reshape(-1, x.shape[-1])
    filled_MI = F.pad(rows_MI, (0, 0, 0, 1)) if len(rows_MI) == 1 else rows_MI.contiguous()
    out_MO: Tensor = torch.ops.mkldnn._linear_pointwise(filled_MI, weight_OI, bias_O, "none", [], "")  # noqa: SLF001
    return out_MO[: len(rows_MI)].reshape(*x.shape[:-1], len(weight_OI))


def add_linear_(out_MO: Tensor, x_MI: Tensor, weight_OI: Tensor, factor: float) -> None:
    """Adds `factor` · x · Wᵀ to `out_MO`."""
    if needs_onednn(x_MI, weight_OI):
        out_MO.add_(linear(x_MI, weight_OI), alpha=factor)
    else:
        out_MO.addmm_(x_MI, weight_OI.t(), alpha=factor)


def of_columns(weight_OI: Tensor, x_BIN: Tensor) -> Tensor:
    """W · x, (B, O, N)."""
    if not needs_onednn(x_BIN, weight_OI):
        return weight_OI @ x_BIN
    return torch.stack([linear(weight_OI, x_IN.t()) for x_IN in x_BIN])


def needs_onednn(x: Tensor, weight: Tensor) -> bool:
    """Whether MKL's last bits will not do. None are promised on a GPU, in bfloat16, in training and compiled."""
    if x.device.type != "cpu" or not (x.dtype == weight.dtype == torch.float32) or not x.numel():
        return False
    if torch.is_grad_enabled() or torch.is_autocast_enabled("cpu") or torch.compiler.is_compiling():
        return False
    return not mkl_is_strict()


@cache
def mkl_is_strict() -> bool:
    """Whether few rows get the bits here that they get among others; or nothing is known to be better (no x86)."""
    if not (torch.backends.mkl.is_available() and torch.backends.mkldnn.is_available()):
        return True
    generator = torch.Generator().manual_seed(0)
    x_MI, weight_OI = (torch.randn(224, 224, generator=generator, device="cpu", dtype=torch.float32) for _ in range(2))
    whole_MO = F.linear(x_MI, weight_OI)
    return all(torch.equal(F.linear(x_MI[:few], weight_OI), whole_MO[:few]) for few in (1, 2, 3))
