"""Which attention kernels gradients may go through."""

from __future__ import annotations

import torch


def leave_out_cudnn() -> None:
    """Attention without cuDNN, from here on in this process.

    torch 2.11 and later prefer cuDNN's kernels on H100 and H200. Backwards they give NaN where a length is 64 more than a multiple
    of 128 and there is a mask (pytorch issue 196678), and others report more; the forward pass is right. Flash attention
    and the memory-efficient kernels come next in torch's order.
    """
    torch.backends.cuda.enable_cudnn_sdp(False)  # a switch of torch's own, there without a GPU too
