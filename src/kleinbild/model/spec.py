"""The numbers that make a model of the family: everything that differs between nano, klein-4B and klein-9B.

A model is a spec plus weights; the networks of this package are built from a spec and know no model by name.
Specs of official models are read off the shapes in their weights (`kleinbild.model.weights`), never guessed by name.
Source of the numbers: the public reference implementation and diffusers' `Flux2Transformer2DModel`.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class TransformerSpec:
    """The flow transformer. `context_size` is the width of the text context; the MLP is SwiGLU, `mlp_ratio` wide."""

    hidden_size: int
    num_heads: int
    num_double_blocks: int
    num_single_blocks: int
    context_size: int
    in_channels: int = 128
    mlp_ratio: float = 3.0
    rope_axes: tuple[int, ...] = (32, 32, 32, 32)
    rope_theta: float = 2000.0
    time_channels: int = 256

    def __post_init__(self) -> None:
        if self.hidden_size % self.num_heads:
            raise ValueError(f"hidden_size {self.hidden_size} is not a multiple of num_heads {self.num_heads}")
        if sum(self.rope_axes) != self.head_dim:
            raise ValueError(f"rope_axes {self.rope_axes} must sum to the head dim {self.head_dim}")

    @property
    def head_dim(self) -> int:
        return self.hidden_size // self.num_heads

    @property
    def mlp_size(self) -> int:
        return int(self.hidden_size * self.mlp_ratio)


@dataclass(frozen=True, slots=True)
class TextEncoderSpec:
    """A Qwen3 language model without its head, and the hidden states taken from it (`layers`, counted from 1)."""

    hidden_size: int
    num_layers: int
    num_heads: int
    num_key_value_heads: int
    head_dim: int
    mlp_size: int
    vocab_size: int
    layers: tuple[int, ...] = (9, 18, 27)
    max_tokens: int = 512
    rope_theta: float = 1_000_000.0
    norm_eps: float = 1e-6

    def __post_init__(self) -> None:
        if not self.layers or min(self.layers) < 1 or max(self.layers) >= self.num_layers:
            # The last layer's state leaves transformers after the final norm: another scale, so it is never taken.
            raise ValueError(f"text layers {self.layers} must lie in 1..{self.num_layers - 1}")

    @property
    def context_size(self) -> int:
        return self.hidden_size * len(self.layers)

    @property
    def num_layers_needed(self) -> int:
        return max(self.layers)


@dataclass(frozen=True, slots=True)
class AutoencoderSpec:
    """The picture autoencoder: 8 times smaller each way, then 2x2 patches into channels: 16 times, 4·z channels.

    `decoder_base_channels` where the decoder has another width than the encoder, as FLUX.2's small decoder: 96.
    """

    base_channels: int = 128
    channel_multipliers: tuple[int, ...] = (1, 2, 4, 4)
    num_res_blocks: int = 2
    latent_channels: int = 32
    num_groups: int = 32
    batch_norm_eps: float = 1e-4
    decoder_base_channels: int | None = None

    @property
    def encoder_widths(self) -> list[int]:
        """Channels of its levels, the one with the most pixels first."""
        return [self.base_channels * multiplier for multiplier in self.channel_multipliers]

    @property
    def decoder_widths(self) -> list[int]:
        base = self.base_channels if self.decoder_base_channels is None else self.decoder_base_channels
        return [base * multiplier for multiplier in self.channel_multipliers]

    @property
    def packed_channels(self) -> int:
        return 4 * self.latent_channels

    @property
    def pixels_per_token(self) -> int:
        """The side of the square of pixels that one token stands for."""
        return int(2 ** (len(self.channel_multipliers) - 1)) * 2


@dataclass(frozen=True, slots=True)
class ModelSpec:
    """A whole model: its three networks and the settings that it was made for."""

    transformer: TransformerSpec
    text_encoder: TextEncoderSpec
    autoencoder: AutoencoderSpec
    default_steps: int = 4
    default_guidance: float = 1.0
    default_size: int = 1024
    distilled: bool = True

    def __post_init__(self) -> None:
        if self.transformer.context_size != self.text_encoder.context_size:
            raise ValueError(
                f"the transformer expects a text context {self.transformer.context_size} wide, "
                f"the text encoder gives {self.text_encoder.context_size}"
            )
        if self.transformer.in_channels != self.autoencoder.packed_channels:
            raise ValueError(
                f"the transformer works on {self.transformer.in_channels} channels, "
                f"the autoencoder gives {self.autoencoder.packed_channels}"
            )
