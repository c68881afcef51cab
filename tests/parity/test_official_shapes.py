"""The full key sets and shapes of the official models fit ours exactly, in every layout, on the meta device.

diffusers' and transformers' classes with the official numbers stand in for the official folders; the BFL file's names
are generated here from the published description, independently of the tables in `kleinbild.model.weights`.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKLFlux2, Flux2Transformer2DModel
from diffusers.loaders.single_file_utils import convert_flux2_transformer_checkpoint_to_diffusers
from torch import Tensor, nn
from transformers import Qwen3Config, Qwen3ForCausalLM

from kleinbild.model import official
from kleinbild.model.autoencoder import Autoencoder
from kleinbild.model.spec import AutoencoderSpec, TextEncoderSpec, TransformerSpec
from kleinbild.model.text_encoder import TextEncoder
from kleinbild.model.transformer import Flux2Transformer
from kleinbild.model.weights.components import Component, recognize
from kleinbild.model.weights.convert import convert_from_ours, convert_to_ours
from kleinbild.model.weights.fit import expected_shapes, fit
from kleinbild.model.weights.headers import StoredTensors, TensorInfo
from kleinbild.model.weights.layouts import (
    COMFYUI_PREFIX,
    Shape,
    diffusers_autoencoder,
    diffusers_transformer,
)
from kleinbild.model.weights.settings import Settings
from kleinbild.model.weights.specs import autoencoder_spec, family, text_encoder_spec, transformer_spec
from tests import tiny

KLEIN_4B, KLEIN_9B = official.KLEIN_4B.transformer, official.KLEIN_9B.transformer
QWEN3_4B, QWEN3_8B = official.QWEN3_4B, official.QWEN3_8B
TRANSFORMERS = [pytest.param(KLEIN_4B, id="klein-4b"), pytest.param(KLEIN_9B, id="klein-9b")]


def shapes_of(network: nn.Module) -> dict[str, Shape]:
    return {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}


def component(shapes: dict[str, Shape]) -> Component:
    path = Path("file")
    found = recognize(
        StoredTensors("safetensors", (path,), {name: TensorInfo("BF16", s, path) for name, s in shapes.items()})
    )
    assert found is not None
    return found


def diffusers_klein(spec: TransformerSpec) -> Flux2Transformer2DModel:
    with torch.device("meta"):
        return Flux2Transformer2DModel(
            num_layers=spec.num_double_blocks,
            num_single_layers=spec.num_single_blocks,
            attention_head_dim=128,
            num_attention_heads=spec.num_heads,
            joint_attention_dim=spec.context_size,
            axes_dims_rope=(32, 32, 32, 32),
            rope_theta=2000,
            guidance_embeds=False,
        )


def bfl_names(hidden: int, num_double: int, num_single: int, context: int) -> dict[str, Shape]:
    """The BFL file's tensors, from the published description."""
    names: dict[str, Shape] = {
        "img_in.weight": (hidden, 128),
        "txt_in.weight": (hidden, context),
        "time_in.in_layer.weight": (hidden, 256),
        "time_in.out_layer.weight": (hidden, hidden),
        "double_stream_modulation_img.lin.weight": (hidden * 6, hidden),
        "double_stream_modulation_txt.lin.weight": (hidden * 6, hidden),
        "single_stream_modulation.lin.weight": (hidden * 3, hidden),
        "final_layer.linear.weight": (128, hidden),
        "final_layer.adaLN_modulation.1.weight": (hidden * 2, hidden),
    }
    for n in range(num_double):
        for side in "img", "txt":
            names |= {
                f"double_blocks.{n}.{side}_attn.qkv.weight": (hidden * 3, hidden),
                f"double_blocks.{n}.{side}_attn.proj.weight": (hidden, hidden),
                f"double_blocks.{n}.{side}_attn.norm.query_norm.scale": (128,),
                f"double_blocks.{n}.{side}_attn.norm.key_norm.scale": (128,),
                f"double_blocks.{n}.{side}_mlp.0.weight": (hidden * 6, hidden),
                f"double_blocks.{n}.{side}_mlp.2.weight": (hidden, hidden * 3),
            }
    for n in range(num_single):
        names |= {
            f"single_blocks.{n}.linear1.weight": (hidden * 9, hidden),
            f"single_blocks.{n}.linear2.weight": (hidden, hidden * 4),
            f"single_blocks.{n}.norm.query_norm.scale": (128,),
            f"single_blocks.{n}.norm.key_norm.scale": (128,),
        }
    return names


@pytest.mark.parametrize("spec", TRANSFORMERS)
def test_diffusers_transformer(spec: TransformerSpec) -> None:
    found = component(shapes_of(diffusers_klein(spec)))
    assert (found.kind, found.layout) == ("transformer", "diffusers")
    assert transformer_spec(found) == spec
    assert fit(found, spec).complete


@pytest.mark.parametrize("spec", TRANSFORMERS)
@pytest.mark.parametrize(("prefix", "layout"), [("", "bfl"), (COMFYUI_PREFIX, "comfyui")])
def test_single_file_transformer(spec: TransformerSpec, prefix: str, layout: str) -> None:
    names = bfl_names(spec.hidden_size, spec.num_double_blocks, spec.num_single_blocks, spec.context_size)
    found = component({prefix + name: shape for name, shape in names.items()})
    assert (found.kind, found.layout) == ("transformer", layout)
    assert transformer_spec(found) == spec
    assert fit(found, spec).complete


@pytest.mark.parametrize(
    ("spec", "name"), [(KLEIN_4B, "klein-4b"), (KLEIN_9B, "klein-9b"), (tiny.SPEC.transformer, "nano")]
)
def test_family(spec: TransformerSpec, name: str | None) -> None:
    assert family(spec) == name


@pytest.mark.parametrize("spec", TRANSFORMERS)
def test_the_networks_have_these_tensors(spec: TransformerSpec) -> None:
    names = bfl_names(spec.hidden_size, spec.num_double_blocks, spec.num_single_blocks, spec.context_size)
    with torch.device("meta"):
        network = Flux2Transformer(spec)
    assert shapes_of(network) == names == expected_shapes(spec)


def test_diffusers_autoencoder() -> None:
    with torch.device("meta"):
        theirs, ours = AutoencoderKLFlux2(), Autoencoder(AutoencoderSpec())
    found = component(shapes_of(theirs))
    assert (found.kind, found.layout) == ("autoencoder", "diffusers")
    assert autoencoder_spec(found, Settings()) == AutoencoderSpec()
    assert fit(found, AutoencoderSpec()).complete
    names = shapes_of(ours)
    assert names.pop("bn.num_batches_tracked") == ()
    assert names == expected_shapes(AutoencoderSpec())


def test_small_decoder() -> None:
    """FLUX.2-small-decoder, by its config: https://huggingface.co/black-forest-labs/FLUX.2-small-decoder"""
    spec = AutoencoderSpec(decoder_base_channels=96)
    with torch.device("meta"):
        theirs = AutoencoderKLFlux2(decoder_block_out_channels=(96, 192, 384, 384))
        ours = Autoencoder(spec)
    for found in (component(shapes_of(theirs)), component(shapes_of(ours))):
        assert autoencoder_spec(found, Settings()) == spec
        assert fit(found, spec).complete


def test_single_file_autoencoder() -> None:
    with torch.device("meta"):
        found = component(shapes_of(Autoencoder(AutoencoderSpec())))
    assert (found.kind, found.layout) == ("autoencoder", "bfl")
    assert autoencoder_spec(found, Settings()) == AutoencoderSpec()
    assert fit(found, AutoencoderSpec()).complete
    assert {"encoder.quant_conv.weight", "decoder.post_quant_conv.weight", "decoder.up.3.upsample.conv.bias"} <= set(
        found.shapes
    )


@pytest.mark.parametrize("spec", [pytest.param(QWEN3_4B, id="Qwen3-4B"), pytest.param(QWEN3_8B, id="Qwen3-8B")])
def test_text_encoder(spec: TextEncoderSpec) -> None:
    config = Qwen3Config(
        vocab_size=spec.vocab_size,
        hidden_size=spec.hidden_size,
        intermediate_size=spec.mlp_size,
        num_hidden_layers=36,
        num_attention_heads=32,
        num_key_value_heads=8,
        head_dim=128,
        tie_word_embeddings=spec is QWEN3_4B,
        pad_token_id=None,
    )
    with torch.device("meta"):
        theirs, ours = Qwen3ForCausalLM(config), TextEncoder(spec)
    found = component(shapes_of(theirs))
    assert found.kind == "text_encoder"
    assert text_encoder_spec(found, Settings()) == spec
    assert fit(found, spec).complete  # final norm, head and the layers above 27 are known, not extra
    assert shapes_of(ours) == expected_shapes(spec)
    assert len(ours.model.layers) == 27


def test_transformer_names_agree_with_diffusers_own_converter() -> None:
    state = tiny.transformer().state_dict()
    ours = convert_from_ours(diffusers_transformer(tiny.SPEC.transformer), state)
    assert_same(ours, convert_flux2_transformer_checkpoint_to_diffusers(dict(state)))


@pytest.mark.parametrize("part", ["transformer", "autoencoder"])
def test_there_and_back_changes_nothing(part: str) -> None:
    if part == "transformer":
        state, sources = tiny.transformer().state_dict(), diffusers_transformer(tiny.SPEC.transformer)
    else:
        state, sources = tiny.autoencoder().state_dict(), diffusers_autoencoder(tiny.SPEC.autoencoder)
        del state["bn.num_batches_tracked"]
    assert_same(convert_to_ours(sources, convert_from_ours(sources, state)), state)


def assert_same(one: dict[str, Tensor], other: dict[str, Tensor]) -> None:
    assert one.keys() == other.keys()
    for name, tensor in one.items():
        assert torch.equal(tensor, other[name]), name
