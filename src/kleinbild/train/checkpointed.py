"""Gradient checkpointing: a block's activations are made again in the backward pass instead of being kept."""

from __future__ import annotations

from functools import partial

from torch import nn
from torch.utils.checkpoint import checkpoint

from kleinbild.model.transformer import Flux2Transformer


def checkpoint_blocks(transformer: Flux2Transformer) -> None:
    """Makes every block forget what is inside it. Passes without gradients are as before."""
    for block in (*transformer.double_blocks, *transformer.single_blocks):
        _checkpoint(block)


def _checkpoint(block: nn.Module) -> None:
    # The block's own way of computing, not a wrapper around it: names of layers, which adapters are tied to, stay.
    block.forward = partial(checkpoint, block.forward, use_reentrant=False, preserve_rng_state=False)
