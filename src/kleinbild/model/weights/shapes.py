"""Every tensor of every network with its shape, from the spec alone and without torch.

A file is checked against these before anything is built. A test holds them equal to the networks' own state.
"""

from __future__ import annotations

from collections.abc import Iterator

from kleinbild.model.spec import AutoencoderSpec, TextEncoderSpec, TransformerSpec
from kleinbild.model.weights.layouts import Shape


def transformer_shapes(spec: TransformerSpec) -> dict[str, Shape]:
    hidden, mlp = spec.hidden_size, spec.mlp_size
    shapes: dict[str, Shape] = {
        "img_in.weight": (hidden, spec.in_channels),
        "txt_in.weight": (hidden, spec.context_size),
        "time_in.in_layer.weight": (hidden, spec.time_channels),
        "time_in.out_layer.weight": (hidden, hidden),
        "double_stream_modulation_img.lin.weight": (6 * hidden, hidden),
        "double_stream_modulation_txt.lin.weight": (6 * hidden, hidden),
        "single_stream_modulation.lin.weight": (3 * hidden, hidden),
        "final_layer.linear.weight": (spec.in_channels, hidden),
        "final_layer.adaLN_modulation.1.weight": (2 * hidden, hidden),
    }
    for i in range(spec.num_double_blocks):
        for stream in ("img", "txt"):
            block = f"double_blocks.{i}.{stream}"
            shapes[f"{block}_attn.qkv.weight"] = (3 * hidden, hidden)
            shapes[f"{block}_attn.norm.query_norm.scale"] = (spec.head_dim,)
            shapes[f"{block}_attn.norm.key_norm.scale"] = (spec.head_dim,)
            shapes[f"{block}_attn.proj.weight"] = (hidden, hidden)
            shapes[f"{block}_mlp.0.weight"] = (2 * mlp, hidden)
            shapes[f"{block}_mlp.2.weight"] = (hidden, mlp)
    for i in range(spec.num_single_blocks):
        shapes[f"single_blocks.{i}.linear1.weight"] = (3 * hidden + 2 * mlp, hidden)
        shapes[f"single_blocks.{i}.linear2.weight"] = (hidden, hidden + mlp)
        shapes[f"single_blocks.{i}.norm.query_norm.scale"] = (spec.head_dim,)
        shapes[f"single_blocks.{i}.norm.key_norm.scale"] = (spec.head_dim,)
    return shapes


def text_encoder_shapes(spec: TextEncoderSpec, num_layers: int) -> dict[str, Shape]:
    """The first `num_layers` layers and the embedding; neither final norm nor head."""
    hidden, queries = spec.hidden_size, spec.num_heads * spec.head_dim
    keys = spec.num_key_value_heads * spec.head_dim
    shapes: dict[str, Shape] = {"model.embed_tokens.weight": (spec.vocab_size, hidden)}
    for i in range(num_layers):
        layer = f"model.layers.{i}"
        shapes[f"{layer}.self_attn.q_proj.weight"] = (queries, hidden)
        shapes[f"{layer}.self_attn.k_proj.weight"] = (keys, hidden)
        shapes[f"{layer}.self_attn.v_proj.weight"] = (keys, hidden)
        shapes[f"{layer}.self_attn.o_proj.weight"] = (hidden, queries)
        shapes[f"{layer}.self_attn.q_norm.weight"] = (spec.head_dim,)
        shapes[f"{layer}.self_attn.k_norm.weight"] = (spec.head_dim,)
        shapes[f"{layer}.mlp.gate_proj.weight"] = (spec.mlp_size, hidden)
        shapes[f"{layer}.mlp.up_proj.weight"] = (spec.mlp_size, hidden)
        shapes[f"{layer}.mlp.down_proj.weight"] = (hidden, spec.mlp_size)
        shapes[f"{layer}.input_layernorm.weight"] = (hidden,)
        shapes[f"{layer}.post_attention_layernorm.weight"] = (hidden,)
    return shapes


def autoencoder_shapes(spec: AutoencoderSpec) -> dict[str, Shape]:
    """All tensors but BatchNorm's counter, which files may hold and nothing reads."""
    shapes: dict[str, Shape] = {}
    for name, shape in _autoencoder_layers(spec):
        shapes[f"{name}.weight"] = shape
        shapes[f"{name}.bias"] = shape[:1]
    shapes["bn.running_mean"] = shapes["bn.running_var"] = (spec.packed_channels,)
    return shapes


def _autoencoder_layers(spec: AutoencoderSpec) -> Iterator[tuple[str, Shape]]:
    latent, last = spec.latent_channels, len(spec.channel_multipliers) - 1
    widths = spec.encoder_widths
    yield "encoder.conv_in", (widths[0], 3, 3, 3)
    yield "encoder.conv_out", (2 * latent, widths[last], 3, 3)
    yield "encoder.quant_conv", (2 * latent, 2 * latent, 1, 1)
    yield "encoder.norm_out", (widths[last],)
    yield from _middle("encoder.mid", widths[last])
    for i, width in enumerate(widths):
        for k in range(spec.num_res_blocks):
            yield from _resnet(f"encoder.down.{i}.block.{k}", width if k else widths[max(i - 1, 0)], width)
        if i < last:
            yield f"encoder.down.{i}.downsample.conv", (width, width, 3, 3)
    widths = spec.decoder_widths
    yield "decoder.post_quant_conv", (latent, latent, 1, 1)
    yield "decoder.conv_in", (widths[last], latent, 3, 3)
    yield "decoder.conv_out", (3, widths[0], 3, 3)
    yield "decoder.norm_out", (widths[0],)
    yield from _middle("decoder.mid", widths[last])
    for i, width in enumerate(widths):
        for k in range(spec.num_res_blocks + 1):
            yield from _resnet(f"decoder.up.{i}.block.{k}", width if k else widths[min(i + 1, last)], width)
        if i > 0:
            yield f"decoder.up.{i}.upsample.conv", (width, width, 3, 3)


def _resnet(name: str, num_in: int, num_out: int) -> Iterator[tuple[str, Shape]]:
    yield f"{name}.norm1", (num_in,)
    yield f"{name}.conv1", (num_out, num_in, 3, 3)
    yield f"{name}.norm2", (num_out,)
    yield f"{name}.conv2", (num_out, num_out, 3, 3)
    if num_in != num_out:
        yield f"{name}.nin_shortcut", (num_out, num_in, 1, 1)


def _middle(name: str, width: int) -> Iterator[tuple[str, Shape]]:
    yield from _resnet(f"{name}.block_1", width, width)
    yield from _resnet(f"{name}.block_2", width, width)
    yield f"{name}.attn_1.norm", (width,)
    for part in ("q", "k", "v", "proj_out"):
        yield f"{name}.attn_1.{part}", (width, width, 1, 1)
