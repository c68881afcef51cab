"""The text encoder: a Qwen3 language model cut after the last layer that the context needs, without its head.

The context is the hidden states after the chosen layers, side by side on the feature axis. All positions are given to
the transformer, padding too: that is how the models were trained. Layers above the last chosen one are never built.

Written out here, because importing transformers' `Qwen3Model`, which parity tests hold it to, takes longer than making
a picture. Modules are named as in the official files (`model.layers.0.self_attn.q_proj`), so that code and file can be
read side by side.

Shape suffixes: B prompts, L tokens, D hidden size, H heads, d head dim, X context width.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kleinbild.model.activation import silu
from kleinbild.model.blockwise import attend
from kleinbild.model.spec import TextEncoderSpec

INITIAL_SCALE = 0.02


class RMSNorm(nn.Module):
    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(size))

    def forward(self, x: Tensor) -> Tensor:
        """Normalised in float32, scaled in the type of `x`."""
        normed = F.rms_norm(x.float(), x.shape[-1:], eps=self.eps)
        return self.weight * normed.to(x.dtype)


def rotations(num_tokens: int, spec: TextEncoderSpec, like: Tensor) -> tuple[Tensor, Tensor]:
    """Cosines and sines (L, d) of the positions 0, 1, …: here the halves of a head turn together, not neighbours."""
    half = torch.arange(0, spec.head_dim, 2, device=like.device).float() / spec.head_dim
    angles = torch.arange(num_tokens, device=like.device).float()[:, None] * (1.0 / spec.rope_theta**half)
    angles_Ld = torch.cat((angles, angles), dim=-1)
    return angles_Ld.cos().to(like.dtype), angles_Ld.sin().to(like.dtype)


def rotate(x_BHLd: Tensor, cos_Ld: Tensor, sin_Ld: Tensor) -> Tensor:
    first, second = x_BHLd.chunk(2, dim=-1)
    return x_BHLd * cos_Ld + torch.cat((-second, first), dim=-1) * sin_Ld


class Attention(nn.Module):
    """Causal attention in which several heads share a key and a value."""

    def __init__(self, spec: TextEncoderSpec) -> None:
        super().__init__()
        self.head_dim = spec.head_dim
        queries, keys = spec.num_heads * spec.head_dim, spec.num_key_value_heads * spec.head_dim
        self.q_proj = nn.Linear(spec.hidden_size, queries, bias=False)
        self.k_proj = nn.Linear(spec.hidden_size, keys, bias=False)
        self.v_proj = nn.Linear(spec.hidden_size, keys, bias=False)
        self.o_proj = nn.Linear(queries, spec.hidden_size, bias=False)
        self.q_norm = RMSNorm(spec.head_dim, spec.norm_eps)
        self.k_norm = RMSNorm(spec.head_dim, spec.norm_eps)

    def forward(self, x_BLD: Tensor, turns: tuple[Tensor, Tensor], seen_B1LL: Tensor) -> Tensor:
        q = rotate(self.q_norm(self._heads(self.q_proj(x_BLD))).transpose(1, 2), *turns)
        k = rotate(self.k_norm(self._heads(self.k_proj(x_BLD))).transpose(1, 2), *turns)
        v = self._heads(self.v_proj(x_BLD)).transpose(1, 2)
        shared = q.shape[1] // k.shape[1]
        k, v = (x.repeat_interleave(shared, dim=1) for x in (k, v))
        out: Tensor = self.o_proj(attend(q, k, v, seen_B1LL).transpose(1, 2).flatten(2))
        return out

    def _heads(self, x: Tensor) -> Tensor:
        split: Tensor = x.unflatten(-1, (-1, self.head_dim))
        return split


class MLP(nn.Module):
    def __init__(self, spec: TextEncoderSpec) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(spec.hidden_size, spec.mlp_size, bias=False)
        self.up_proj = nn.Linear(spec.hidden_size, spec.mlp_size, bias=False)
        self.down_proj = nn.Linear(spec.mlp_size, spec.hidden_size, bias=False)

    def forward(self, x_BLD: Tensor) -> Tensor:
        out: Tensor = self.down_proj(silu(self.gate_proj(x_BLD)) * self.up_proj(x_BLD))
        return out


class Layer(nn.Module):
    def __init__(self, spec: TextEncoderSpec) -> None:
        super().__init__()
        self.self_attn = Attention(spec)
        self.mlp = MLP(spec)
        self.input_layernorm = RMSNorm(spec.hidden_size, spec.norm_eps)
        self.post_attention_layernorm = RMSNorm(spec.hidden_size, spec.norm_eps)

    def forward(self, x_BLD: Tensor, turns: tuple[Tensor, Tensor], seen_B1LL: Tensor) -> Tensor:
        x_BLD = x_BLD + self.self_attn(self.input_layernorm(x_BLD), turns, seen_B1LL)
        out: Tensor = x_BLD + self.mlp(self.post_attention_layernorm(x_BLD))
        return out


class Trunk(nn.Module):
    """What the official files call `model`, without its final norm: states are taken raw."""

    def __init__(self, spec: TextEncoderSpec) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(
            spec.vocab_size, spec.hidden_size, _weight=torch.empty(spec.vocab_size, spec.hidden_size)
        )
        self.layers = nn.ModuleList(Layer(spec) for _ in range(spec.num_layers_needed))


class TextEncoder(nn.Module):
    """Token ids to text context."""

    def __init__(self, spec: TextEncoderSpec) -> None:
        super().__init__()
        self.spec = spec
        self.model = Trunk(spec)
        for module in self.modules():  # where training starts from
            # Not on the meta device: loading overwrites it, and torch would import its compiler to draw nothing.
            if isinstance(module, nn.Linear | nn.Embedding) and not module.weight.is_meta:
                nn.init.normal_(module.weight, std=INITIAL_SCALE)

    def forward(self, ids_BL: Tensor, mask_BL: Tensor) -> Tensor:
        """Ids and mask (1: token, 0: padding) to the context (B, L, X)."""
        x_BLD = self.model.embed_tokens(ids_BL)
        turns = rotations(ids_BL.shape[1], self.spec, x_BLD)
        seen_B1LL = visible(mask_BL)
        states = []
        for layer in self.model.layers:
            x_BLD = layer(x_BLD, turns, seen_B1LL)
            states.append(x_BLD)
        return torch.cat([states[layer - 1] for layer in self.spec.layers], dim=-1)


def visible(mask_BL: Tensor) -> Tensor:
    """Who sees whom, (B, 1, L, L): tokens those before them and themselves, nobody padding."""
    length = mask_BL.shape[1]
    causal_LL = torch.ones(length, length, dtype=torch.bool, device=mask_BL.device).tril()
    return causal_LL & mask_BL.bool()[:, None, None, :]
