"""One change, said in every spelling, is the same adapter; a file that says something else is an error in words."""

from __future__ import annotations

import contextlib
import json
import pickle
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from kleinbild.core.errors import WeightsError
from kleinbild.model import official
from kleinbild.model.adapters.adapter import Hadamard, Kronecker
from kleinbild.model.adapters.families import family_of, read_adapter_header, specs
from kleinbild.model.adapters.read import read_adapter
from tests.unit.model.adapters import files
from tests.unit.model.adapters.files import ADA, DOUBLES, SPEC, D, flat, half_flat, same, save

PAIRS = {
    "A/B": (".lora_A.weight", ".lora_B.weight"),
    "A/B, named": (".lora_A.default.weight", ".lora_B.default.weight"),
    "A/B, bare": (".lora_A", ".lora_B"),
    "down/up": (".lora_down.weight", ".lora_up.weight"),
    "lora.down": (".lora.down.weight", ".lora.up.weight"),
    "_lora.down": ("_lora.down.weight", "_lora.up.weight"),
    "linear layer": (".lora_linear_layer.down.weight", ".lora_linear_layer.up.weight"),
}
DOTTED = (
    "transformer.", "diffusion_model.", "model.diffusion_model.", "base_model.model.",
    "transformer.base_model.model.", "unet.", "pipe.dit.", "",
)  # fmt: skip
FLAT = ("lora_unet_", "lora_transformer_", "lycoris_")
NAMINGS = ("bfl", "diffusers", "flux1", "half-flat bfl", "half-flat diffusers", "sformer")


def products(naming: str, layers: files.Layers) -> files.Products:
    if naming == "flux1":
        return files.flux1(layers.diffusers)
    chosen = layers.bfl if "bfl" in naming else layers.diffusers
    if naming.startswith("half-flat"):
        return {half_flat(name): each for name, each in chosen.items()}
    if naming == "sformer":
        return {
            name.replace("transformer_", "sformer_", 1) if name.startswith("transformer_") else name: each
            for name, each in chosen.items()
        }
    return chosen


def spelled(
    layers: files.Layers, naming: str, prefix: str, pair: tuple[str, str], alpha: float | None = None
) -> dict[str, Tensor]:
    """All keys of a file; `alpha` is that of every layer, and ΔW is what it was without."""
    tensors = {}
    for name, (a, b) in products(naming, layers).items():
        stem = prefix + (flat(name) if prefix in FLAT else name)
        tensors[stem + pair[0]], tensors[stem + pair[1]] = a, b if alpha is None else b * (len(a) / alpha)
        if alpha is not None:
            tensors[f"{stem}.alpha"] = torch.tensor(alpha)
    return tensors


@pytest.mark.parametrize(
    ("prefix", "naming"),
    [(prefix, naming) for prefix in DOTTED for naming in NAMINGS]
    + [(prefix, naming) for prefix in FLAT for naming in NAMINGS[:3]],
)
def test_every_prefix_and_naming(tmp_path: Path, prefix: str, naming: str) -> None:
    layers = files.layers()
    path = save(tmp_path / "a.safetensors", spelled(layers, naming, prefix, PAIRS["A/B"]))
    loaded = read_adapter(path, SPEC)
    same(loaded.adapter, layers.truth)
    assert loaded.coverage.complete
    assert len(loaded.coverage.matched) == loaded.coverage.num_layers


@pytest.mark.parametrize("pair", PAIRS.values(), ids=PAIRS)
@pytest.mark.parametrize("alpha", [None, 1.0, 3.0, 7.5])
def test_every_pair_of_suffixes_with_and_without_alpha(tmp_path: Path, pair: tuple[str, str], alpha: float) -> None:
    layers = files.layers()
    path = save(tmp_path / "a.safetensors", spelled(layers, "bfl", "diffusion_model.", pair, alpha))
    same(read_adapter(path, SPEC).adapter, layers.truth, limit=2e-6)


@settings(max_examples=40)
@given(
    rank=st.integers(1, 9),
    alpha=st.none() | st.floats(0.25, 64),
    prefix=st.sampled_from((*DOTTED, *FLAT)),
    naming=st.sampled_from(("bfl", "diffusers", "flux1")),
    pair=st.sampled_from(list(PAIRS.values())),
    seed=st.integers(0, 99),
)
def test_any_rank_alpha_prefix_and_suffix(
    tmp_path_factory: pytest.TempPathFactory,
    rank: int,
    alpha: float | None,
    prefix: str,
    naming: str,
    pair: tuple[str, str],
    seed: int,
) -> None:
    layers = files.layers(rank, seed, only=("double_blocks.1", "single_blocks.2", "final_layer"))
    path = save(
        tmp_path_factory.mktemp("any") / "a.safetensors",
        spelled(layers, naming, prefix, pair, alpha and float(torch.tensor(alpha))),
    )
    same(read_adapter(path, SPEC).adapter, layers.truth, limit=4e-6)


def test_fused_layers_made_of_split_ones_are_split_again(tmp_path: Path) -> None:
    layers = files.layers(rank=4)
    path = save(tmp_path / "a.safetensors", spelled(layers, "bfl", "", PAIRS["A/B"]))
    entries = [e for e in read_adapter(path, SPEC).adapter.entries if e.module == "double_blocks.0.txt_attn.qkv"]
    assert [entry.rows for entry in entries] == [(0, D), (D, 2 * D), (2 * D, 3 * D)]
    assert {entry.change.rank for entry in entries} == {4}


def test_fused_layers_trained_as_such_stay_so(tmp_path: Path) -> None:
    a, b = torch.randn(6, D), torch.randn(3 * D, 6)
    name = "diffusion_model.double_blocks.0.img_attn.qkv"
    path = save(tmp_path / "a.safetensors", {f"{name}.lora_A.weight": a, f"{name}.lora_B.weight": b})
    (entry,) = read_adapter(path, SPEC).adapter.entries
    assert entry.rows is None
    assert entry.change.rank == 6


def test_the_queries_keys_and_values_of_a_single_block_alone(tmp_path: Path) -> None:
    a, b = torch.randn(2, D), torch.randn(3 * D, 2)
    name = "diffusion_model.single_blocks.1.linear1_qkv"
    path = save(tmp_path / "a.safetensors", {f"{name}.lora_down.weight": a, f"{name}.lora_up.weight": b})
    (entry,) = read_adapter(path, SPEC).adapter.entries
    assert (entry.module, entry.rows) == ("single_blocks.1.linear1", (0, 3 * D))


@pytest.mark.parametrize(
    ("metadata", "scale"),
    [
        ({"transformer.r": 4, "transformer.lora_alpha": 2}, 0.5),
        ({"r": 4, "lora_alpha": 8}, 2.0),
        ({"transformer.r": 4, "transformer.lora_alpha": 8, "transformer.use_rslora": True}, 4.0),
        ({"transformer.lora_alpha": 8, "transformer.alpha_pattern": {"ff.linear_in": 12}}, 3.0),
        ({"transformer.lora_alpha": 8, "transformer.alpha_pattern": {"^transformer_blocks.0.ff.linear_in": 12}}, 3.0),
        ({"transformer.lora_alpha": 8, "transformer.alpha_pattern": {"ff.linear_out": 12}}, 2.0),
        ({"text_encoder.lora_alpha": 8}, 1.0),
    ],
)
def test_alpha_in_metadata(tmp_path: Path, metadata: dict[str, object], scale: float) -> None:
    (entry,) = read_adapter(_one(tmp_path, metadata), SPEC).adapter.entries
    assert entry.scale == pytest.approx(scale)


def test_a_layers_own_alpha_comes_before_metadata(tmp_path: Path) -> None:
    path = _one(tmp_path, {"transformer.r": 4, "transformer.lora_alpha": 2}, alpha=torch.tensor(4.0))
    (entry,) = read_adapter(path, SPEC).adapter.entries
    assert entry.scale == 1.0


def test_alpha_in_pefts_config_beside_the_file(tmp_path: Path) -> None:
    path = _one(tmp_path, None, name="adapter_model.safetensors")
    (tmp_path / "adapter_config.json").write_text(json.dumps({"r": 4, "lora_alpha": 16}))
    (entry,) = read_adapter(path, SPEC).adapter.entries
    assert entry.scale == 4.0
    other = path.rename(tmp_path / "other.safetensors")  # the config is not this file's
    assert read_adapter(other, SPEC).adapter.entries[0].scale == 1.0


def test_metadata_that_cannot_be_read_are_an_error(tmp_path: Path) -> None:
    for text in ("{", "[]", '{"lora_alpha": "much"}', '{"lora_alpha": 1, "alpha_pattern": {"(a+)+b": 1}}'):
        tensors = _tensors()
        path = save(tmp_path / "a.safetensors", tensors, {"lora_adapter_metadata": text})
        with pytest.raises(WeightsError, match="alpha and rank cannot be read"):
            read_adapter(path, SPEC)


def _tensors() -> dict[str, Tensor]:
    name = "transformer.transformer_blocks.0.ff.linear_in"
    return {f"{name}.lora_A.weight": torch.randn(4, D), f"{name}.lora_B.weight": torch.randn(6 * D, 4)}


def _one(
    folder: Path, metadata: dict[str, object] | None, *, name: str = "a.safetensors", alpha: Tensor | None = None
) -> Path:
    tensors = _tensors()
    if alpha is not None:
        tensors["transformer.transformer_blocks.0.ff.linear_in.alpha"] = alpha
    return save(folder / name, tensors, metadata and {"lora_adapter_metadata": json.dumps(metadata)})


@pytest.mark.parametrize("prefix", ["diffusion_model.", "lycoris_", "lora_unet_"])
@pytest.mark.parametrize("parted", [(), ("w1",), ("w2",), ("w1", "w2")])
def test_kronecker_products(tmp_path: Path, prefix: str, parted: tuple[str, ...]) -> None:
    name = "double_blocks.0.img_attn.qkv" if prefix != "lycoris_" else "transformer_blocks_0_attn_to_qkv"
    stem = prefix + (flat(name) if prefix in FLAT else name)
    shapes, tensors, factors = {"w1": (6, 4), "w2": (3 * D // 6, D // 4)}, {}, {}
    for each, (rows, columns) in shapes.items():
        if each in parted:
            up, down = torch.randn(rows, 2), torch.randn(2, columns)
            tensors[f"{stem}.lokr_{each}_a"], tensors[f"{stem}.lokr_{each}_b"], factors[each] = up, down, up @ down
        else:
            tensors[f"{stem}.lokr_{each}"] = factors[each] = torch.randn(rows, columns)
    tensors[f"{stem}.alpha"] = torch.tensor(5.0)
    (entry,) = read_adapter(save(tmp_path / "a.safetensors", tensors), SPEC).adapter.entries
    assert isinstance(entry.change, Kronecker)
    assert entry.scale == (2.5 if parted else 1.0)  # alpha means nothing where no factor has a rank
    expected = torch.kron(factors["w1"], factors["w2"]) * entry.scale
    assert torch.allclose(entry.delta(), expected, atol=1e-5)


def test_hadamard_products(tmp_path: Path) -> None:
    stem, parts = "lycoris_transformer_blocks_1_ff_linear_in", {}
    for i in (1, 2):
        parts[f"{stem}.hada_w{i}_a"], parts[f"{stem}.hada_w{i}_b"] = torch.randn(6 * D, 3), torch.randn(3, D)
    path = save(tmp_path / "a.safetensors", {**parts, f"{stem}.alpha": torch.tensor(6.0)})
    (entry,) = read_adapter(path, SPEC).adapter.entries
    assert isinstance(entry.change, Hadamard)
    first, second = (parts[f"{stem}.hada_w{i}_a"] @ parts[f"{stem}.hada_w{i}_b"] for i in (1, 2))
    assert torch.allclose(entry.delta(), 2 * first * second, atol=1e-5)


def test_whole_matrices(tmp_path: Path) -> None:
    weight = torch.randn(D, D)
    path = save(tmp_path / "a.safetensors", {"diffusion_model.double_blocks.0.img_attn.proj.diff": weight})
    (entry,) = read_adapter(path, SPEC).adapter.entries
    assert torch.equal(entry.delta(), weight)


@pytest.mark.parametrize("shape", [(2 * D,), (2 * D, 1), (1, D)])
@pytest.mark.parametrize("suffix", [".dora_scale", ".lora_magnitude_vector", ".lora_magnitude_vector.default.weight"])
def test_magnitudes_by_rows_and_by_columns(tmp_path: Path, suffix: str, shape: tuple[int, ...]) -> None:
    magnitude = torch.rand(shape)
    path = save(tmp_path / "a.safetensors", {f"norm_out.linear{suffix}": magnitude, **_norm_out()})
    (entry,) = read_adapter(path, SPEC).adapter.entries
    assert entry.module == ADA
    assert entry.magnitude is not None
    expected = magnitude if shape == (1, D) else files.swap(magnitude.flatten())
    assert torch.equal(entry.magnitude, expected)


def _norm_out() -> dict[str, Tensor]:
    return {"norm_out.linear.lora_A.weight": torch.randn(2, D), "norm_out.linear.lora_B.weight": torch.randn(2 * D, 2)}


def test_keys_of_text_encoders_are_skipped_and_told(tmp_path: Path) -> None:
    others = {f"{name}.lora_A.weight": torch.randn(2, 8) for name in ("text_encoders.qwen3.x", "lora_te1_x")}
    loaded = read_adapter(save(tmp_path / "a.safetensors", {**_tensors(), **others}), SPEC)
    assert loaded.coverage.skipped == tuple(sorted(others))
    assert loaded.coverage.complete


def test_a_key_that_does_not_match_is_an_error_unless_lenient(tmp_path: Path) -> None:
    extra = {"transformer.transformer_blocks.9.ff.linear_in.lora_A.weight": torch.randn(4, D), "what": torch.zeros(1)}
    path = save(tmp_path / "a.safetensors", {**_tensors(), **extra})
    with pytest.raises(WeightsError, match="2 of 4 tensors do not match") as raised:
        read_adapter(path, SPEC)
    assert all(name in raised.value.message for name in extra)
    loaded = read_adapter(path, SPEC, lenient=True)
    assert set(loaded.coverage.unmatched) == set(extra)
    assert not loaded.coverage.complete
    assert len(loaded.adapter.entries) == 1


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"transformer.transformer_blocks.0.ff.linear_in.lora_B.weight": None}, "half of a pair"),
        ({"transformer.transformer_blocks.0.ff.linear_in.lora_A.weight": None}, "half of a pair"),
        ({"transformer.transformer_blocks.0.ff.linear_in.lora_B.weight": torch.randn(6 * D, 3)}, "ranks 3 and 4"),
        ({"transformer.transformer_blocks.0.ff.linear_in.lora_B.weight": torch.randn(D, 4)}, "64x64; this model's is"),
        ({"transformer.transformer_blocks.0.ff.linear_in.lora_B.weight": torch.randn(6 * D)}, "no matrix"),
        ({"transformer.transformer_blocks.0.ff.linear_in.alpha": torch.ones(2)}, "not a number but 2"),
        ({"transformer.transformer_blocks.0.ff.linear_in.dora_scale": torch.ones(7)}, "no magnitude"),
        (
            {"transformer.transformer_blocks.0.ff.linear_in.lora_B.weight": torch.full((6 * D, 4), torch.nan)},
            "NaN or infinity",
        ),
        ({"transformer.transformer_blocks.0.ff.linear_in.alpha": torch.tensor(torch.inf)}, "NaN or infinity"),
        (
            {"transformer.transformer_blocks.0.ff.linear_in.lora_A.weight": torch.ones(4, D, dtype=torch.int64)},
            "I64, which is no type",
        ),
        ({"transformer.transformer_blocks.0.ff.linear_in.diff_b": torch.zeros(6 * D)}, "change of a bias"),
        ({"transformer.transformer_blocks.0.ff.linear_in.lora_B.bias": torch.zeros(6 * D)}, "change of a bias"),
        ({"transformer.transformer_blocks.0.ff.linear_in.oft_blocks": torch.zeros(2, 2)}, "OFT"),
        ({"transformer.transformer_blocks.0.ff.linear_in.lora_mid.weight": torch.zeros(2, 2)}, "Tucker"),
        ({"lycoris_transformer_blocks_0_ff_linear_in.hada_t1": torch.zeros(2, 2)}, "Tucker"),
        ({"lycoris_transformer_blocks_0_ff_linear_in.lokr_t2": torch.zeros(2, 2)}, "Tucker"),
        ({"diffusion_model.img_in.set_weight": torch.zeros(2, 2)}, "replace"),
        ({"diffusion_model.img_in.reshape_weight": torch.zeros(2)}, "shapes"),
        ({"transformer.transformer_blocks.0.ff.linear_in.lora_down.weight": torch.randn(4, D)}, "say the same"),
        ({"diffusion_model.double_blocks.0.img_mlp.0.diff": torch.randn(6 * D, D)}, "change the same layer"),
        ({"transformer.x_embedder.lora_A.other.weight": torch.zeros(2, 2)}, None),
    ],
)
def test_what_is_wrong_is_told(tmp_path: Path, change: dict[str, Tensor | None], words: str | None) -> None:
    tensors = {name: tensor for name, tensor in {**_tensors(), **change}.items() if tensor is not None}
    with pytest.raises(WeightsError, match=words):
        read_adapter(save(tmp_path / "a.safetensors", tensors), SPEC)


def test_several_adapters_in_one_file_are_refused(tmp_path: Path) -> None:
    tensors = {}
    for name in ("one", "two"):
        tensors[f"img_in.lora_A.{name}.weight"], tensors[f"img_in.lora_B.{name}.weight"] = (
            torch.randn(2, 128),
            torch.randn(D, 2),
        )
    with pytest.raises(WeightsError, match="several adapters: one, two"):
        read_adapter(save(tmp_path / "a.safetensors", tensors), SPEC)


def test_files_that_are_no_adapters(tmp_path: Path) -> None:
    text, pickled, cut, model = (tmp_path / name for name in ("a.txt", "b.pt", "c.safetensors", "d.safetensors"))
    text.write_text("a letter")
    pickled.write_bytes(pickle.dumps({"x": 1}))
    whole = save(tmp_path / "whole.safetensors", _tensors()).read_bytes()
    cut.write_bytes(whole[:-10])
    save(model, {"double_blocks.0.img_attn.proj.weight": torch.zeros(D, D)})
    for path, words in ((text, "neither"), (pickled, "pickle"), (cut, "cut short"), (model, "is no adapter")):
        with pytest.raises(WeightsError, match=words):
            read_adapter(path, SPEC)
    with pytest.raises(WeightsError, match="there is no adapter file"):
        read_adapter(tmp_path / "nowhere.safetensors", SPEC)
    cut.write_bytes(b"")
    with pytest.raises(WeightsError):
        read_adapter(cut, SPEC)


def _of_width(path: Path, hidden: int) -> Path:
    name = "diffusion_model.double_blocks.1.img_attn.qkv"
    return save(
        path, {f"{name}.lora_A.weight": torch.zeros(2, hidden), f"{name}.lora_B.weight": torch.ones(3 * hidden, 2)}
    )


def test_an_adapter_of_another_family_is_told_as_such(tmp_path: Path) -> None:
    widths = {"nano": specs()["nano"].hidden_size, "klein-4b": 3072, "klein-9b": 4096}
    paths = {name: _of_width(tmp_path / f"{name}.safetensors", width) for name, width in widths.items()}
    assert {name: family_of(read_adapter_header(path)) for name, path in paths.items()} == {
        name: name for name in paths
    }
    with pytest.raises(WeightsError, match="12288x4096; this model's is 9216x3072") as raised:
        read_adapter(paths["klein-9b"], official.KLEIN_4B.transformer)
    assert "klein-9b" in raised.value.hint


def test_blocks_that_only_the_larger_model_has(tmp_path: Path) -> None:
    name = f"diffusion_model.double_blocks.{DOUBLES + 4}.img_attn.proj"
    path = save(
        tmp_path / "a.safetensors",
        {f"{name}.lora_A.weight": torch.zeros(2, 4096), f"{name}.lora_B.weight": torch.ones(4096, 2)},
    )
    with pytest.raises(WeightsError, match="it is for klein-9b"):
        read_adapter(path, official.KLEIN_4B.transformer)


@pytest.mark.parametrize(
    ("prefix", "naming", "pair", "alpha", "origin"),
    [
        ("transformer.", "diffusers", "A/B", None, "diffusers"),
        ("diffusion_model.", "bfl", "A/B", None, "ai-toolkit"),
        ("diffusion_model.", "bfl", "A/B", 1.0, "ComfyUI"),
        ("lora_unet_", "bfl", "down/up", 1.0, "musubi"),
        ("base_model.model.", "bfl", "A/B", None, "fal"),
        ("transformer.", "diffusers", "down/up", 1.0, "OneTrainer"),
        ("", "diffusers", "A/B, named", None, "DiffSynth"),
        ("pipe.dit.", "bfl", "A/B", None, "unknown"),
    ],
)
def test_who_wrote_a_file(tmp_path: Path, prefix: str, naming: str, pair: str, alpha: float, origin: str) -> None:
    path = save(tmp_path / "a.safetensors", spelled(files.layers(), naming, prefix, PAIRS[pair], alpha))
    assert origin in read_adapter(path, SPEC).origin


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_numbers_of_other_types(tmp_path: Path, dtype: torch.dtype) -> None:
    path = save(tmp_path / "a.safetensors", {name: tensor.to(dtype) for name, tensor in _tensors().items()})
    (entry,) = read_adapter(path, SPEC).adapter.entries
    assert entry.change.a_RI.dtype == torch.float32


@settings(max_examples=150)
@given(
    keys=st.lists(
        st.tuples(
            st.sampled_from([*DOTTED, *FLAT, "lora_te1_", "x."]),
            st.sampled_from(
                [
                    "double_blocks.0.img_attn.qkv",
                    "transformer_blocks.0.attn.to_q",
                    "img_in",
                    "norm_out.linear",
                    "a.b",
                    "",
                ]
            ),
            st.sampled_from(
                [*(suffix for pair in PAIRS.values() for suffix in pair), ".alpha", ".dora_scale", ".diff", ".diff_b"]
                + [f".lokr_{w}{part}" for w in ("w1", "w2") for part in ("", "_a", "_b")]
                + [f".hada_{w}{part}" for w in ("w1", "w2") for part in ("_a", "_b")]
                + [".oft_blocks", ".weight", ""]
            ),
            st.lists(st.sampled_from([0, 1, 2, 3, D, 3 * D, 128]), max_size=2) | st.just([2, D, 1, 1]),
        ),
        max_size=6,
    ),
    lenient=st.booleans(),
)
def test_no_file_brings_the_reader_down(
    tmp_path_factory: pytest.TempPathFactory, keys: list[tuple[str, str, str, list[int]]], lenient: bool
) -> None:
    """It is read, or there is an error in words."""
    tensors = {prefix + body + suffix or "x": torch.zeros(shape) for prefix, body, suffix, shape in keys}
    path = save(tmp_path_factory.mktemp("fuzz") / "a.safetensors", tensors)
    with contextlib.suppress(WeightsError):
        coverage = read_adapter(path, SPEC, lenient=lenient).coverage
        assert coverage.num_read + len(coverage.unmatched) + len(coverage.skipped) == len(tensors)
