"""The programs in benchmarks/ run to their end on small models, and say what they are documented to say."""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Callable
from math import prod
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from kleinbild.model.weights import check, load_model

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
LAYOUTS = ("bfl", "diffusers", "comfyui", "gguf")

Program = Callable[..., tuple[str, dict[str, Any]]]


@pytest.fixture
def load(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], ModuleType]:
    monkeypatch.setattr(sys, "path", [str(BENCHMARKS), *sys.path])
    return importlib.import_module


@pytest.fixture
def run(
    load: Callable[[str], ModuleType], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Program:
    """Runs a program in this process; gives what it printed, and its JSON."""

    def program(name: str, *arguments: str | Path) -> tuple[str, dict[str, Any]]:
        monkeypatch.setattr(sys, "argv", [f"{name}.py", *map(str, arguments), "--json"])
        load(name).main()
        return split(capsys.readouterr().out)

    return program


def split(stdout: str) -> tuple[str, dict[str, Any]]:
    *printed, last = stdout.splitlines()
    return "\n".join(printed), json.loads(last)


def test_random_weights_are_a_whole_model_in_every_layout(load: Callable[[str], ModuleType], tmp_path: Path) -> None:
    random_weights, models = load("random_weights"), []
    for layout in LAYOUTS:
        folder = random_weights.write_model(tmp_path / layout, layout, random_weights.TINY)
        report = check(folder)
        assert report.complete, report
        assert report.components[0].layout == layout
        models.append(load_model(folder, dtype=torch.bfloat16))
    assert len({model.fingerprint for model in models}) == 1  # the same model, however it is stored
    assert models[0].spec == random_weights.TINY.spec
    for tensor in (*models[0].transformer.parameters(), *models[0].autoencoder.parameters()):
        if tensor.ndim > 1:
            assert 0.8 < float(tensor.float().std()) * prod(tensor.shape[1:]) ** 0.5 < 1.2


def test_random_weights_of_quantized_blocks(run: Program, tmp_path: Path) -> None:
    folder = tmp_path / "q8"
    printed, figures = run("random_weights", folder, "--layout", "gguf", "--variant", "tiny", "--dtype", "q8_0")
    assert set(figures["gigabytes"]) == {"tiny-q8_0.gguf", "text_encoder/model.safetensors", "ae.safetensors"}
    assert f"kleinbild models check {folder}" in printed
    report = check(folder)
    assert (report.complete, report.components[0].dtype) == (True, "Q8_0 + F32")
    assert load_model(folder).spec.transformer.num_single_blocks == 2


def test_the_official_shapes(load: Callable[[str], ModuleType]) -> None:
    random_weights = load("random_weights")
    spec = random_weights.KLEIN_4B.spec
    text = random_weights.text_encoder_shapes(spec.text_encoder, spec.text_encoder.num_layers)
    assert sum(map(prod, random_weights.transformer_shapes(spec.transformer).values())) == 3_875_544_576
    assert sum(map(prod, text.values())) + spec.text_encoder.hidden_size == 4_022_468_096
