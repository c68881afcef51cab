"""The numbers of the official models, for forecasts and stand-ins before any weights are here.

Loading never looks here: there the numbers are read off the weights (`weights.specs`).
Source: the published configuration files of the models and of Qwen3.
"""

from __future__ import annotations

from kleinbild.model.spec import AutoencoderSpec, ModelSpec, TextEncoderSpec, TransformerSpec

QWEN3_4B = TextEncoderSpec(
    hidden_size=2560,
    num_layers=36,
    num_heads=32,
    num_key_value_heads=8,
    head_dim=128,
    mlp_size=9728,
    vocab_size=151_936,
)
QWEN3_8B = TextEncoderSpec(
    hidden_size=4096,
    num_layers=36,
    num_heads=32,
    num_key_value_heads=8,
    head_dim=128,
    mlp_size=12288,
    vocab_size=151_936,
)
KLEIN_4B = ModelSpec(
    TransformerSpec(hidden_size=3072, num_heads=24, num_double_blocks=5, num_single_blocks=20, context_size=7680),
    QWEN3_4B,
    AutoencoderSpec(),
)
KLEIN_9B = ModelSpec(
    TransformerSpec(hidden_size=4096, num_heads=32, num_double_blocks=8, num_single_blocks=24, context_size=12288),
    QWEN3_8B,
    AutoencoderSpec(),
)
SPECS = {"klein-4b": KLEIN_4B, "klein-9b": KLEIN_9B}
"""By family."""
