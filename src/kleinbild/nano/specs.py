"""nano's numbers: the architecture of FLUX.2 [klein], about four hundred times smaller."""

from __future__ import annotations

from kleinbild.model.spec import AutoencoderSpec, ModelSpec, TextEncoderSpec, TransformerSpec

NANO = ModelSpec(
    transformer=TransformerSpec(
        hidden_size=224,
        num_heads=4,
        num_double_blocks=2,
        num_single_blocks=6,
        context_size=576,
        rope_axes=(14, 14, 14, 14),
    ),
    text_encoder=TextEncoderSpec(
        hidden_size=192,
        num_layers=4,
        num_heads=3,
        num_key_value_heads=3,
        head_dim=64,
        mlp_size=576,
        vocab_size=960,
        layers=(1, 2, 3),
        max_tokens=28,
    ),
    autoencoder=AutoencoderSpec(base_channels=16, channel_multipliers=(1, 2, 4, 8), num_res_blocks=1, num_groups=4),
    default_steps=4,
    default_guidance=1.0,
    default_size=128,
)
