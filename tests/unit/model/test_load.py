"""Loading: every layout gives the same networks; whatever is wrong is an error that says what."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from kleinbild.core.errors import MissingWeightsError, ModelError, UnknownModelError, WeightsError
from kleinbild.model.weights import Model, Settings, load_model
from kleinbild.model.weights.convert import convert_from_ours
from kleinbild.model.weights.export import export_diffusers
from kleinbild.model.weights.layouts import COMFYUI_PREFIX, diffusers_transformer
from tests import tiny

Change = Callable[[dict[str, Tensor]], None]


@pytest.fixture
def path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A tiny model, laid out as nano is, in a home with no other models."""
    monkeypatch.setenv("KLEINBILD_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "cache"))
    return tiny.write_model(tmp_path / "models")


def change(path: Path, edit: Change) -> None:
    state = load_file(path)
    edit(state)
    save_file(state, path)


def assert_tiny(model: Model) -> None:
    """Bit for bit the networks that were written."""
    assert model.spec == tiny.SPEC
    for ours, expected in (
        (model.transformer, tiny.transformer()),
        (model.text_encoder, tiny.text_encoder()),
        (model.autoencoder, tiny.autoencoder()),
    ):
        state = ours.state_dict()
        assert state.keys() == expected.state_dict().keys()
        for name, tensor in expected.state_dict().items():
            assert torch.equal(state[name], tensor), name


def test_the_packaged_layout(path: Path) -> None:
    model = load_model(path)
    assert_tiny(model)
    assert (model.name, model.settings, model.dtype) == ("tiny", tiny.SETTINGS, torch.float32)
    networks: list[nn.Module] = [model.transformer, model.text_encoder, model.autoencoder]
    assert not any(network.training for network in networks)
    assert not any(p.requires_grad for network in networks for p in network.parameters())
    assert not any(t.is_meta for network in networks for t in (*network.parameters(), *network.buffers()))


def test_a_folder_with_one_model(path: Path) -> None:
    path.with_suffix(".json").rename(path.parent / "kleinbild.json")
    assert_tiny(load_model(path.parent))


def test_a_diffusers_folder(path: Path, tmp_path: Path) -> None:
    folder = export_diffusers(str(path), tmp_path / "exported")
    model = load_model(folder)
    assert_tiny(model)
    assert model.settings == tiny.SETTINGS


def test_a_diffusers_folder_in_shards(path: Path, tmp_path: Path) -> None:
    folder = export_diffusers(str(path), tmp_path / "exported") / "transformer"
    state = load_file(folder / "diffusion_pytorch_model.safetensors")
    (folder / "diffusion_pytorch_model.safetensors").unlink()
    names = sorted(state)
    shards = {"first.safetensors": names[:20], "second.safetensors": names[20:]}
    for file, own in shards.items():
        save_file({name: state[name] for name in own}, folder / file)
    weight_map = {name: file for file, own in shards.items() for name in own}
    (folder / "diffusion_pytorch_model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    assert_tiny(load_model(folder.parent))


def test_comfyui(path: Path) -> None:
    state = load_file(path)
    save_file({COMFYUI_PREFIX + name: tensor for name, tensor in state.items()}, path)
    assert_tiny(load_model(path))


def test_a_lone_transformer_in_diffusers_names(path: Path) -> None:
    save_file(convert_from_ours(diffusers_transformer(tiny.SPEC.transformer), load_file(path)), path)
    assert_tiny(load_model(path))


def test_file_names_do_not_matter(path: Path) -> None:
    (path.parent / "text_encoder.safetensors").rename(path.parent / "z.safetensors")
    (path.parent / "vae").mkdir()
    (path.parent / "autoencoder.safetensors").rename(path.parent / "vae" / "text_encoder.safetensors")
    assert_tiny(load_model(path))


def test_official_extras_are_known(path: Path) -> None:
    def as_official(state: dict[str, Tensor]) -> None:
        deeper = {name.replace("layers.0", "layers.4"): t.clone() for name, t in state.items() if ".layers.0." in name}
        state.update(deeper)
        state["model.norm.weight"] = torch.ones(24)
        state["lm_head.weight"] = state["model.embed_tokens.weight"].clone()

    change(path.parent / "text_encoder.safetensors", as_official)
    counter = {"bn.num_batches_tracked": torch.tensor(3)}
    change(path.parent / "autoencoder.safetensors", lambda state: state.update(counter))
    assert_tiny(load_model(path))


def test_settings_of_the_folder(path: Path) -> None:
    path.with_suffix(".json").rename(path.parent / "kleinbild.json")
    assert load_model(path).settings == tiny.SETTINGS


def test_a_json_file_of_another_program_is_no_settings(path: Path) -> None:
    path.with_suffix(".json").rename(path.parent / "kleinbild.json")
    path.with_suffix(".json").write_text('{"description": "by a model browser"}')
    assert load_model(path).settings == tiny.SETTINGS


# --- types ---------------------------------------------------------------------------------------------------------


def test_types(path: Path) -> None:
    model = load_model(path, precision="bfloat16")
    assert {p.dtype for p in model.transformer.parameters()} == {torch.bfloat16}
    assert model.dtype == torch.bfloat16


def test_weights_of_the_wanted_type_are_mapped_not_copied(path: Path) -> None:
    model = load_model(path)
    maps = Path("/proc/self/maps")
    if not maps.exists():
        pytest.skip("this system does not list its mappings")
    spans = [line.split()[0].split("-") for line in maps.read_text().splitlines() if line.endswith(str(path))]
    inside = [(int(start, 16), int(end, 16)) for start, end in spans]
    for name, parameter in model.transformer.named_parameters():
        assert any(start <= parameter.data_ptr() < end for start, end in inside), name


def test_the_fingerprint_is_of_the_weights(path: Path, tmp_path: Path) -> None:
    own = load_model(path).fingerprint
    assert load_model(path, precision="bfloat16").fingerprint == own
    assert load_model(export_diffusers(str(path), tmp_path / "exported")).fingerprint == own

    def by_little(state: dict[str, Tensor]) -> None:
        state["bn.running_mean"][5] += 1e-4

    change(path.parent / "autoencoder.safetensors", by_little)
    assert load_model(path).fingerprint != own


# --- GGUF ----------------------------------------------------------------------------------------------------------


def test_gguf_unquantized(path: Path) -> None:
    tiny.write_gguf(path.with_suffix(".gguf"), load_file(path), {})
    path.unlink()
    assert_tiny(load_model(path.with_suffix(".gguf")))


@pytest.mark.parametrize(
    ("kind", "limit"),
    [
        (gguf.GGMLQuantizationType.F16, 1e-3),
        (gguf.GGMLQuantizationType.BF16, 1e-2),
        (gguf.GGMLQuantizationType.Q8_0, 2e-2),
        (gguf.GGMLQuantizationType.Q4_0, 0.2),
    ],
)
def test_gguf_quantized(path: Path, kind: gguf.GGMLQuantizationType, limit: float) -> None:
    state = load_file(path)
    quantized = [name for name, tensor in state.items() if tensor.ndim == 2 and tensor.shape[1] % 32 == 0]
    assert len(quantized) > 15
    tiny.write_gguf(path.with_suffix(".gguf"), state, dict.fromkeys(quantized, kind))
    path.unlink()
    for precision in ("float32", "bfloat16"):
        loaded = load_model(path.with_suffix(".gguf"), precision=precision).transformer.state_dict()
        for name, tensor in state.items():
            error = (loaded[name].float() - tensor).norm() / tensor.norm()
            assert error < (limit if name in quantized else 1e-6) + (4e-3 if precision == "bfloat16" else 0), name


def test_gguf_k_quants(path: Path) -> None:
    state, kind = load_file(path), gguf.GGMLQuantizationType.Q4_K
    name = "single_blocks.0.linear2.weight"
    blocks = np.random.default_rng(0).integers(0, 256, (64, 144), dtype=np.uint8)
    blocks[:, :4] = np.array([0.01, 0.02], dtype=np.float16).view(np.uint8)  # a block's two scales
    writer = gguf.GGUFWriter(path.with_suffix(".gguf"), arch="flux")
    for other, tensor in state.items():
        if other != name:
            writer.add_tensor(other, tensor.numpy())
    writer.add_tensor(name, blocks, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    path.unlink()
    loaded = load_model(path.with_suffix(".gguf")).transformer.get_parameter(name)
    assert np.array_equal(loaded.numpy(), gguf.quants.dequantize(blocks, kind))


def test_gguf_without_its_package(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tiny.write_gguf(path.with_suffix(".gguf"), load_file(path), {})
    path.unlink()
    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(ModelError, match="is a GGUF file") as caught:
        load_model(path.with_suffix(".gguf"))
    assert "pip install 'kleinbild[gguf]'" in caught.value.hint


# --- what is wrong -------------------------------------------------------------------------------------------------


def test_missing_extra_and_misshapen_tensors_are_listed(path: Path) -> None:
    def spoil(state: dict[str, Tensor]) -> None:
        del state["img_in.weight"]
        state["double_blocks.0.img_attn.proj.weight"] = torch.ones(64, 63)
        state["guidance_in.in_layer.weight"] = torch.ones(2)

    change(path, spoil)
    with pytest.raises(WeightsError) as caught:
        load_model(path)
    assert "1 missing: img_in.weight" in caught.value.message
    assert "1 extra: guidance_in.in_layer.weight" in caught.value.message
    assert "double_blocks.0.img_attn.proj.weight is 64×63, should be 64×64" in caught.value.message
    assert str(path) in caught.value.message


def test_long_lists_are_counted(path: Path) -> None:
    change(path, lambda state: state.update({f"odd.{i}": torch.ones(1) for i in range(30)}))
    with pytest.raises(WeightsError, match=r"30 extra: .* and 22 more"):
        load_model(path)


@pytest.mark.parametrize("file", ["tiny", "text_encoder", "autoencoder"])
@pytest.mark.parametrize(("value", "word"), [(torch.nan, "NaN"), (torch.inf, "infinity"), (-torch.inf, "infinity")])
def test_numbers_that_are_none(path: Path, file: str, value: float, word: str) -> None:
    damaged = path.parent / f"{file}.safetensors"
    state = load_file(damaged)
    name = sorted(state)[len(state) // 2]
    state[name].view(-1)[-1] = value
    save_file(state, damaged)
    with pytest.raises(WeightsError, match=f"holds {word} in {name}"):
        load_model(path)


@pytest.mark.parametrize("share", [0.0, 0.2, 0.99])
def test_a_truncated_file(path: Path, share: float) -> None:
    whole = path.read_bytes()
    path.write_bytes(whole[: int(share * len(whole))])
    with pytest.raises(WeightsError, match="is cut short"):
        load_model(path)


def test_a_damaged_file_that_is_needed_is_missing_not_a_crash(path: Path) -> None:
    (path.parent / "autoencoder.safetensors").write_bytes(b"nonsense")
    with pytest.raises(MissingWeightsError, match="lacks its autoencoder"):
        load_model(path)


def test_what_cannot_be_read_is_said(path: Path) -> None:
    name = "img_in.weight"
    change(path, lambda state: state.update({name: state[name].to(torch.int8)}))
    with pytest.raises(WeightsError, match=r"of a type that cannot be read: img_in\.weight \(I8\)"):
        load_model(path)


def in_fp8(state: dict[str, Tensor], scale_name: str, *, rows: bool) -> dict[str, Tensor]:
    """Every matrix of a transformer in float8 with its scale; what the numbers are then."""
    read = {}
    for name in [name for name, tensor in state.items() if tensor.ndim == 2]:
        layer, weight = name.removesuffix("weight"), state[name].float()
        largest = weight.abs().amax(dim=1) if rows else weight.abs().max()
        scale = (largest / 448).clamp(min=1e-12)
        state[name] = (weight / (scale[:, None] if rows else scale)).to(torch.float8_e4m3fn)
        state[layer + scale_name] = scale
        state[layer + "input_scale"] = torch.tensor(0.5)
        read[name.removeprefix(COMFYUI_PREFIX)] = state[name].float() * (scale[:, None] if rows else scale)
    return read


@pytest.mark.parametrize(
    ("scale_name", "rows"), [("weight_scale", False), ("weight_scale", True), ("scale_weight", False)]
)
def test_eight_bit_floats_are_read_with_their_scales(path: Path, scale_name: str, rows: bool) -> None:
    wanted: dict[str, Tensor] = {}
    change(path, lambda state: wanted.update(in_fp8(state, scale_name, rows=rows)))
    network = load_model(path).transformer.state_dict()
    assert len(wanted) > 20
    for name, tensor in wanted.items():
        assert torch.equal(network[name], tensor), name
    relative = [
        float((network[n] - t).norm() / t.norm()) for n, t in tiny.transformer().state_dict().items() if n in wanted
    ]
    assert max(relative) < 0.05


def test_eight_bit_floats_in_a_comfyui_file(path: Path) -> None:
    state = {COMFYUI_PREFIX + name: tensor for name, tensor in load_file(path).items()}
    wanted = in_fp8(state, "scale_weight", rows=False)
    save_file({**state, "scaled_fp8": torch.empty(0, dtype=torch.float8_e4m3fn)}, path)
    network = load_model(path).transformer.state_dict()
    assert all(torch.equal(network[name], tensor) for name, tensor in wanted.items())


def test_eight_bit_floats_without_a_scale_are_numbers_as_they_are(path: Path) -> None:
    name = "img_in.weight"
    change(path, lambda state: state.update({name: state[name].to(torch.float8_e5m2)}))
    expected = tiny.transformer().state_dict()[name].to(torch.float8_e5m2).float()
    assert torch.equal(load_model(path).transformer.state_dict()[name], expected)


def test_scales_of_blocks_are_refused(path: Path) -> None:
    def edit(state: dict[str, Tensor]) -> None:
        state["img_in.weight"] = state["img_in.weight"].to(torch.float8_e4m3fn)
        state["img_in.weight_scale"] = torch.ones(2, 2)

    change(path, edit)
    with pytest.raises(WeightsError, match=r"img_in\.weight has 4 scales for its \d+ rows"):
        load_model(path)


def test_a_pickle_is_refused(path: Path) -> None:
    torch.save(load_file(path), path.with_suffix(".pt"))
    with pytest.raises(WeightsError, match="is a pickle"):
        load_model(path.with_suffix(".pt"))


def test_a_folder_of_pickles(tmp_path: Path) -> None:
    torch.save({}, tmp_path / "model.bin")
    with pytest.raises(MissingWeightsError, match=r"no weights in .*pickles, such as model\.bin"):
        load_model(tmp_path)


@pytest.mark.parametrize(
    ("part", "says"),
    [
        ("text_encoder.safetensors", "lacks its text encoder"),
        ("autoencoder.safetensors", "lacks its autoencoder"),
        ("tokenizer/tokenizer.json", "lacks its tokenizer"),
    ],
)
def test_a_missing_part_is_named_with_where_it_was_looked_for(path: Path, part: str, says: str) -> None:
    (path.parent / part).unlink()
    path.with_suffix(".json").rename(path.parent / "kleinbild.json")
    with pytest.raises(MissingWeightsError, match=says) as caught:
        load_model(path.parent)
    assert f"looked in {path.parent}" in caught.value.message


def test_a_lone_file_without_neighbours(path: Path, tmp_path: Path) -> None:
    lone = tmp_path / "lone" / "klein.safetensors"
    lone.parent.mkdir()
    state = {**tiny.transformer().state_dict(), "txt_in.weight": torch.ones(64, 96)}  # fits no model that is here
    tiny.write_state(lone, state)
    with pytest.raises(MissingWeightsError, match="lacks its text encoder, autoencoder and tokenizer"):
        load_model(lone)


def test_two_of_a_kind_are_not_guessed(path: Path) -> None:
    shutil.copy(path.parent / "autoencoder.safetensors", path.parent / "other.safetensors")
    with pytest.raises(
        WeightsError, match=r"more than one autoencoder: .*autoencoder.safetensors, .*other.safetensors"
    ):
        load_model(path)


def test_of_two_text_encoders_the_one_that_fits_is_taken(path: Path) -> None:
    spec = replace(tiny.SPEC.text_encoder, hidden_size=32)
    tiny.write_state(path.parent / "other.safetensors", tiny.text_encoder(spec=spec).state_dict())
    assert_tiny(load_model(path))


def test_parts_of_different_models(path: Path) -> None:
    spec = replace(tiny.SPEC.text_encoder, hidden_size=32)
    tiny.write_state(path.parent / "text_encoder.safetensors", tiny.text_encoder(spec=spec).state_dict())
    with pytest.raises(WeightsError, match="do not make one model: the transformer expects a text context 72 wide"):
        load_model(path)


def test_an_autoencoder_is_no_model(path: Path) -> None:
    with pytest.raises(WeightsError, match="is no transformer but autoencoder"):
        load_model(path.parent / "autoencoder.safetensors")


@pytest.mark.parametrize("content", ['{"text_layers": "all"}', '{"text_layers": [1], "colour": 1}', "{", "[]"])
def test_damaged_settings(path: Path, content: str) -> None:
    path.with_suffix(".json").unlink()
    (path.parent / "kleinbild.json").write_text(content)
    with pytest.raises(WeightsError, match=r"kleinbild\.json: "):
        load_model(path)


def test_a_damaged_tokenizer(path: Path) -> None:
    (path.parent / "tokenizer" / "tokenizer.json").write_text("{}")
    with pytest.raises(WeightsError, match=r"the tokenizer in .* cannot be read"):
        load_model(path)


def test_names_and_paths(path: Path) -> None:
    with pytest.raises(UnknownModelError, match="there is no model called 'klein'"):
        load_model("klein")
    with pytest.raises(MissingWeightsError, match=r"there is no .*absent\.safetensors"):
        load_model(path.with_name("absent.safetensors"))
    with pytest.raises(MissingWeightsError, match="weights of klein-9b are not on this machine") as caught:
        load_model("klein-9b")
    assert caught.value.hint == "`kleinbild pull klein-9b` fetches them"


# --- official settings ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("index", "expected"),
    [
        ({"is_distilled": True}, Settings()),
        ({"is_distilled": False}, Settings(default_steps=50, default_guidance=4.0, distilled=False)),
        ({"_class_name": "Flux2KleinKVPipeline"}, Settings(reference_caching=True)),
    ],
)
def test_official_folders_have_the_official_settings(
    path: Path, tmp_path: Path, index: dict[str, object], expected: Settings
) -> None:
    """A pipeline folder without `kleinbild.json`, with a text encoder as deep as the official ones."""
    folder = export_diffusers(str(path), tmp_path / "official")
    (folder / "kleinbild.json").unlink()
    names = {"_class_name": "Flux2KleinPipeline", **index}
    (folder / "model_index.json").write_text(json.dumps(names))
    spec = replace(tiny.SPEC.text_encoder, layers=(9, 18, 27), num_layers=36, max_tokens=512)
    tiny.write_state(folder / "text_encoder" / "model.safetensors", tiny.text_encoder(spec=spec).state_dict())
    model = load_model(folder)
    assert model.settings == replace(expected, num_groups=4)
    assert model.spec.text_encoder == replace(spec, num_layers=28)
    assert model.spec.distilled == expected.distilled


# --- the packaged models -------------------------------------------------------------------------------------------


@pytest.fixture
def package(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A package that carries the tiny model as nano and, with other settings, as nano-base."""
    weights = tmp_path / "package"
    monkeypatch.setattr("kleinbild.model.catalog.PACKAGED", weights)
    path.parent.rename(weights)
    base = replace(tiny.SETTINGS, distilled=False, default_steps=25, default_guidance=2.0, vocabulary="nano")
    tiny.write_state(weights / "nano-base.safetensors", tiny.transformer(seed=9).state_dict())
    (weights / "nano-base.json").write_text(json.dumps(base.to_json()))
    (weights / "tiny.safetensors").rename(weights / "nano.safetensors")
    (weights / "tiny.json").rename(weights / "nano.json")
    return weights


def test_packaged_models_by_name(package: Path) -> None:
    model, base = load_model("nano"), load_model("nano-base")
    assert_tiny(model)
    assert (model.name, base.name) == ("nano", "nano-base")
    assert (model.settings.default_steps, base.settings.default_steps) == (4, 25)
    assert model.fingerprint != base.fingerprint


def test_a_folder_with_two_models_is_not_guessed(package: Path) -> None:
    with pytest.raises(WeightsError, match="more than one transformer"):
        load_model(package)


def test_a_lone_file_takes_the_rest_from_a_located_model(package: Path, tmp_path: Path) -> None:
    lone = tmp_path / "elsewhere"
    lone.mkdir()
    model = load_model(shutil.copy(package / "nano.safetensors", lone / "mine.safetensors"))
    assert_tiny(model)
    assert model.settings == tiny.SETTINGS
    base = load_model(shutil.copy(package / "nano-base.safetensors", lone / "mine_base.safetensors"))
    assert base.settings == load_model("nano-base").settings


def test_a_lone_base_file_is_run_as_base_where_only_its_sibling_is_located(package: Path, tmp_path: Path) -> None:
    lone = tmp_path / "elsewhere"
    lone.mkdir()
    (package / "nano-base.safetensors").rename(lone / "mine-base.safetensors")
    settings = load_model(lone / "mine-base.safetensors").settings
    assert settings.text_layers == tiny.SETTINGS.text_layers
    assert (settings.distilled, settings.default_steps, settings.default_guidance) == (False, 50, 4.0)
