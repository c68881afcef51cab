"""What diffusers and transformers read beside the weights of a folder: their configurations, from our specs.

Plain tables, and no torch here: whoever writes such a folder, or builds the same networks to compare with, takes them
from this one place.
"""

from __future__ import annotations

from typing import Any

from kleinbild.model.spec import AutoencoderSpec, TextEncoderSpec, TransformerSpec
from kleinbild.model.weights.settings import Settings

DIFFUSERS_FILE = "diffusion_pytorch_model.safetensors"
SCHEDULER = {
    "_class_name": "FlowMatchEulerDiscreteScheduler",
    "num_train_timesteps": 1000,
    "shift": 1.0,
    "use_dynamic_shifting": True,  # the pipeline computes mu itself; `exponential` turns it into the shift of times
    "time_shift_type": "exponential",
}


def qwen3_config(spec: TextEncoderSpec, num_layers: int) -> dict[str, Any]:
    """The arguments of transformers' `Qwen3Config` where `num_layers` are stored, head tied to the embedding."""
    return {
        "vocab_size": spec.vocab_size,
        "hidden_size": spec.hidden_size,
        "intermediate_size": spec.mlp_size,
        "num_hidden_layers": num_layers,
        "num_attention_heads": spec.num_heads,
        "num_key_value_heads": spec.num_key_value_heads,
        "head_dim": spec.head_dim,
        "rms_norm_eps": spec.norm_eps,
        "rope_parameters": {"rope_type": "default", "rope_theta": spec.rope_theta},
        "max_position_embeddings": 40_960,
        "tie_word_embeddings": True,
        "pad_token_id": None,
    }


def transformer_config(spec: TransformerSpec) -> dict[str, Any]:
    """The arguments of diffusers' `Flux2Transformer2DModel`."""
    return {
        "in_channels": spec.in_channels,
        "num_layers": spec.num_double_blocks,
        "num_single_layers": spec.num_single_blocks,
        "attention_head_dim": spec.head_dim,
        "num_attention_heads": spec.num_heads,
        "joint_attention_dim": spec.context_size,
        "timestep_guidance_channels": spec.time_channels,
        "mlp_ratio": spec.mlp_ratio,
        "axes_dims_rope": list(spec.rope_axes),
        "rope_theta": int(spec.rope_theta),
        "guidance_embeds": False,
    }


def autoencoder_config(spec: AutoencoderSpec) -> dict[str, Any]:
    """The arguments of diffusers' `AutoencoderKLFlux2`."""
    num_levels = len(spec.channel_multipliers)
    own_decoder = {"decoder_block_out_channels": spec.decoder_widths} if spec.decoder_base_channels else {}
    return {
        "block_out_channels": spec.encoder_widths,
        **own_decoder,
        "down_block_types": ["DownEncoderBlock2D"] * num_levels,
        "up_block_types": ["UpDecoderBlock2D"] * num_levels,
        "layers_per_block": spec.num_res_blocks,
        "latent_channels": spec.latent_channels,
        "norm_num_groups": spec.num_groups,
        "batch_norm_eps": spec.batch_norm_eps,
    }


def text_encoder_config(spec: TextEncoderSpec, num_layers: int, dtype: str) -> dict[str, Any]:
    """The whole `config.json` of a text encoder's folder."""
    return {
        "architectures": ["Qwen3ForCausalLM"],
        "model_type": "qwen3",
        "dtype": dtype,
        **qwen3_config(spec, num_layers),
    }


def model_index(settings: Settings, tokenizer_class: str) -> dict[str, Any]:
    """What says which classes a folder's parts are: `model_index.json`."""
    return {
        "_class_name": "Flux2KleinKVPipeline" if settings.reference_caching else "Flux2KleinPipeline",
        "is_distilled": settings.distilled,
        "scheduler": ["diffusers", "FlowMatchEulerDiscreteScheduler"],
        "text_encoder": ["transformers", "Qwen3ForCausalLM"],
        "tokenizer": ["transformers", tokenizer_class],
        "transformer": ["diffusers", "Flux2Transformer2DModel"],
        "vae": ["diffusers", "AutoencoderKLFlux2"],
    }
