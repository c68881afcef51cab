"""The flow transformer: packed tokens of many requests in, velocities out.

Module names are those of the BFL checkpoint, so that code and file can be read side by side. No linear layer has a
bias; LayerNorms have no affine part; modulation is shared by all blocks of a kind and depends on the time alone.
Source: the public reference implementation and diffusers' `Flux2Transformer2DModel`, which parity tests hold it to.

Shape suffixes: R requests (more for mode "store": t = 0), N image-stream rows, M text-stream rows, S = M + N,
D hidden size, C channels (128), X text context width, H heads, d head dim.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kleinbild.model.activation import silu
from kleinbild.model.adapters.applied import Adapted, Changes, Use, project
from kleinbild.model.attention import BlockCaches, ReferenceCache, attend_joint, attend_streams
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


@dataclass(frozen=True, slots=True)
class Modulations:
    """All that the times change, one row a request."""

    img: tuple[Modulated, ...]
    txt: tuple[Modulated, ...]
    single: Modulated
    final: tuple[Tensor, Tensor]  # shift, scale

    def join(self, *others: Modulations) -> Modulations:
        """The rows of all, one after the other."""
        all_of = (self, *others)
        return Modulations(
            img=tuple(_rows([each.img[i] for each in all_of]) for i in range(len(self.img))),
            txt=tuple(_rows([each.txt[i] for each in all_of]) for i in range(len(self.txt))),
            single=_rows([each.single for each in all_of]),
            final=(torch.cat([each.final[0] for each in all_of]), torch.cat([each.final[1] for each in all_of])),
        )


def _rows(parts: Sequence[Modulated]) -> Modulated:
    return Modulated(*(torch.cat(same) for same in zip(*parts, strict=True)))


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


def gated(x_ND: Tensor, gate_RD: Tensor, change_ND: Tensor, source: RowSource) -> Tensor:
    return torch.addcmul(x_ND, source.expand(gate_RD), change_ND)


def swiglu(x: Tensor) -> Tensor:
    gate, value = x.chunk(2, dim=-1)
    return silu(gate) * value


def beside(attended_ND: Tensor, mlp_N: Tensor) -> Tensor:
    """Attention's rows and `swiglu` of the other ones side by side, without copying the latter where none need gradients.

    torch.compile cannot write into a part of a tensor: there they are joined.
    """
    if torch.is_grad_enabled() or torch.compiler.is_compiling():
        return torch.cat((attended_ND, swiglu(mlp_N)), dim=-1)
    gate, value = mlp_N.chunk(2, dim=-1)
    width = attended_ND.shape[-1]
    both = mlp_N.new_empty(len(mlp_N), width + gate.shape[-1])
    both[:, :width] = attended_ND
    torch.mul(silu(gate), value, out=both[:, width:])
    return both


class RMSNorm(nn.Module):
    """Holds the scale; `QKNorm` applies it."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(size))


class QKNorm(nn.Module):
    """Queries and keys (rows, 2, H, d), each scaled by its own numbers; float32."""

    def __init__(self, head_dim: int) -> None:
        super().__init__()
        self.query_norm = RMSNorm(head_dim)
        self.key_norm = RMSNorm(head_dim)

    def forward(self, qk_N2Hd: Tensor) -> Tensor:
        scale_21d = torch.stack((self.query_norm.scale, self.key_norm.scale)).unsqueeze(1)
        return F.rms_norm(qk_N2Hd.float(), qk_N2Hd.shape[-1:], eps=NORM_EPS) * scale_21d


class TimeEmbedder(nn.Module):
    def __init__(self, channels: int, hidden_size: int) -> None:
        super().__init__()
        self.channels = channels
        self.in_layer = Linear(channels, hidden_size)
        self.out_layer = Linear(hidden_size, hidden_size)

    def forward(self, times_R: Tensor, changes: Changes | None = None) -> Tensor:
        embedded = time_embedding(times_R, self.channels).to(self.in_layer.weight.dtype)
        return project(self.out_layer, silu(project(self.in_layer, embedded, changes)), changes)


class Modulation(nn.Module):
    """SiLU of the time vector, projected to `num` times (shift, scale, gate)."""

    def __init__(self, hidden_size: int, num: int) -> None:
        super().__init__()
        self.num = num
        self.lin = Linear(hidden_size, 3 * num * hidden_size)

    def forward(self, vec_RD: Tensor, changes: Changes | None = None) -> list[Modulated]:
        parts = project(self.lin, silu(vec_RD), changes).chunk(3 * self.num, dim=-1)
        return [Modulated(*parts[3 * i : 3 * i + 3]) for i in range(self.num)]


class StreamAttention(nn.Module):
    """One stream's projections around the joint attention."""

    def __init__(self, hidden_size: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.qkv = Linear(hidden_size, 3 * hidden_size)
        self.norm = QKNorm(hidden_size // num_heads)
        self.proj = Linear(hidden_size, hidden_size)

    def project(
        self, x_ND: Tensor, rotations: tuple[Tensor, Tensor], changes: Changes | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        return split_qkv(project(self.qkv, x_ND, changes), self.num_heads, self.norm, rotations)


def split_qkv(
    qkv_N: Tensor, num_heads: int, norm: QKNorm, rotations: tuple[Tensor, Tensor]
) -> tuple[Tensor, Tensor, Tensor]:
    """Fused rows to normalised, rotated queries and keys, and values, each (rows, H, d)."""
    qk_N2Hd, v_N1Hd = qkv_N.unflatten(-1, (3, num_heads, -1)).split((2, 1), dim=1)
    q_NHd, k_NHd = rotate(norm(qk_N2Hd), *rotations).to(qkv_N.dtype).unbind(1)
    return q_NHd, k_NHd, v_N1Hd.squeeze(1)


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
        img_mod: Sequence[Modulated],
        txt_mod: Sequence[Modulated],
        packing: Packing,
        caches: BlockCaches,
        adapted: Adapted,
    ) -> tuple[Tensor, Tensor]:
        img_source, txt_source = packing.stream_source, packing.text_source
        img_in = modulate(img_ND, img_mod[0].shift, img_mod[0].scale, img_source)
        txt_in = modulate(txt_MD, txt_mod[0].shift, txt_mod[0].scale, txt_source)
        txt_out, img_out = attend_streams(
            self.txt_attn.project(txt_in, packing.text_rotations, adapted.text),
            self.img_attn.project(img_in, packing.stream_rotations, adapted.stream),
            packing,
            caches,
        )
        img_out = project(self.img_attn.proj, img_out.flatten(1), adapted.stream)
        txt_out = project(self.txt_attn.proj, txt_out.flatten(1), adapted.text)
        img_ND = gated(img_ND, img_mod[0].gate, img_out, img_source)
        txt_MD = gated(txt_MD, txt_mod[0].gate, txt_out, txt_source)
        img_out = _mlp(self.img_mlp, img_ND, img_mod[1], img_source, adapted.stream)
        txt_out = _mlp(self.txt_mlp, txt_MD, txt_mod[1], txt_source, adapted.text)
        return gated(img_ND, img_mod[1].gate, img_out, img_source), gated(txt_MD, txt_mod[1].gate, txt_out, txt_source)


def _mlp(mlp: nn.ModuleDict, x_ND: Tensor, mod: Modulated, source: RowSource, changes: Changes | None) -> Tensor:
    up = project(mlp["0"], modulate(x_ND, mod.shift, mod.scale, source), changes)
    return project(mlp["2"], swiglu(up), changes)


class SingleBlock(nn.Module):
    """All tokens in one stream: attention and MLP side by side between two fused projections."""

    def __init__(self, spec: TransformerSpec) -> None:
        super().__init__()
        self.spec = spec
        self.linear1 = Linear(spec.hidden_size, 3 * spec.hidden_size + 2 * spec.mlp_size)
        self.linear2 = Linear(spec.hidden_size + spec.mlp_size, spec.hidden_size)
        self.norm = QKNorm(spec.head_dim)

    def forward(
        self,
        x_SD: Tensor,
        mod: Modulated,
        packing: Packing,
        caches: BlockCaches,
        adapted: Adapted,
        *,
        last: bool = False,
    ) -> Tensor:
        """`last`: nothing reads the text rows after this, so that they are left out: (N, D) instead of (S, D)."""
        source, changes = packing.joint_source, adapted.joint
        fused = project(self.linear1, modulate(x_SD, mod.shift, mod.scale, source), changes)
        qkv, mlp = fused.split((3 * self.spec.hidden_size, 2 * self.spec.mlp_size), dim=-1)
        q, k, v = split_qkv(qkv, self.spec.num_heads, self.norm, packing.joint_rotations)
        attended = attend_joint(q, k, v, packing, caches).flatten(1)
        if last:
            x_SD, attended, mlp = (image_rows(each, packing) for each in (x_SD, attended, mlp))
            source, changes = packing.stream_source, adapted.stream
        out = project(self.linear2, beside(attended, mlp), changes)
        return gated(x_SD, mod.gate, out, source)


class FinalLayer(nn.Module):
    def __init__(self, spec: TransformerSpec) -> None:
        super().__init__()
        self.linear = Linear(spec.hidden_size, spec.in_channels)
        projection = Linear(spec.hidden_size, 2 * spec.hidden_size)
        self.adaLN_modulation = nn.ModuleDict({"1": projection})  # 0 is the SiLU

    def modulation(self, vec_RD: Tensor, changes: Changes | None = None) -> tuple[Tensor, Tensor]:
        """Shift and scale, each (R, D)."""
        shift_RD, scale_RD = project(self.adaLN_modulation["1"], silu(vec_RD), changes).chunk(2, dim=-1)
        return shift_RD, scale_RD

    def forward(
        self, x_ND: Tensor, shift_RD: Tensor, scale_RD: Tensor, source: RowSource, changes: Changes | None
    ) -> Tensor:
        return project(self.linear, modulate(x_ND, shift_RD, scale_RD, source), changes)


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
        times: Tensor | Modulations,
        packing: Packing,
        caches: Sequence[ReferenceCache | None] = (),
        adapters: Sequence[tuple[Use, ...]] = (),
    ) -> Tensor:
        """Velocity of every image-stream row, (N, C); rows of references carry no meaning.

        `img_NC` holds, request by request, the image's latent tokens and then (but for mode "stored") its references';
        `txt_MX` the text contexts; `times` each request's time (R,) in [0, 1], or what `modulations` made of it. Mode
        "joint" treats references as part of the sequence. Mode "store" (kv variant, first step) modulates them as at
        t = 0, lets them see only themselves and fills the request's cache in `caches`; mode "keep" (other models) fills
        it in a pass that is a joint one. Mode "stored" reads it, and the references have no rows.

        `adapters`: each segment's own, in the packing's order; empty where nobody has one. With `Modulations` given, what
        they change in `time_layers` is in there.
        """
        adapted = Adapted.of(packing, adapters)
        mods = times if isinstance(times, Modulations) else self.modulations(times, adapted.times)
        if packing.num_stores:
            mods = mods.join(self.modulations(mods.img[0].shift.new_zeros(packing.num_stores), adapted.stored))
        img_ND = project(self.img_in, img_NC, adapted.stream)
        txt_MD = project(self.txt_in, txt_MX, adapted.text)
        for i, block in enumerate(self.double_blocks):
            img_ND, txt_MD = block(
                img_ND, txt_MD, mods.img, mods.txt, packing, BlockCaches(f"double_blocks.{i}", caches), adapted
            )
        x_SD = interleave(txt_MD, img_ND, packing)
        for i, block in enumerate(self.single_blocks):
            last = i == len(self.single_blocks) - 1
            x_SD = block(x_SD, mods.single, packing, BlockCaches(f"single_blocks.{i}", caches), adapted, last=last)
        out: Tensor = self.final_layer(x_SD, *mods.final, packing.stream_source, adapted.stream)
        return out

    def modulations(self, times_R: Tensor, changes: Changes | None = None) -> Modulations:
        """What the times do to the blocks. It depends on nothing else but the requests' adapters, so that it can be kept."""
        vec_RD = self.time_in(times_R, changes)
        return Modulations(
            img=tuple(self.double_stream_modulation_img(vec_RD, changes)),
            txt=tuple(self.double_stream_modulation_txt(vec_RD, changes)),
            single=self.single_stream_modulation(vec_RD, changes)[0],
            final=self.final_layer.modulation(vec_RD, changes),
        )

    @property
    def time_layers(self) -> frozenset[nn.Module]:
        """The layers that only the times go through: those of `modulations`."""
        modulations = (
            self.double_stream_modulation_img,
            self.double_stream_modulation_txt,
            self.single_stream_modulation,
        )
        own = (self.time_in, *modulations, self.final_layer.adaLN_modulation)
        return frozenset(layer for part in own for layer in part.modules())


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
