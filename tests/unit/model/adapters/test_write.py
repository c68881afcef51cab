"""What is written in any spelling is read as what it was, by us; what a spelling cannot say is an error in words."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from kleinbild.core.errors import OutputError, RequestError
from kleinbild.model.adapters.adapter import Adapter, Entry, Full, Hadamard, Kronecker, LowRank
from kleinbild.model.adapters.convert import compare
from kleinbild.model.adapters.families import read_adapter_header, shapes_of
from kleinbild.model.adapters.names import modules
from kleinbild.model.adapters.plan import plan
from kleinbild.model.adapters.read import read_adapter
from kleinbild.model.adapters.spellings import SPELLINGS, unsayable
from kleinbild.model.adapters.traps import traps
from kleinbild.model.adapters.write import write_adapter
from tests.unit.model.adapters import comfyui, files
from tests.unit.model.adapters.files import ADA, SPEC, TIME, D, same, save
from tests.unit.model.adapters.test_read import DOTTED, FLAT, PAIRS, spelled

QKV = "double_blocks.0.img_attn.qkv"


def loaded(tmp_path: Path, naming: str = "bfl", alpha: float | None = None, *, time: bool = False) -> Adapter:
    names = tuple(name for name in files.layers().bfl if time or not name.startswith(TIME))
    path = save(tmp_path / "source.safetensors", spelled(files.layers(only=names), naming, "", PAIRS["A/B"], alpha))
    return read_adapter(path, SPEC).adapter


def product(rows: int, columns: int, rank: int = 2) -> LowRank:
    return LowRank(torch.randn(rank, columns), torch.randn(rows, rank))


@pytest.mark.parametrize("alpha", [None, 1.5])
@pytest.mark.parametrize("naming", ["bfl", "diffusers", "flux1"])
@pytest.mark.parametrize("spelling", SPELLINGS)
def test_written_and_read_again(tmp_path: Path, spelling: str, naming: str, alpha: float | None) -> None:
    adapter, path = loaded(tmp_path, naming, alpha), tmp_path / "out.safetensors"
    write_adapter(path, adapter, SPEC, spelling=spelling, metadata={"licence": "CC0"})
    again = read_adapter(path, SPEC)
    same(again.adapter, files.dense(adapter), limit=2e-6)
    assert again.coverage.complete
    assert again.metadata["licence"] == "CC0"
    assert [each.name for each in tmp_path.iterdir() if each.name.startswith(".")] == []


def test_the_keys_of_each_spelling(tmp_path: Path) -> None:
    adapter = Adapter((Entry(QKV, product(3 * D, D), 0.5), Entry("single_blocks.1.linear2", product(D, D + 192), 0.5)))
    first, last = {}, {}
    for spelling in SPELLINGS:
        path = tmp_path / "out.safetensors"
        write_adapter(path, adapter, SPEC, spelling=spelling)
        keys = sorted(load_file(path))
        first[spelling], last[spelling] = keys[0], keys[-1]
    assert first == {
        "diffusers": "transformer.single_transformer_blocks.1.attn.to_out.lora_A.weight",
        "comfy": "diffusion_model.double_blocks.0.img_attn.qkv.alpha",
        "aitk": "diffusion_model.double_blocks.0.img_attn.qkv.lora_A.weight",
        "kohya": "lora_unet_double_blocks_0_img_attn_qkv.alpha",
        "onetrainer": "transformer.single_transformer_blocks.1.attn.to_out.alpha",
        "original": "double_blocks.0.img_attn.qkv.lora_A.weight",
        "diffsynth": "single_transformer_blocks.1.attn.to_out.lora_A.default.weight",
        "peft": "base_model.model.single_transformer_blocks.1.attn.to_out.lora_A.weight",
    }
    assert last["diffusers"] == "transformer.transformer_blocks.0.attn.to_v.lora_B.weight"
    assert last["kohya"] == "lora_unet_single_blocks_1_linear2.lora_up.weight"


def test_the_default_has_no_alpha_and_metadata_that_diffusers_reads(tmp_path: Path) -> None:
    entries = (
        Entry("img_in", product(D, 128, 4), 0.25),
        Entry("txt_in", product(D, 72, 4)),
        Entry(QKV, product(3 * D, D, 2)),
    )
    path = tmp_path / "out.safetensors"
    write_adapter(path, Adapter(entries[:2]), SPEC, metadata={"lora_adapter_metadata": "stale", "format": "flax"})
    assert not [name for name in load_file(path) if name.endswith("alpha")]
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata()
    assert metadata["format"] == "pt"
    config = json.loads(metadata["lora_adapter_metadata"])
    assert (config["transformer.r"], config["transformer.lora_alpha"]) == (4, 4)
    write_adapter(path, Adapter(entries), SPEC)
    with safe_open(path, framework="pt") as file:
        config = json.loads(file.metadata()["lora_adapter_metadata"])
    others = dict.fromkeys(("x_embedder", "context_embedder"), 4)
    assert config["transformer.alpha_pattern"] == config["transformer.rank_pattern"] == others


def test_split_layers_become_the_blocks_of_a_diagonal(tmp_path: Path) -> None:
    """Rank 3r, every A kept: with the query's A for all three, the change is another one altogether."""
    adapter = loaded(tmp_path, "diffusers")
    write_adapter(tmp_path / "out.safetensors", adapter, SPEC, spelling="aitk")
    tensors = load_file(tmp_path / "out.safetensors")
    a, b = (tensors[f"diffusion_model.{QKV}.lora_{which}.weight"] for which in "AB")
    assert a.shape == (9, D)
    assert not b[:D, 3:].any()
    truth = files.layers().truth[QKV]
    assert float((b @ a - truth).abs().max()) < 1e-6
    reused = torch.cat([b[i * D : (i + 1) * D, 3 * i : 3 * i + 3] for i in range(3)]) @ a[:3]
    assert float((reused - truth).norm() / truth.norm()) > 1


def test_a_kronecker_product_stays_one_where_it_can_be_said(tmp_path: Path) -> None:
    path = tmp_path / "out.safetensors"
    proj = "double_blocks.0.img_attn.proj"
    for change in (
        Kronecker(torch.randn(8, 4), torch.randn(3 * D // 8, D // 4)),
        Kronecker(product(8, 4), product(3 * D // 8, D // 4)),
    ):
        adapter = Adapter(
            (Entry(QKV, change, 0.5), Entry(proj, Kronecker(torch.randn(4, 4), torch.randn(16, 16)), 2.0))
        )
        for spelling in ("comfy", "kohya", "aitk", "diffusers"):
            write_adapter(path, adapter, SPEC, spelling=spelling)
            again = read_adapter(path, SPEC).adapter
            assert all(isinstance(entry.change, Kronecker) for entry in again.entries), spelling
            assert compare(adapter, again, SPEC)[0] < 1e-5
        for spelling in ("onetrainer", "peft", "original"):
            with pytest.raises(OutputError, match="cannot say") as raised:
                write_adapter(path, adapter, SPEC, spelling=spelling)
            assert "--svd" in raised.value.hint


def test_hadamard_products_and_whole_matrices(tmp_path: Path) -> None:
    path = tmp_path / "out.safetensors"
    split = [
        Entry(QKV, Hadamard(product(D, D), product(D, D)), scale, (i * D, (i + 1) * D))
        for i, scale in enumerate((1.0, 0.5, 2.0))
    ]
    adapter = Adapter((*split, Entry("single_blocks.0.linear2", Full(torch.randn(D, D + 192)), 0.5)))
    for spelling in ("comfy", "kohya"):
        write_adapter(path, adapter, SPEC, spelling=spelling)
        assert compare(adapter, read_adapter(path, SPEC).adapter, SPEC)[0] < 1e-5
    with pytest.raises(OutputError, match="which the spelling diffusers cannot say"):
        write_adapter(path, adapter, SPEC)
    with pytest.raises(OutputError, match="which the spelling aitk cannot say"):
        write_adapter(path, Adapter(tuple(split)), SPEC, spelling="aitk")


def test_dora_by_rows(tmp_path: Path) -> None:
    path = tmp_path / "out.safetensors"
    entries = (
        Entry(QKV, product(3 * D, D), 0.5, None, torch.rand(3 * D)),
        Entry(ADA, product(2 * D, D), 0.5, None, torch.rand(2 * D)),
    )
    for spelling in ("diffusers", "comfy", "kohya", "onetrainer", "peft"):
        write_adapter(path, Adapter(entries), SPEC, spelling=spelling)
        assert compare(Adapter(entries), read_adapter(path, SPEC).adapter, SPEC)[0] < 1e-6, spelling
    with pytest.raises(OutputError, match="DoRA magnitude that the spelling aitk cannot say"):
        write_adapter(path, Adapter(entries), SPEC, spelling="aitk")
    with pytest.raises(OutputError, match="all or none"):
        write_adapter(path, Adapter((*entries, Entry("img_in", product(D, 128)))), SPEC)


def test_dora_by_columns(tmp_path: Path) -> None:
    path = tmp_path / "out.safetensors"
    adapter = Adapter((Entry(ADA, product(2 * D, D), 0.5, None, torch.rand(1, D)),))
    for spelling in ("comfy", "kohya", "onetrainer"):
        write_adapter(path, adapter, SPEC, spelling=spelling)
        assert compare(adapter, read_adapter(path, SPEC).adapter, SPEC)[0] < 1e-6
    with pytest.raises(OutputError, match="by columns"):
        write_adapter(path, adapter, SPEC)


@pytest.mark.parametrize(
    "module", ["time_in.in_layer", "double_stream_modulation_img.lin", "single_stream_modulation.lin"]
)
def test_time_and_modulation_are_not_written_where_comfyui_would_lose_them(tmp_path: Path, module: str) -> None:
    adapter, path = loaded(tmp_path, time=True), tmp_path / "out.safetensors"
    only = Adapter(tuple(entry for entry in adapter.entries if entry.module == module))
    with pytest.raises(OutputError, match=f"changes {module}") as raised:
        write_adapter(path, only, SPEC)
    assert "aitk" in raised.value.hint
    assert unsayable(SPELLINGS["diffusers"], [module]) == module
    write_adapter(path, only, SPEC, spelling="aitk")
    same(read_adapter(path, SPEC).adapter, files.dense(only))


def test_parameters_in_training_are_written_as_numbers(tmp_path: Path) -> None:
    change = LowRank(torch.nn.Parameter(torch.randn(2, 128)), torch.nn.Parameter(torch.randn(D, 2)))
    write_adapter(tmp_path / "out.safetensors", Adapter((Entry("img_in", change),)), SPEC, dtype=torch.bfloat16)
    assert {tensor.dtype for tensor in load_file(tmp_path / "out.safetensors").values()} == {torch.bfloat16}


def test_what_cannot_be_written(tmp_path: Path) -> None:
    entry = Entry("img_in", product(D, 128))
    with pytest.raises(RequestError, match="'khoya' is no spelling") as raised:
        write_adapter(tmp_path / "a", Adapter((entry,)), SPEC, spelling="khoya")
    assert "kohya" in raised.value.hint
    with pytest.raises(OutputError, match="no layer of this model"):
        write_adapter(tmp_path / "a", Adapter((replace(entry, module="double_blocks.9.img_attn.qkv"),)), SPEC)
    with pytest.raises(OutputError, match="changes nothing"):
        write_adapter(tmp_path / "a", Adapter(()), SPEC)
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="cannot be written"):
        write_adapter(tmp_path / "file" / "a", Adapter((entry,)), SPEC)


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, adapter = tmp_path / "out.safetensors", Adapter((Entry("img_in", product(D, 128)),))
    write_adapter(path, adapter, SPEC)
    before = path.read_bytes()

    def full(tensors: object, name: str, metadata: object) -> None:
        Path(name).write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("kleinbild.model.adapters.write.save_file", full)
    with pytest.raises(OutputError, match="No space left"):
        write_adapter(path, adapter, SPEC)
    assert path.read_bytes() == before
    assert [each.name for each in tmp_path.iterdir()] == [path.name]


def mixed() -> Adapter:
    """Every kind of change, scales that are not 1."""
    return Adapter(
        (
            Entry(QKV, Kronecker(torch.randn(8, 4), product(3 * D // 8, D // 4)), 0.5),
            Entry("double_blocks.1.img_attn.proj", Kronecker(torch.randn(4, 4), torch.randn(16, 16)), 2.0),
            Entry("double_blocks.1.txt_attn.qkv", Hadamard(product(3 * D, D), product(3 * D, D)), 0.25),
            Entry("single_blocks.0.linear2", Full(torch.randn(D, D + 192)), 0.5),
            Entry("single_blocks.1.linear1", product(3 * D, D), 3.0, (0, 3 * D)),
            Entry(ADA, product(2 * D, D), 0.5),
        )
    )


@pytest.mark.parametrize("spelling", ["diffusers", "comfy", "kohya", "aitk", "diffsynth", "onetrainer"])
@pytest.mark.parametrize("naming", ["bfl", "diffusers", "flux1"])
def test_comfyui_reads_every_key_and_the_same_changes(tmp_path: Path, spelling: str, naming: str) -> None:
    path, time = tmp_path / "out.safetensors", spelling in ("comfy", "kohya", "aitk")
    adapter = loaded(tmp_path, naming, 1.5, time=time)
    for each in (adapter, mixed()) if spelling in ("comfy", "kohya") else (adapter,):
        write_adapter(path, each, SPEC, spelling=spelling)
        deltas, left = comfyui.read(load_file(path), dict(modules(SPEC)))
        assert left == set()
        truth = files.dense(each)
        assert deltas.keys() == truth.keys()
        assert all(torch.allclose(deltas[name], truth[name], atol=1e-5) for name in truth)


@pytest.mark.parametrize("prefix", [*DOTTED, *FLAT])
@pytest.mark.parametrize("naming", ["bfl", "diffusers", "half-flat bfl"])
def test_what_the_doctor_says_of_comfyui_is_so(tmp_path: Path, prefix: str, naming: str) -> None:
    for pair in (PAIRS["A/B"], PAIRS["_lora.down"]):
        tensors = spelled(files.layers(), naming, prefix, pair)
        path = save(tmp_path / "a.safetensors", tensors)
        groups = plan(shapes_of(read_adapter_header(path)), SPEC).groups
        told = "; ".join(trap.effect for trap in traps(groups, {}, path) if trap.program == "ComfyUI")
        deltas, left = comfyui.read(tensors, dict(modules(SPEC)))
        if not deltas:
            assert told.startswith("loads nothing")
        elif left:
            assert told.startswith(f"leaves out {len(left) // 2} of {len(groups)} changes")
        else:
            assert told == ""
