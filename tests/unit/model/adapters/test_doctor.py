"""What a file is said to be, and that a conversion proves what it did. Adapters of nano, whose shapes are known."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from kleinbild.core.errors import OutputError, RequestError, WeightsError
from kleinbild.model.adapters.convert import compare, convert
from kleinbild.model.adapters.doctor import Diagnosis, diagnose, weight_norms
from kleinbild.model.adapters.families import specs
from kleinbild.model.adapters.names import modules
from kleinbild.model.adapters.read import read_adapter
from kleinbild.model.adapters.spellings import SPELLINGS
from kleinbild.model.weights import load_model
from tests.unit.model.adapters.files import save

NANO = specs()["nano"]
D = NANO.hidden_size
PROJ, LINEAR1, QKV = "double_blocks.1.img_attn.proj", "single_blocks.3.linear1", "double_blocks.0.txt_attn.qkv"


def pair(
    stem: str, module: str, rank: int = 4, *, size: float = 0.1, styles: tuple[str, str] = ("lora_A", "lora_B")
) -> dict[str, Tensor]:
    rows, columns = modules(NANO)[module]
    return {
        f"{stem}.{styles[0]}.weight": torch.randn(rank, columns) * columns**-0.5,
        f"{stem}.{styles[1]}.weight": size * torch.randn(rows, rank),
    }


def aitk(**changes: Tensor) -> dict[str, Tensor]:
    names = (PROJ, LINEAR1, QKV)
    tensors = {key: tensor for name in names for key, tensor in pair(f"diffusion_model.{name}", name).items()}
    return {**tensors, **changes}


def effects(diagnosis: Diagnosis, program: str) -> str:
    return "; ".join(trap.effect for trap in diagnosis.traps if trap.program == program)


def test_an_ordinary_file(tmp_path: Path) -> None:
    path = save(tmp_path / "a.safetensors", aitk(), {"note": "mine"})
    found = diagnose(path, norms=weight_norms("nano-base"))
    assert (found.family, found.origin, found.kinds, found.ranks) == (
        "nano", "ai-toolkit or diffusion-pipe", {"LoRA": 3}, {4: 3},
    )  # fmt: skip
    assert [block.name for block in found.blocks] == ["double_blocks.0", "double_blocks.1", "single_blocks.3"]
    assert found.traps == found.dead == ()
    assert found.metadata == {"note": "mine"}
    adapter = read_adapter(path, NANO).adapter
    by_hand = math.sqrt(sum(float(entry.delta().norm()) ** 2 for entry in adapter.entries))
    assert found.norm == pytest.approx(by_hand, rel=1e-5)
    network = load_model("nano-base").transformer
    weights = math.sqrt(sum(float(network.get_submodule(name).weight.norm()) ** 2 for name in (PROJ, LINEAR1, QKV)))
    assert found.relative == pytest.approx(by_hand / weights, rel=1e-4)
    json.dumps(found.to_json())


def test_norms_of_every_kind_of_change(tmp_path: Path) -> None:
    stem, (rows, columns) = f"diffusion_model.{PROJ}", modules(NANO)[PROJ]
    low, high = torch.randn(rows, 3), torch.randn(3, columns)
    files = {
        "LoHa": {f"{stem}.hada_w{i}_{half}": tensor for i in (1, 2) for half, tensor in (("a", low), ("b", high))},
        "LoKr": {f"{stem}.lokr_w1": torch.randn(4, 4), f"{stem}.lokr_w2_a": torch.randn(rows // 4, 2),
                 f"{stem}.lokr_w2_b": torch.randn(2, columns // 4), f"{stem}.alpha": torch.tensor(3.0)},
        "a whole matrix": {f"{stem}.diff": torch.randn(rows, columns)},
    }  # fmt: skip
    for kind, tensors in files.items():
        path = save(tmp_path / "a.safetensors", tensors)
        found = diagnose(path)
        (entry,) = read_adapter(path, NANO).adapter.entries
        assert found.kinds == {kind: 1}
        assert found.norm == pytest.approx(float(entry.delta().norm()), rel=1e-4)


def test_alpha_that_others_do_not_see(tmp_path: Path) -> None:
    """Trained with alpha twice the rank by diffusers: ComfyUI plays it at half its strength."""
    config = {"lora_adapter_metadata": json.dumps({"transformer.r": 4, "transformer.lora_alpha": 8})}
    path = save(tmp_path / "a.safetensors", pair("transformer.transformer_blocks.1.attn.to_out.0", PROJ), config)
    found = diagnose(path)
    assert found.scales == {2.0: 1}
    assert [(trap.program, trap.factor) for trap in found.traps] == [("ComfyUI", 0.5)]
    assert "0.5 times as strongly" in effects(found, "ComfyUI")
    assert any("convert" in line for line in found.advice)
    convert(path, tmp_path / "b.safetensors")
    assert diagnose(tmp_path / "b.safetensors").traps == ()


def test_what_others_would_lose(tmp_path: Path) -> None:
    own = f"diffusion_model.{PROJ}"
    base = pair(own, PROJ)
    shape = modules(NANO)[PROJ]
    files: dict[str, tuple[dict[str, Tensor], str, str]] = {
        "alpha": ({**base, f"{own}.alpha": torch.tensor(2.0)}, "diffusers", "refuses it: keys with .alpha"),
        "down": (pair(f"transformer.{PROJ}", PROJ, styles=("lora_down", "lora_up")), "diffusers", "loads nothing"),
        "bare": (pair(PROJ, PROJ), "diffusers", "loads nothing"),
        "fal": (pair(f"base_model.model.{PROJ}", PROJ), "ComfyUI", "loads nothing"),
        "dora": ({**base, f"{own}.dora_scale": torch.ones(shape[0], 1)}, "diffusers", "leaves out the DoRA"),
        "peft's dora": ({**base, f"{own}.lora_magnitude_vector": torch.ones(shape[0])}, "ComfyUI", "leaves out the DoRA"),
        "diff": ({f"{own}.diff": torch.ones(shape)}, "diffusers", "refuses it: it knows"),
        "adaLN": (
            pair("diffusion_model.final_layer.adaLN_modulation.1", "final_layer.adaLN_modulation.1"),
            "diffusers",
            "mixes up shift and scale",
        ),
        "time": (
            pair("transformer.single_stream_modulation.linear", "single_stream_modulation.lin"), "ComfyUI", "loads nothing",
        ),
    }  # fmt: skip
    for name, (tensors, program, effect) in files.items():
        assert effect in effects(diagnose(save(tmp_path / "a.safetensors", tensors)), program), name


def test_keys_that_match_nothing_and_layers_that_change_nothing(tmp_path: Path) -> None:
    tensors = aitk(surplus=torch.zeros(1))
    tensors[f"diffusion_model.{PROJ}.lora_B.weight"].zero_()
    found = diagnose(save(tmp_path / "a.safetensors", tensors))
    assert found.dead == (PROJ,)
    assert found.coverage.unmatched == ("surplus",)
    assert found.reasons["surplus"]
    assert len(found.advice) == 2


def test_advice_follows_the_strength(tmp_path: Path) -> None:
    norms = weight_norms("nano")
    for size, words in ((1e-4, "faint"), (0.1, "ordinary"), (10.0, "strong")):
        path = save(tmp_path / "a.safetensors", pair(f"diffusion_model.{PROJ}", PROJ, size=size))
        assert words in " ".join(diagnose(path, norms=norms).advice)


def test_a_file_for_no_known_family(tmp_path: Path) -> None:
    name = f"diffusion_model.{PROJ}"
    path = save(
        tmp_path / "a.safetensors",
        {f"{name}.lora_A.weight": torch.ones(2, 7), f"{name}.lora_B.weight": torch.ones(7, 2)},
    )
    with pytest.raises(WeightsError, match="fits none of nano, klein-4b, klein-9b"):
        diagnose(path)
    save(path, {**aitk(), f"{name}.lora_A.weight": torch.ones(4, 7)})
    with pytest.raises(WeightsError, match=r"nearest to nano, but .*224x7; this model's is 224x224"):
        diagnose(path)
    save(path, {"some.lora_A.weight": torch.ones(2, 7), "some.lora_B.weight": torch.ones(7, 2)})
    with pytest.raises(WeightsError, match=r"some\.lora_A\.weight: no such layer"):
        diagnose(path)


@pytest.mark.parametrize("first", SPELLINGS)
def test_from_any_spelling_to_any_other(tmp_path: Path, first: str) -> None:
    source, between, back = (tmp_path / f"{name}.safetensors" for name in ("a", "b", "c"))
    save(source, aitk())
    convert(source, between, to=first)
    for second in SPELLINGS:
        done = convert(between, back, to=second)
        assert done.relative < 1e-6
        assert done.num_layers == 3
        assert compare(read_adapter(source, NANO).adapter, read_adapter(back, NANO).adapter, NANO)[0] < 1e-6


def test_numbers_keep_their_type_where_nothing_is_lost(tmp_path: Path) -> None:
    source, target = tmp_path / "a.safetensors", tmp_path / "b.safetensors"
    tensors = {name: tensor.bfloat16() for name, tensor in aitk().items()}
    for alpha, kept in ((2.0, {torch.bfloat16}), (3.0, {torch.bfloat16, torch.float32})):
        alphas = {f"diffusion_model.{name}.alpha": torch.tensor(alpha) for name in (PROJ, LINEAR1, QKV)}
        save(source, {**tensors, **alphas})
        assert convert(source, target, to="aitk").relative < 1e-6
        assert {tensor.dtype for tensor in load_file(target).values()} == kept


def test_metadata_are_passed_on_but_for_those_that_are_of_the_spelling(tmp_path: Path) -> None:
    source, target = tmp_path / "a.safetensors", tmp_path / "b.safetensors"
    config = json.dumps({"transformer.r": 4, "transformer.lora_alpha": 8})
    save(source, pair("transformer.proj_out", "final_layer.linear"), {"lora_adapter_metadata": config, "author": "me"})
    convert(source, target, to="kohya")
    assert read_adapter(target, NANO).metadata == {"author": "me", "format": "pt"}


def test_svd_of_what_a_spelling_cannot_say(tmp_path: Path) -> None:
    source, target = tmp_path / "a.safetensors", tmp_path / "b.safetensors"
    rows, columns = modules(NANO)[PROJ]
    delta = torch.randn(rows, columns)
    save(source, {f"diffusion_model.{PROJ}.diff": delta, **pair(f"diffusion_model.{LINEAR1}", LINEAR1, 2)})
    with pytest.raises(OutputError, match="cannot say") as raised:
        convert(source, target)
    assert "--svd RANK" in raised.value.hint
    assert not target.exists()
    done = convert(source, target, rank=16)
    sizes = torch.linalg.svdvals(delta)
    assert done.kept == {PROJ: pytest.approx(float(sizes[:16].square().sum() / sizes.square().sum()), rel=1e-4)}
    assert done.relative > 0.1
    assert diagnose(target).ranks == {16: 1, 2: 1}
    assert [trap.program for trap in convert(target, source, to="onetrainer").traps] == ["diffusers"]
    with pytest.raises(RequestError, match="no spelling"):
        convert(source, target, to="safetensors")
