"""The diffusers folder: the real pipeline loads it, takes prompts for the same tokens and has the same networks."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DiffusionPipeline, Flux2KleinKVPipeline, Flux2KleinPipeline

from kleinbild.core.errors import OutputError
from kleinbild.model.weights import Model, load_model
from kleinbild.model.weights.export import export_diffusers
from tests import tiny
from tests.parity.reference import assert_close

LAYERS = tiny.SETTINGS.text_layers
LENGTH = tiny.SETTINGS.max_text_tokens


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> tuple[Model, Path, Any]:
    folder = tmp_path_factory.mktemp("models")
    path = tiny.write_model(folder / "source")
    target = export_diffusers(str(path), folder / "new" / "exported")
    return load_model(path), target, Flux2KleinPipeline.from_pretrained(target)


def test_the_pipeline_loads(exported: tuple[Model, Path, Any]) -> None:
    _, folder, pipe = exported
    assert pipe.config.is_distilled is True
    assert {pipe.transformer.dtype, pipe.vae.dtype, pipe.text_encoder.dtype} == {torch.float32}
    assert pipe.scheduler.config.use_dynamic_shifting is True
    assert {path.name for path in folder.iterdir()} == {
        "transformer", "vae", "text_encoder", "tokenizer", "scheduler", "model_index.json", "kleinbild.json", "README.md",
    }  # fmt: skip


@pytest.mark.parametrize("prompt", ["a red cat", "Two BLUE dogs!!", "", "é 🐈 … odd"])
def test_tokens_and_context_agree(exported: tuple[Model, Path, Any], prompt: str) -> None:
    model, _, pipe = exported
    tokenized = model.tokenizer(prompt)
    text = pipe.tokenizer.apply_chat_template(
        [{"role": "user", "content": prompt}], tokenize=False, add_generation_prompt=True, enable_thinking=False
    )
    theirs = pipe.tokenizer(text, padding="max_length", truncation=True, max_length=LENGTH)
    assert theirs.input_ids == tokenized.ids.tolist()
    assert theirs.attention_mask == tokenized.mask.tolist()
    with torch.no_grad():
        context = model.text_encoder(tokenized.ids[None], tokenized.mask[None])
        expected, _ = pipe.encode_prompt(prompt, max_sequence_length=LENGTH, text_encoder_out_layers=LAYERS)
    assert_close(context, expected)


def test_the_pipeline_makes_a_picture(exported: tuple[Model, Path, Any]) -> None:
    _, folder, pipe = exported
    pipe.set_progress_bar_config(disable=True)
    settings = json.loads((folder / "kleinbild.json").read_text())
    picture = pipe(
        prompt="a red cat",
        height=48,
        width=80,
        num_inference_steps=settings["default_steps"],
        guidance_scale=settings["default_guidance"],
        max_sequence_length=settings["max_text_tokens"],
        text_encoder_out_layers=settings["text_layers"],
        generator=torch.Generator().manual_seed(0),
    ).images[0]
    assert picture.size == (80, 48)
    assert len(picture.getcolors(10_000)) > 100


def test_variants(tmp_path: Path) -> None:
    base = tiny.write_model(tmp_path / "base", settings=replace(tiny.SETTINGS, distilled=False))
    pipe = DiffusionPipeline.from_pretrained(export_diffusers(str(base), tmp_path / "exported-base"))
    assert isinstance(pipe, Flux2KleinPipeline)
    assert pipe.config.is_distilled is False
    cached = tiny.write_model(tmp_path / "kv", settings=replace(tiny.SETTINGS, reference_caching=True))
    folder = export_diffusers(str(cached), tmp_path / "exported-kv")
    assert isinstance(DiffusionPipeline.from_pretrained(folder), Flux2KleinKVPipeline)
    assert load_model(folder).settings.reference_caching


def test_half_the_size(tmp_path: Path) -> None:
    path = tiny.write_model(tmp_path / "source")
    folder = export_diffusers(str(path), tmp_path / "exported", precision="bfloat16")
    assert json.loads((folder / "text_encoder" / "config.json").read_text())["dtype"] == "bfloat16"
    file = folder / "transformer" / "diffusion_pytorch_model.safetensors"
    assert file.stat().st_size == pytest.approx(path.stat().st_size / 2, rel=0.05)


def test_a_folder_in_use_is_left_alone(tmp_path: Path) -> None:
    path = tiny.write_model(tmp_path / "source")
    with pytest.raises(OutputError, match="is there already and not empty"):
        export_diffusers(str(path), path.parent)
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="cannot be written"):
        export_diffusers(str(path), tmp_path / "file" / "exported")
    assert not [p for p in tmp_path.iterdir() if p.name.startswith(".")]
