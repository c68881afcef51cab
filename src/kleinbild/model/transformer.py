"""The flow transformer: packed tokens of many requests in, velocities out.

Module names are those of the BFL checkpoint, so that code and file can be read side by side. No linear layer has a
bias; LayerNorms have no affine part; modulation is shared by all blocks of a kind and depends on the time alone.
Source: the public reference implementation and diffusers' `Flux2Transformer2DModel`, which parity tests hold it to.

Shape suffixes: R requests (one more for mode "store": t = 0), N image-stream rows, M text-stream rows, S = M + N,
D hidden size, C channels (128), X text context width, H heads, d head dim.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kleinbild.model.activation import silu
from kleinbild.model.attention import KeyValue, ReferenceCache, attend_joint, attend_streams
from kleinbild.model.linear import Linear
from kleinbild.model.packing import Packing, RowSource
from kleinbild.model.rope import rotate
from kleinbild.model.spec import TransformerSpec

NORM_EPS = 1e-6
TIME_FACTOR = 1000.0
MAX_PERIOD = 10_000.0


class Modulated(NamedTuple):
    """One (shift, scale, gate) of modulation, each (R, D)."""

    shift: Tensor
    scale: Tensor
    gate: Tensor


def time_embedding(times_R: Tensor, channels: int) -> Tensor:
    """Sinusoids (R, channels) of 1000·t: cosines before sines, in float32."""
    half = channels // 2
    exponents = -math.log(MAX_PERIOD) * torch.arange(half, dtype=torch.float32, device=times_R.device) / half
    angles = TIME_FACTOR * times_R.float()[:, None] * exponents.exp()
    return torch.cat((angles.cos(), angles.sin()), dim=-1)


def normalize(x_ND: Tensor) -> Tensor:
    return F.layer_norm(x_ND, x_ND.shape[-1:], eps=NORM_EPS)


def modulate(x_ND: Tensor, shift_RD: Tensor, scale_RD: Tensor, source: RowSource) -> Tensor:
    return torch.addcmul(source.expand(shift_RD), normalize(x_ND), source.expand(1 + scale_RD))


def swiglu(x: Tensor) -> Tensor:
    gate, value = x.chunk(2, dim=-1)
    return silu(gate) * value


class RMSNorm(nn.Module):
    def __init__(self, size: int) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(size))

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x, x.shape[-1:], self.scale.to(x.dtype), NORM_EPS)


class QKNorm(nn.Module):
    def __init__(self, head_dim: int) -> None:
        super().__init__()
        self.query_norm = RMSNorm(head_dim)
        self.key_norm = RMSNorm(head_dim)


class TimeEmbedder(nn.Module):
    def __init__(self, channels: int, hidden_size: int) -> None:
        super().__init__()
        self.channels = channels
        self.in_layer = Linear(channels, hidden_size)
        self.out_layer = Linear(hidden_size, hidden_size)

    def forward(self, times_R: Tensor) -> Tensor:
        embedded = time_embedding(times_R, self.channels).to(self.in_layer.weight.dtype)
        out: Tensor = self.out_layer(silu(self.in_layer(embedded)))
        return out


class Modulation(nn.Module):
    """SiLU of the time vector, projected to `num` times (shift, scale, gate)."""

    def __init__(self, hidden_size: int, num: int) -> None:
        super().__init__()
        self.num = num
        self.lin = Linear(hidden_size, 3 * num * hidden_size)

    def forward(self, vec_RD: Tensor) -> list[Modulated]:
        parts = self.lin(silu(vec_RD)).chunk(3 * self.num, dim=-1)
        return [Modulated(*parts[3 * i : 3 * i + 3]) for i in range(self.num)]


class StreamAttention(nn.Module):
    """One stream's projections around the joint attention."""

    def __init__(self, hidden_size: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.qkv = Linear(hidden_size, 3 * hidden_size)
        self.norm = QKNorm(hidden_size // num_heads)
        self.proj = Linear(hidden_size, hidden_size)

    def project(self, x_ND: Tensor, rotations: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        return split_qkv(self.qkv(x_ND), self.num_heads, self.norm, rotations)


def split_qkv(
    qkv_N: Tensor, num_heads: int, norm: QKNorm, rotations: tuple[Tensor, Tensor]
) -> tuple[Tensor, Tensor, Tensor]:
    """Fused rows to normalised, rotated queries and keys, and values, each (rows, H, d)."""
    q_NHd, k_NHd, v_NHd = qkv_N.unflatten(-1, (3, num_heads, -1)).unbind(1)
    return rotate(norm.query_norm(q_NHd), *rotations), rotate(norm.key_norm(k_NHd), *rotations), v_NHd


class DoubleBlock(nn.Module):
    """Text and image with weights of their own, attending to each other."""

    def __init__(self, spec: TransformerSpec) -> None:
        super().__init__()
        for stream in ("img", "txt"):
            self.add_module(f"{stream}_attn", StreamAttention(spec.hidden_size, spec.num_heads))
            up = Linear(spec.hidden_size, 2 * spec.mlp_size)
            down = Linear(spec.mlp_size, spec.hidden_size)
            self.add_module(f"{stream}_mlp", nn.ModuleDict({"0": up, "2": down}))  # 1 is the activation

    img_attn: StreamAttention
    txt_attn: StreamAttention
    img_mlp: nn.ModuleDict
    txt_mlp: nn.ModuleDict

    def forward(
        self,
        img_ND: Tensor,
        txt_MD: Tensor,
        img_mod: list[Modulated],
        txt_mod: list[Modulated],
        packing: Packing,
        cached: list[KeyValue] | None,
    ) -> tuple[Tensor, Tensor, list[KeyValue]]:
        img_source, txt_source = packing.stream_source, packing.text_source
        img_in = modulate(img_ND, img_mod[0].shift, img_mod[0].scale, img_source)
        txt_in = modulate(txt_MD, txt_mod[0].shift, txt_mod[0].scale, txt_source)
        txt_out, img_out, kept = attend_streams(
            self.txt_attn.project(txt_in, packing.text_rotations),
            self.img_attn.project(img_in, packing.stream_rotations),
            packing,
            cached,
        )
        img_ND = img_ND + img_source.expand(img_mod[0].gate) * self.img_attn.proj(img_out.flatten(1))
        txt_MD = txt_MD + txt_source.expand(txt_mod[0].gate) * self.txt_attn.proj(txt_out.flatten(1))
        img_ND = img_ND + _mlp(self.img_mlp, img_ND, img_mod[1], img_source)
        txt_MD = txt_MD + _mlp(self.txt_mlp, txt_MD, txt_mod[1], txt_source)
        return img_ND, txt_MD, kept


def _mlp(mlp: nn.ModuleDict, x_ND: Tensor, mod: Modulated, source: RowSource) -> Tensor:
    out: Tensor = mlp["2"](swiglu(mlp["0"](modulate(x_ND, mod.shift, mod.scale, source))))
    return source.expand(mod.gate) * out


class SingleBlock(nn.Module):
    """All tokens in one stream: attention and MLP side by side between two fused projections."""

    def __init__(self, spec: TransformerSpec) -> None:
        super().__init__()
        self.spec = spec
        self.linear1 = Linear(spec.hidden_size, 3 * spec.hidden_size + 2 * spec.mlp_size)
        self.linear2 = Linear(spec.hidden_size + spec.mlp_size, spec.hidden_size)
        self.norm = QKNorm(spec.head_dim)

    def forward(
        self, x_SD: Tensor, mod: Modulated, packing: Packing, cached: list[KeyValue] | None
    ) -> tuple[Tensor, list[KeyValue]]:
        source = packing.joint_source
        fused = self.linear1(modulate(x_SD, mod.shift, mod.scale, source))
        qkv, mlp = fused.split((3 * self.spec.hidden_size, 2 * self.spec.mlp_size), dim=-1)
        q, k, v = split_qkv(qkv, self.spec.num_heads, self.norm, packing.joint_rotations)
        attended, kept = attend_joint(q, k, v, packing, cached)
        out = self.linear2(torch.cat((attended.flatten(1), swiglu(mlp)), dim=-1))
        return x_SD + source.expand(mod.gate) * out, kept


class FinalLayer(nn.Module):
    def __init__(self, spec: TransformerSpec) -> None:
        super().__init__()
        self.linear = Linear(spec.hidden_size, spec.in_channels)
        projection = Linear(spec.hidden_size, 2 * spec.hidden_size)
        self.adaLN_modulation = nn.ModuleDict({"1": projection})  # 0 is the SiLU

    def forward(self, x_ND: Tensor, vec_RD: Tensor, source: RowSource) -> Tensor:
        shift_RD, scale_RD = self.adaLN_modulation["1"](silu(vec_RD)).chunk(2, dim=-1)
        out: Tensor = self.linear(modulate(x_ND, shift_RD, scale_RD, source))
        return out


class Flux2Transformer(nn.Module):
    """The whole network, from packed latents and text context to packed velocities."""

    def __init__(self, spec: TransformerSpec) -> None:
        super().__init__()
        self.spec = spec
        self.img_in = Linear(spec.in_channels, spec.hidden_size)
        self.txt_in = Linear(spec.context_size, spec.hidden_size)
        self.time_in = TimeEmbedder(spec.time_channels, spec.hidden_size)
        self.double_stream_modulation_img = Modulation(spec.hidden_size, 2)
        self.double_stream_modulation_txt = Modulation(spec.hidden_size, 2)
        self.single_stream_modulation = Modulation(spec.hidden_size, 1)
        self.double_blocks = nn.ModuleList(DoubleBlock(spec) for _ in range(spec.num_double_blocks))
        self.single_blocks = nn.ModuleList(SingleBlock(spec) for _ in range(spec.num_single_blocks))
        self.final_layer = FinalLayer(spec)

    def forward(
        self,
        img_NC: Tensor,
        txt_MX: Tensor,
        times_R: Tensor,
        packing: Packing,
        cache: ReferenceCache | None = None,
    ) -> Tensor:
        """Velocity of every image-stream row, (N, C); rows of references carry no meaning.

        `img_NC` holds, request by request, the image's latent tokens and then (modes "joint" and "store") its
        references'; `txt_MX` the text contexts; `times_R` each request's time in [0, 1]. Mode "joint" treats references
        as part of the sequence. Mode "store" (kv variant, first step) modulates them as at t = 0, lets them see only
        themselves and fills `cache`; mode "stored" reads it, and the references have no rows.
        """
        if (cache is None) != (packing.mode == "joint"):
            raise ValueError(f"mode {packing.mode!r} and a cache {'absent' if cache is None else 'given'} do not fit")
        if packing.mode == "store":
            times_R = torch.cat((times_R, times_R.new_zeros(1)))
        vec_RD = self.time_in(times_R)
        img_mod = self.double_stream_modulation_img(vec_RD)
        txt_mod = self.double_stream_modulation_txt(vec_RD)
        (mod,) = self.single_stream_modulation(vec_RD)
        img_ND, txt_MD = self.img_in(img_NC), self.txt_in(txt_MX)

        for i, block in enumerate(self.double_blocks):
            img_ND, txt_MD, kept = block(
                img_ND, txt_MD, img_mod, txt_mod, packing, _cached(cache, packing, "double", i)
            )
            _keep(cache, packing, "double", i, kept)
        x_SD = interleave(txt_MD, img_ND, packing)
        for i, block in enumerate(self.single_blocks):
            x_SD, kept = block(x_SD, mod, packing, _cached(cache, packing, "single", i))
            _keep(cache, packing, "single", i, kept)
        out: Tensor = self.final_layer(image_rows(x_SD, packing), vec_RD, packing.stream_source)
        return out


def interleave(txt_MD: Tensor, img_ND: Tensor, packing: Packing) -> Tensor:
    """Two streams to one, request by request: text rows, then image-stream rows."""
    parts, text_at, stream_at = [], 0, 0
    for run in packing.runs:
        text_end, stream_end = text_at + run.count * run.num_text, stream_at + run.count * run.num_stream
        of_text = txt_MD[text_at:text_end].unflatten(0, (run.count, run.num_text))
        of_stream = img_ND[stream_at:stream_end].unflatten(0, (run.count, run.num_stream))
        parts.append(torch.cat((of_text, of_stream), dim=1).flatten(0, 1))
        text_at, stream_at = text_end, stream_end
    return torch.cat(parts)


def image_rows(x_SD: Tensor, packing: Packing) -> Tensor:
    """The image-stream rows of the joint stream, in their order."""
    parts, at = [], 0
    for run in packing.runs:
        end = at + run.count * run.num_all
        parts.append(x_SD[at:end].unflatten(0, (run.count, run.num_all))[:, run.num_text :].flatten(0, 1))
        at = end
    return torch.cat(parts)


def _cached(cache: ReferenceCache | None, packing: Packing, kind: str, index: int) -> list[KeyValue] | None:
    return cache.blocks[(kind, index)] if cache is not None and packing.mode == "stored" else None


def _keep(cache: ReferenceCache | None, packing: Packing, kind: str, index: int, kept: list[KeyValue]) -> None:
    if cache is not None and packing.mode == "store":
        cache.blocks[(kind, index)] = kept
