"""Adapter files between Kleinbild, diffusers and PEFT: whoever wrote one, the others compute the same velocity from it."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import Flux2KleinPipeline
from peft import LoHaConfig, LoKrConfig, LoraConfig, get_peft_model
from torch import Tensor, nn

from kleinbild.model.adapters.adapter import Adapter, Entry, Kronecker, LowRank
from kleinbild.model.adapters.applied import Use, bind
from kleinbild.model.adapters.families import read_adapter_header, shapes_of
from kleinbild.model.adapters.plan import plan
from kleinbild.model.adapters.read import read_adapter
from kleinbild.model.adapters.traps import traps
from kleinbild.model.adapters.write import write_adapter
from kleinbild.model.packing import pack
from tests import tiny
from tests.parity import reference
from tests.parity.comparisons import ONE_REFERENCE, ids, inputs
from tests.parity.reference import assert_close
from tests.unit.model.adapters import files
from tests.unit.model.adapters.files import ADA, SPEC, TIME, save
from tests.unit.model.adapters.test_read import PAIRS, spelled

LAYERS = files.layers(size=0.7, only=tuple(name for name in files.layers().bfl if not name.startswith((*TIME, ADA))))
BLOCKS = r"(single_)?transformer_blocks.*(to_[qkv]|add_[qkv]_proj|to_out\.0|to_add_out|linear_(in|out)|to_qkv_mlp_proj)"
EVERY_LINEAR = rf"{BLOCKS}|single_transformer_blocks.*attn\.to_out|(x|context)_embedder|proj_out"


@torch.no_grad()
def ours(adapter: Adapter | None, network: nn.Module | None = None) -> Tensor:
    """The velocity of a small request with one reference."""
    network = network or tiny.transformer()
    stream, text = inputs(ONE_REFERENCE, 5)
    uses = [] if adapter is None else [(Use(bind(adapter, network)),)]
    velocity: Tensor = network(stream, text, torch.tensor([0.6]), pack([ONE_REFERENCE], SPEC), adapters=uses)
    return velocity[: ONE_REFERENCE.num_image]


@torch.no_grad()
def theirs(network: Any) -> Tensor:
    stream, text = inputs(ONE_REFERENCE, 5)
    text_ids, image_ids, reference_ids = ids(ONE_REFERENCE)
    velocity: Tensor = network(
        hidden_states=stream[None],
        encoder_hidden_states=text[None],
        timestep=torch.tensor([0.6]),
        img_ids=torch.cat([image_ids, reference_ids]),
        txt_ids=text_ids,
    ).sample[0]
    return velocity[: ONE_REFERENCE.num_image]


def loaded_by_diffusers(path: Path) -> Any:
    """Their transformer after their pipeline has loaded the file."""
    transformer = reference.transformer(tiny.transformer())
    pipeline = Flux2KleinPipeline(reference.scheduler(), None, None, None, transformer)
    pipeline.load_lora_weights(path)
    return pipeline.transformer


def source(folder: Path, naming: str = "bfl", prefix: str = "diffusion_model.", pair: str = "A/B") -> Adapter:
    path = save(folder / "source.safetensors", spelled(LAYERS, naming, prefix, PAIRS[pair]))
    return read_adapter(path, SPEC).adapter


@pytest.mark.parametrize("spelling", ["diffusers", "aitk", "comfy", "kohya"])
@pytest.mark.parametrize("naming", ["bfl", "diffusers", "flux1"])
def test_diffusers_loads_what_is_written(tmp_path: Path, spelling: str, naming: str) -> None:
    adapter, path = source(tmp_path, naming), tmp_path / "out.safetensors"
    write_adapter(path, adapter, SPEC, spelling=spelling)
    expected = ours(adapter)
    assert float((expected - ours(None)).norm() / expected.norm()) > 0.1
    assert_close(theirs(loaded_by_diffusers(path)), expected)


@torch.no_grad()
def merged(adapter: Adapter) -> nn.Module:
    """Our transformer with the adapter's changes in its weights: of every layer, those of time and modulation, too."""
    network = copy.deepcopy(tiny.transformer())
    for name, delta in files.dense(adapter).items():
        network.get_submodule(name).weight += delta
    return network


def test_applied_by_rows_is_merged_into_the_weights(tmp_path: Path) -> None:
    adapter = source(tmp_path)
    assert_close(ours(adapter), ours(None, merged(adapter)))


def test_the_final_layers_halves_are_swapped_for_diffusers(tmp_path: Path) -> None:
    layers = files.layers(only=("final_layer", "img_in"))
    path = save(tmp_path / "source.safetensors", spelled(layers, "bfl", "diffusion_model.", PAIRS["A/B"]))
    adapter, out = read_adapter(path, SPEC).adapter, tmp_path / "out.safetensors"
    write_adapter(out, adapter, SPEC)
    assert_close(theirs(loaded_by_diffusers(out)), ours(None, merged(adapter)))
    with pytest.raises(AssertionError):  # diffusers reads BFL's own name without swapping: the doctor says so
        assert_close(theirs(loaded_by_diffusers(path)), ours(None, merged(adapter)))


def test_time_and_modulation_reach_diffusers_by_bfls_names(tmp_path: Path) -> None:
    layers = files.layers(only=TIME)
    path = save(tmp_path / "source.safetensors", spelled(layers, "bfl", "lora_unet_", PAIRS["down/up"], 1.0))
    adapter, out = read_adapter(path, SPEC).adapter, tmp_path / "out.safetensors"
    write_adapter(out, adapter, SPEC, spelling="aitk")
    assert_close(theirs(loaded_by_diffusers(out)), ours(None, merged(adapter)))


def test_ranks_that_differ_and_scales_that_are_not_1(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(3)
    entries = []
    for i, entry in enumerate(source(tmp_path).entries):
        rank, change = i % 3 + 1, entry.change
        a = torch.randn(rank, change.shape[1], generator=generator) * change.shape[1] ** -0.5
        entries.append(
            Entry(
                entry.module,
                LowRank(a, torch.randn(change.shape[0], rank, generator=generator)),
                0.3 + 0.1 * i,
                entry.rows,
            )
        )
    adapter = Adapter(tuple(entries))
    for spelling in ("diffusers", "aitk", "kohya"):
        write_adapter(tmp_path / "out.safetensors", adapter, SPEC, spelling=spelling)
        assert_close(theirs(loaded_by_diffusers(tmp_path / "out.safetensors")), ours(adapter))


def test_dora_of_ours_in_diffusers(tmp_path: Path) -> None:
    network, entries = tiny.transformer(), []
    for entry in source(tmp_path).entries:
        rows = slice(*(entry.rows or (0, None)))
        norms = network.get_submodule(entry.module).weight[rows].norm(dim=1)
        magnitude = norms * (0.7 + 0.6 * torch.rand(norms.shape, generator=torch.Generator().manual_seed(1)))
        entries.append(Entry(entry.module, entry.change, 0.5, entry.rows, magnitude))
    adapter = Adapter(tuple(entries))
    write_adapter(tmp_path / "out.safetensors", adapter, SPEC)
    assert_close(theirs(loaded_by_diffusers(tmp_path / "out.safetensors")), ours(adapter))


def test_lokr_of_ours_in_diffusers(tmp_path: Path) -> None:
    """PEFT derives how a layer's sides are divided from one factor: here 4."""
    generator = torch.Generator().manual_seed(2)
    entries = []
    for name in ("double_blocks.0.img_attn.qkv", "double_blocks.1.img_mlp.2", "single_blocks.2.linear1"):
        rows, columns = tiny.transformer().get_submodule(name).weight.shape
        w1 = torch.randn(4, 4, generator=generator)
        w2 = torch.randn(rows // 4, columns // 4, generator=generator) * 0.3 * columns**-0.5
        entries.append(Entry(name, Kronecker(w1, w2), 0.7))
    adapter = Adapter(tuple(entries))
    for spelling in ("diffusers", "aitk"):
        write_adapter(tmp_path / "out.safetensors", adapter, SPEC, spelling=spelling)
        assert_close(theirs(loaded_by_diffusers(tmp_path / "out.safetensors")), ours(adapter))


CONFIGS = {
    "LoRA": LoraConfig(r=4, lora_alpha=6, target_modules=EVERY_LINEAR, init_lora_weights=False),
    "LoRA, alpha and rank by layer": LoraConfig(
        r=4, lora_alpha=6, target_modules=EVERY_LINEAR, init_lora_weights=False,
        alpha_pattern={"ff.linear_in": 1, "to_q": 9}, rank_pattern={"ff.linear_in": 2},
    ),
    "rank-stabilised LoRA": LoraConfig(
        r=4, lora_alpha=2, use_rslora=True, target_modules=EVERY_LINEAR, init_lora_weights=False
    ),
    "DoRA": LoraConfig(r=4, lora_alpha=6, use_dora=True, target_modules=EVERY_LINEAR, init_lora_weights=False),
    "LoHa": LoHaConfig(r=4, alpha=6, target_modules=BLOCKS, init_weights=False),
    "LoKr": LoKrConfig(r=2, alpha=3, target_modules=BLOCKS, init_weights=False, decompose_both=True),
    "LoKr, whole factors": LoKrConfig(r=64, alpha=32, target_modules=BLOCKS, init_weights=False, decompose_factor=4),
}  # fmt: skip


@torch.no_grad()
def trained(config: Any) -> Any:
    """PEFT's model with random changes, small enough that the velocity stays one."""
    torch.manual_seed(4)
    model = get_peft_model(reference.transformer(tiny.transformer()), copy.deepcopy(config))
    for name, parameter in model.named_parameters():
        if any(part in name for part in ("lora_A", "lora_B", "hada_", "lokr_")):
            scale = 0.5 if "hada" in name else parameter.shape[-1] ** -0.5
            parameter.copy_(scale * torch.randn(parameter.shape))
        elif "magnitude" in name:
            parameter.mul_(0.8 + 0.4 * torch.rand(parameter.shape))
    return model


@pytest.mark.parametrize("name", CONFIGS)
def test_what_peft_saves_is_read(tmp_path: Path, name: str) -> None:
    model = trained(CONFIGS[name])
    model.save_pretrained(tmp_path)
    loaded = read_adapter(tmp_path / "adapter_model.safetensors", SPEC)
    assert loaded.coverage.complete
    expected = theirs(model)
    assert float((expected - ours(None)).norm() / expected.norm()) > 0.05
    assert_close(ours(loaded.adapter), expected)


@pytest.mark.parametrize("name", ["LoRA", "LoRA, alpha and rank by layer", "rank-stabilised LoRA", "DoRA"])
def test_what_diffusers_saves_is_read(tmp_path: Path, name: str) -> None:
    """Its pipeline's file: alpha stands in the metadata alone."""
    transformer = reference.transformer(tiny.transformer())
    transformer.add_adapter(copy.deepcopy(CONFIGS[name]))
    generator = torch.Generator().manual_seed(8)
    with torch.no_grad():
        for key, parameter in transformer.named_parameters():
            if "lora_" in key and "magnitude" not in key:
                parameter.copy_(parameter.shape[-1] ** -0.5 * torch.randn(parameter.shape, generator=generator))
    from diffusers.training_utils import _collate_lora_metadata
    from peft.utils import get_peft_model_state_dict

    Flux2KleinPipeline.save_lora_weights(
        tmp_path,
        transformer_lora_layers=get_peft_model_state_dict(transformer),
        **_collate_lora_metadata({"transformer": transformer}),
    )
    path = tmp_path / "pytorch_lora_weights.safetensors"
    loaded = read_adapter(path, SPEC)
    assert loaded.origin == "diffusers"
    assert_close(ours(loaded.adapter), theirs(transformer))
    write_adapter(tmp_path / "again.safetensors", loaded.adapter, SPEC, metadata=loaded.metadata)
    assert_close(theirs(loaded_by_diffusers(tmp_path / "again.safetensors")), theirs(transformer))


FILES = {  # prefix, naming, pair, alpha, what the doctor says that diffusers does
    "its own": ("transformer.", "diffusers", "A/B", None, ""),
    "ai-toolkit's": ("diffusion_model.", "bfl", "A/B", None, ""),
    "fal's": ("base_model.model.", "bfl", "A/B", None, ""),
    "musubi's": ("lora_unet_", "bfl", "down/up", 1.0, ""),
    "with alpha, for ComfyUI": ("diffusion_model.", "bfl", "A/B", 1.0, "refuses"),
    "its own with alpha": ("transformer.", "diffusers", "A/B", 1.0, "refuses"),
    "OneTrainer's": ("transformer.", "diffusers", "down/up", 1.0, "loads nothing"),
    "down and up, for ComfyUI": ("diffusion_model.", "bfl", "down/up", None, "loads nothing"),
    "BFL's names alone": ("", "bfl", "A/B", None, "loads nothing"),
    "DiffSynth's": ("", "diffusers", "A/B, named", None, "loads nothing"),
}


@pytest.mark.parametrize("name", FILES)
def test_what_the_doctor_says_of_diffusers_is_so(tmp_path: Path, name: str) -> None:
    prefix, naming, pair, alpha, effect = FILES[name]
    path = save(tmp_path / "a.safetensors", spelled(LAYERS, naming, prefix, PAIRS[pair], alpha))
    groups = plan(shapes_of(read_adapter_header(path)), SPEC).groups
    told = "; ".join(trap.effect for trap in traps(groups, {}, path) if trap.program == "diffusers")
    assert told.startswith(effect)
    if effect == "refuses":
        with pytest.raises(ValueError):
            loaded_by_diffusers(path)
    elif effect:
        assert_close(theirs(loaded_by_diffusers(path)), ours(None))
    else:
        assert told == ""
        assert_close(theirs(loaded_by_diffusers(path)), ours(read_adapter(path, SPEC).adapter))
