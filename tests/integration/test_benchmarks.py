"""The programs in benchmarks/ run to their end on small models, and say what they are documented to say."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from math import prod
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from kleinbild.model.attention import ReferenceCache
from kleinbild.model.catalog import PACKAGED
from kleinbild.model.packing import Segment, pack
from kleinbild.model.transformer import Flux2Transformer
from kleinbild.model.weights import check, load_model
from kleinbild.nano.evaluate import GOALS
from kleinbild.train.nano import distill, finish, flow, pool, sharpen
from kleinbild.train.nano.pool import Data
from kleinbild.train.nano.whole import Plan
from tests import tiny

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
LAYOUTS = ("bfl", "diffusers", "comfyui", "gguf")
ABSENT = ("tokenizers", "jinja2", "PIL", "safetensors", "gguf", "diffusers", "transformers")

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
        models.append(load_model(folder, precision="bfloat16"))
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


@pytest.mark.parametrize("caching", [False, True])
def test_the_count_of_operations(load: Callable[[str], ModuleType], caching: bool) -> None:
    """Against torch's own counter, on the meta device, where nothing is padded or computed."""
    spec, segment, batch = tiny.SPEC.transformer, Segment(7, (4, 6), ((5, 2), (3, 3))), 2
    caches = [ReferenceCache() if caching else None for _ in range(batch)]
    with torch.device("meta"):
        network = Flux2Transformer(spec).requires_grad_(False)
    for first in (True, False):
        mode = ("store" if first else "stored") if caching else "joint"
        packing = pack([replace(segment, mode=mode)] * batch, spec, device="meta")
        rows = batch * (segment.num_image + (segment.num_references if first or not caching else 0))
        shapes = ((rows, spec.in_channels), (batch * segment.num_text, spec.context_size), (batch,))
        inputs = [torch.empty(shape, device="meta") for shape in shapes]
        with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counted:
            network(*inputs, packing, caches)
        work = load("gpu").work(spec, segment, batch, caching=caching, first=first)
        assert sum(work) == counted.get_total_flops()


@pytest.mark.filterwarnings("ignore")  # of torch's compiler and of diffusers: as in a process of its own
def test_gpu_rehearsed_on_the_cpu(run: Program) -> None:
    printed, result = run("gpu", "--device", "cpu", "--variant", "tiny", "--repeats", "1")
    rows = {(row["row"], row["name"]): row for row in result["rows"]}
    assert [row["problem"] for row in result["rows"] if row["problem"]] == []
    counts = ("1 reference", "2 references", "4 references")
    cases = ["64² text to image", "32² text to image", "32² text to image x2"]
    cases += [f"64² edit, {count}{cached}" for count in counts for cached in ("", ", cached")]
    assert {row for row, _ in rows} == {
        "ours bf16", "ours bf16 components", "ours bf16 blocks", "ours fp8", "diffusers bf16", "ours bf16 compiled", "ours fp8 compiled", "diffusers bf16 compiled",
    }  # fmt: skip
    for way, limit in (("ours bf16", 0.0), ("ours fp8", 0.05), ("diffusers bf16", 0.1)):
        for case in cases:
            row = rows[way, case]
            assert row["seconds"].keys() == {"text", "references", "pack", "denoise", "decode", "total"}
            assert row["differs"] <= limit, f"{way}, {case}"  # all compute the same picture
            assert row["matrix_rate_share"] > 0
    for way in ("ours bf16 components", "ours bf16 blocks"):
        assert rows[way, cases[0]]["differs"] == 0.0
    assert result["matrix_rate_tflops"].keys() == {"bf16", "fp8"}
    assert len(result["ratios"]) == len(cases) + 1
    assert result["aims"] == []  # they are for a GPU
    assert "64² edit, 4 references, cached" in printed


def test_what_nano_keeps_of_photographs(run: Program, tmp_path: Path) -> None:
    flat, noisy = tmp_path / "flat.png", tmp_path / "noisy.png"
    Image.new("RGB", (300, 200), "teal").save(flat)
    Image.effect_noise((200, 300), 120).convert("RGB").save(noisy)
    printed, figures = run("photographs", flat, noisy, "--sheet", tmp_path / "sheet.png")
    assert figures["count"] == 2
    smooth, rough = (float(line.split("autoencoder")[1].split()[0]) for line in printed.splitlines()[:2])
    assert smooth > 30 > 20 > rough
    assert figures["edit"] < figures["autoencoder"]
    with Image.open(tmp_path / "sheet.png") as sheet:
        assert sheet.size == (2 * 128, 3 * 128)


def test_training_nano_is_timed_and_fills_its_time(
    run: Program, load: Callable[[str], ModuleType], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pool, "NUM_MEASURED", 1)
    monkeypatch.setattr(finish, "NUM_OWN", 4)
    monkeypatch.setattr(flow, "lesson_share", lambda _step: 0.0)  # lessons need a larger pool
    for module in (flow, distill, finish):
        monkeypatch.setattr(module, "BATCH_SIZES", (2, 2, 2))
    for module in (sharpen, finish):
        monkeypatch.setattr(module, "TEXTURES", 1)
        monkeypatch.setattr(module, "SCENES", 1)
    few = Data(num_scenes=120)
    monkeypatch.setattr(load("train_nano"), "Plan", partial(Plan, data=few))
    given = (
        "--device",
        "cpu",
        "--scales",
        "1,2",
        "--steps",
        "1",
        "--scenes",
        "120",
        "--within",
        "0.1",
        "--out",
        tmp_path,
    )
    _, result = run("train_nano", *given)
    assert result["seconds"].keys() == {"sharpen", "base", "student", "finish"}
    assert all(by_scale["1"] > 0 for by_scale in result["seconds"].values())
    for name in ("nano", "nano-base", "autoencoder"):
        before, after = (load_file(folder / f"{name}.safetensors") for folder in (PACKAGED, tmp_path / "weights"))
        assert any(not torch.equal(tensor, before[key]) for key, tensor in after.items()), name


def test_cached_references_on_nano(run: Program) -> None:
    threads = str(torch.get_num_threads())
    printed, result = run("reference_cache", "--count", "1", "--repeats", "1", "--sides", "64", "--threads", threads)
    assert set(result["errors"]) == {goal.label for goal in GOALS if "object" in goal.task or "edit" in goal.label}
    right = [row["psnr"] for row in result["errors"].values() if row["exact_right"]]  # dB against the exact edit
    assert len(right) > 6
    assert np.median(right) > 35
    assert min(right) > 30  # where nano itself hesitates, small differences decide
    assert list(result["speeds"]) == ["1 of 64x64", "2 of 64x64", "4 of 64x64"]
    assert "edit: background" in printed


def test_gpu_needs_torch_alone_and_says_what_it_skips_when_its_budget_is_spent() -> None:
    program = (
        f"import runpy, sys; sys.modules |= dict.fromkeys({ABSENT});"  # None: cannot be imported
        f"sys.argv[0] = {str(BENCHMARKS / 'gpu.py')!r}; sys.path[0] = {str(BENCHMARKS)!r};"
        "runpy.run_path(sys.argv[0], run_name='__main__')"
    )
    arguments = ["--device", "cpu", "--variant", "tiny", "--budget-s", "0", "--json"]
    done = subprocess.run([sys.executable, "-c", program, *arguments], capture_output=True, text=True, check=True)
    printed, result = split(done.stdout)
    assert {row["problem"] for row in result["rows"]} == {"skipped: 0 s of 0 s were left"}
    assert printed.count("skipped") == len(result["rows"]) > 20
    assert "not installed: diffusers, transformers" in printed


def test_klein_cpu_rehearsed_against_diffusers(load: Callable[[str], ModuleType], tmp_path: Path) -> None:
    load("random_weights").write_model(tmp_path / "diffusers", "diffusers", load("random_weights").TINY)
    command = [sys.executable, BENCHMARKS / "klein_cpu.py", "--variant", "tiny", "--weights", tmp_path, "--json"]
    command += ["--peers", "diffusers,sdcpp", "--threads", "1", "--repeats", "1"]
    done = subprocess.run(command, env=dict(os.environ), capture_output=True, text=True, check=True)
    printed, result = split(done.stdout)
    bf16 = result["bf16"]
    for contestant in ("ours", "diffusers"):
        assert bf16[contestant]["seconds"].keys() == {"text", "denoise", "decode", "total"}, bf16[contestant]
    totals = [bf16[contestant]["seconds"]["total"] for contestant in ("diffusers", "ours")]
    assert bf16["diffusers_over_ours"] == pytest.approx(totals[0] / totals[1])
    assert 0.1 < bf16["peak_gb"] < 4
    assert bf16["sdcpp_over_ours"] is None  # absent, or without use for a tiny model
    assert bf16["sdcpp"]["problem"] in printed
