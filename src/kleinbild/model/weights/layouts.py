"""Names: how each of our tensors is stored in each layout.

Our names are BFL's. A `Source` says, for one of our tensors, which tensors of a file hold it and in what form; a whole
naming is a table of sources, built from the spec. The same table serves reading, checking and writing, so that the
three cannot disagree. No torch here: checks read headers only.

What differs in diffusers' naming: q, k and v apart; the final layer's (shift, scale) as (scale, shift); the
autoencoder's attention as linear layers instead of 1x1 convolutions; decoder levels counted from the low resolution.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

from kleinbild.model.spec import AutoencoderSpec, TransformerSpec

Naming = Literal["bfl", "diffusers"]
Form = Literal["same", "joined", "swapped", "linear"]
Shape = tuple[int, ...]

COMFYUI_PREFIX = "model.diffusion_model."


@dataclass(frozen=True, slots=True)
class Source:
    """Where one of our tensors lies in a file.

    `form`: "same"; "joined": ours is the rows of all `names`, one below the other; "swapped": its two halves of rows
    change places; "linear": a matrix, ours is a 1x1 convolution.
    """

    names: tuple[str, ...]
    form: Form = "same"

    def stored_shape(self, shape: Shape) -> Shape:
        """The shape of each tensor in the file, for ours of shape `shape`."""
        if self.form == "joined":
            return (shape[0] // len(self.names), *shape[1:])
        return shape[:2] if self.form == "linear" else shape


Sources = dict[str, Source]

TRANSFORMER_EDGES = {
    "img_in.weight": "x_embedder.weight",
    "txt_in.weight": "context_embedder.weight",
    "time_in.in_layer.weight": "time_guidance_embed.timestep_embedder.linear_1.weight",
    "time_in.out_layer.weight": "time_guidance_embed.timestep_embedder.linear_2.weight",
    "double_stream_modulation_img.lin.weight": "double_stream_modulation_img.linear.weight",
    "double_stream_modulation_txt.lin.weight": "double_stream_modulation_txt.linear.weight",
    "single_stream_modulation.lin.weight": "single_stream_modulation.linear.weight",
    "final_layer.linear.weight": "proj_out.weight",
    "final_layer.adaLN_modulation.1.weight": "norm_out.linear.weight",
}
DOUBLE_BLOCK = {
    "img_attn.qkv.weight": ("attn.to_q.weight", "attn.to_k.weight", "attn.to_v.weight"),
    "img_attn.norm.query_norm.scale": ("attn.norm_q.weight",),
    "img_attn.norm.key_norm.scale": ("attn.norm_k.weight",),
    "img_attn.proj.weight": ("attn.to_out.0.weight",),
    "img_mlp.0.weight": ("ff.linear_in.weight",),
    "img_mlp.2.weight": ("ff.linear_out.weight",),
    "txt_attn.qkv.weight": ("attn.add_q_proj.weight", "attn.add_k_proj.weight", "attn.add_v_proj.weight"),
    "txt_attn.norm.query_norm.scale": ("attn.norm_added_q.weight",),
    "txt_attn.norm.key_norm.scale": ("attn.norm_added_k.weight",),
    "txt_attn.proj.weight": ("attn.to_add_out.weight",),
    "txt_mlp.0.weight": ("ff_context.linear_in.weight",),
    "txt_mlp.2.weight": ("ff_context.linear_out.weight",),
}
SINGLE_BLOCK = {
    "linear1.weight": "attn.to_qkv_mlp_proj.weight",
    "linear2.weight": "attn.to_out.weight",
    "norm.query_norm.scale": "attn.norm_q.weight",
    "norm.key_norm.scale": "attn.norm_k.weight",
}


def same_names(shapes: Mapping[str, Shape]) -> Sources:
    """The naming that is ours."""
    return {name: Source((name,)) for name in shapes}


def diffusers_transformer(spec: TransformerSpec) -> Sources:
    """Our transformer tensors in diffusers' `Flux2Transformer2DModel`."""
    sources = {ours: Source((theirs,)) for ours, theirs in TRANSFORMER_EDGES.items()}
    final = "final_layer.adaLN_modulation.1.weight"
    sources[final] = Source(sources[final].names, "swapped")
    for i in range(spec.num_double_blocks):
        for part, parts in DOUBLE_BLOCK.items():
            names = tuple(f"transformer_blocks.{i}.{theirs}" for theirs in parts)
            sources[f"double_blocks.{i}.{part}"] = Source(names, "joined" if len(names) > 1 else "same")
    for i in range(spec.num_single_blocks):
        for part, theirs in SINGLE_BLOCK.items():
            sources[f"single_blocks.{i}.{part}"] = Source((f"single_transformer_blocks.{i}.{theirs}",))
    return sources


def diffusers_autoencoder(spec: AutoencoderSpec) -> Sources:
    """Our autoencoder tensors in diffusers' `AutoencoderKLFlux2`."""
    sources: Sources = {}
    for ours, theirs in _autoencoder_layers(spec):
        form: Form = "linear" if ".attentions.0.to_" in theirs else "same"
        for kind in ("weight", "bias"):
            sources[f"{ours}.{kind}"] = Source((f"{theirs}.{kind}",), form if kind == "weight" else "same")
    for name in ("bn.running_mean", "bn.running_var"):
        sources[name] = Source((name,))
    return sources


def _autoencoder_layers(spec: AutoencoderSpec) -> Iterator[tuple[str, str]]:
    """Pairs of (our, diffusers') layer names; each layer has a weight and a bias."""
    levels = range(len(spec.channel_multipliers))
    last = len(levels) - 1
    yield "encoder.quant_conv", "quant_conv"
    yield "decoder.post_quant_conv", "post_quant_conv"
    for half in ("encoder", "decoder"):
        yield f"{half}.conv_in", f"{half}.conv_in"
        yield f"{half}.norm_out", f"{half}.conv_norm_out"
        yield f"{half}.conv_out", f"{half}.conv_out"
        yield from _middle(f"{half}.mid", f"{half}.mid_block")
    for i in levels:
        narrows = i > 0 and spec.channel_multipliers[i] != spec.channel_multipliers[i - 1]
        for k in range(spec.num_res_blocks):
            yield from _resnet(f"encoder.down.{i}.block.{k}", f"encoder.down_blocks.{i}.resnets.{k}", narrows and not k)
        if i < last:
            yield f"encoder.down.{i}.downsample.conv", f"encoder.down_blocks.{i}.downsamplers.0.conv"
        widens = i < last and spec.channel_multipliers[i] != spec.channel_multipliers[i + 1]
        up = f"decoder.up_blocks.{last - i}"  # counted from the low resolution
        for k in range(spec.num_res_blocks + 1):
            yield from _resnet(f"decoder.up.{i}.block.{k}", f"{up}.resnets.{k}", widens and not k)
        if i > 0:
            yield f"decoder.up.{i}.upsample.conv", f"{up}.upsamplers.0.conv"


def _resnet(ours: str, theirs: str, has_shortcut: bool) -> Iterator[tuple[str, str]]:
    for layer in ("norm1", "conv1", "norm2", "conv2"):
        yield f"{ours}.{layer}", f"{theirs}.{layer}"
    if has_shortcut:
        yield f"{ours}.nin_shortcut", f"{theirs}.conv_shortcut"


def _middle(ours: str, theirs: str) -> Iterator[tuple[str, str]]:
    yield from _resnet(f"{ours}.block_1", f"{theirs}.resnets.0", False)
    yield from _resnet(f"{ours}.block_2", f"{theirs}.resnets.1", False)
    names = {"norm": "group_norm", "q": "to_q", "k": "to_k", "v": "to_v", "proj_out": "to_out.0"}
    for our_part, their_part in names.items():
        yield f"{ours}.attn_1.{our_part}", f"{theirs}.attentions.0.{their_part}"
