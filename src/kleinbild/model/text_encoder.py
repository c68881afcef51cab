"""The text encoder: a Qwen3 language model cut after the last layer that the context needs, without its head.

The context is the hidden states after the chosen layers, side by side on the feature axis. All positions are given to
the transformer, padding too: that is how the models were trained. Layers above the last chosen one are never built.

Shape suffixes: B prompts, L tokens, X context width.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from transformers.models.qwen3.configuration_qwen3 import Qwen3Config
from transformers.models.qwen3.modeling_qwen3 import Qwen3Model, Qwen3RotaryEmbedding

from kleinbild.model.spec import TextEncoderSpec


def qwen3_config(spec: TextEncoderSpec, num_layers: int) -> Qwen3Config:
    """transformers' configuration of `spec` with `num_layers` layers."""
    return Qwen3Config(
        vocab_size=spec.vocab_size,
        hidden_size=spec.hidden_size,
        intermediate_size=spec.mlp_size,
        num_hidden_layers=num_layers,
        num_attention_heads=spec.num_heads,
        num_key_value_heads=spec.num_key_value_heads,
        head_dim=spec.head_dim,
        rms_norm_eps=spec.norm_eps,
        rope_parameters={"rope_type": "default", "rope_theta": spec.rope_theta},
        max_position_embeddings=40_960,
        tie_word_embeddings=True,
        use_cache=False,
        pad_token_id=None,
    )


class TextEncoder(nn.Module):
    """Token ids to text context. Parameters are named as in the official files (`model.layers.0…`)."""

    def __init__(self, spec: TextEncoderSpec) -> None:
        super().__init__()
        self.spec = spec
        self.model = Qwen3Model(qwen3_config(spec, spec.num_layers_needed))
        # Its frequencies are computed, not stored in files: they must exist even when the rest is built on meta.
        with torch.device("cpu"):
            self.model.rotary_emb = Qwen3RotaryEmbedding(self.model.config)
        self.model.add_module("norm", nn.Identity())  # states are taken raw; the final norm belongs to the part cut off

    def forward(self, ids_BL: Tensor, mask_BL: Tensor) -> Tensor:
        """Ids and mask (1: token, 0: padding) to the context (B, L, X)."""
        states: dict[int, Tensor] = {}
        handles = [
            self.model.layers[layer - 1].register_forward_hook(
                lambda _module, _inputs, output, layer=layer: states.update(
                    {layer: output[0] if isinstance(output, tuple) else output}
                )
            )
            for layer in self.spec.layers
        ]
        try:
            self.model(input_ids=ids_BL, attention_mask=mask_BL, use_cache=False)
        finally:
            for handle in handles:
                handle.remove()
        return torch.cat([states[layer] for layer in self.spec.layers], dim=-1)
