"""Attention: torch's fused kernel, but of many tokens on a CPU in bfloat16 a head and some hundred queries at a time.

The fused kernel multiplies at a third of the rate of its matrix products there. These are as fast as any and a
block's logits stay in the cache: the whole is half again to twice as fast. Logits are rounded to bfloat16 before the
softmax, which the fused kernel does not do. Where attention is sharp that about doubles what rounding queries, keys and
values costs anyway (`tests/unit/model/test_blockwise.py`); where it is even, it changes nothing.

Shape suffixes: B batch, H heads, Q queries, L keys, d head dim.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

QUERIES_AT_ONCE = 512
ENOUGH_KEYS = 512  # with fewer the fused kernel is as fast


def pays(q_BHQd: Tensor, k_BHLd: Tensor) -> bool:
    """Whether it is faster than the fused kernel."""
    on_cpu = q_BHQd.device.type == "cpu" and q_BHQd.dtype == torch.bfloat16
    return on_cpu and min(q_BHQd.shape[-2], k_BHLd.shape[-2]) >= ENOUGH_KEYS and not torch.is_grad_enabled()


def attend(q_BHQd: Tensor, k_BHLd: Tensor, v_BHLd: Tensor, seen_B1QL: Tensor | None = None) -> Tensor:
    """softmax(q · kᵀ / √d) · v, (B, H, Q, d), by whichever is faster. `seen_B1QL`: which keys each query sees."""
    if not pays(q_BHQd, k_BHLd):
        return F.scaled_dot_product_attention(q_BHQd, k_BHLd, v_BHLd, attn_mask=seen_B1QL)
    return attention(q_BHQd, k_BHLd, v_BHLd, None if seen_B1QL is None else seen_B1QL.squeeze(1))


def attention(q_BHQd: Tensor, k_BHLd: Tensor, v_BHLd: Tensor, seen_BQL: Tensor | None = None) -> Tensor:
    """The same block by block, laid out (B, Q, H, d)."""
    batch, num_heads, num_queries, width = q_BHQd.shape
    out_BQHd = q_BHQd.new_empty(batch, num_queries, num_heads, width)
    nothing = q_BHQd.new_zeros(())
    for b in range(batch):
        hidden_QL = None if seen_BQL is None else torch.where(seen_BQL[b], nothing, -torch.inf).to(nothing.dtype)
        for h in range(num_heads):
            k_dL, v_Ld = k_BHLd[b, h].contiguous().t(), v_BHLd[b, h].contiguous()
            for begin in range(0, num_queries, QUERIES_AT_ONCE):
                some = slice(begin, begin + QUERIES_AT_ONCE)
                bias, beta = (nothing, 0.0) if hidden_QL is None else (hidden_QL[some], 1.0)
                logits = torch.addmm(bias, q_BHQd[b, h, some].contiguous(), k_dL, beta=beta, alpha=width**-0.5)
                out_BQHd[b, some, h] = torch.softmax(logits, dim=-1) @ v_Ld
    return out_BQHd.transpose(1, 2)
