"""The numbers of a model, and of a run, that are small enough for a test."""

from __future__ import annotations

from kleinbild.model.spec import TransformerSpec
from kleinbild.train.distill.recipe import Recipe

TINY = TransformerSpec(
    hidden_size=32, num_heads=2, num_double_blocks=1, num_single_blocks=1, context_size=576, rope_axes=(4, 4, 4, 4)
)
QUICK = Recipe(
    num_updates=6,
    batch_size=2,
    num_substeps=2,
    guidance=2.0,
    num_rollouts=4,
    rate=1e-3,
    rank=4,
    warmup=0,
    validate_every=2,
    num_validated=2,
    num_seeds=3,
    mixed=False,
)
