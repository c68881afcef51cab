"""SiLU, the activation of every network here, with last bits that do not depend on the number of threads."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def silu(x: Tensor) -> Tensor:
    """x / (1 + exp(-x)), elementwise.

    On a CPU the library's own kernel treats the few elements at the end of each thread's share in another way than the
    rest, so that some last bits, and with them a pixel now and then, follow the number of threads. `exp` and division
    do not do that. In bfloat16 the difference is rounded away; in training, and on a GPU, it does not matter.
    """
    if x.device.type != "cpu" or x.dtype != torch.float32 or torch.is_grad_enabled():
        return F.silu(x)
    denominator = torch.neg(x).exp_().add_(1)
    return torch.div(x, denominator, out=denominator)
