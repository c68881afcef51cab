"""`check`: reports from headers alone."""

from __future__ import annotations

import json
import struct
import subprocess
import sys
import time
from math import prod
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from kleinbild.core.errors import MissingWeightsError, WeightsError
from kleinbild.model.official import KLEIN_4B
from kleinbild.model.weights import check
from kleinbild.model.weights.export import export_diffusers
from kleinbild.model.weights.shapes import transformer_shapes
from tests import tiny


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tiny.write_model(tmp_path / "models")


@pytest.fixture
def folder(path: Path, tmp_path: Path) -> Path:
    return export_diffusers(str(path), tmp_path / "exported")


def official_file(path: Path, *, leave_out: str = "") -> Path:
    """The header of a whole klein-4B file, and as many bytes as it promises: a hole that takes no room on disk."""
    header, at = {}, 0
    for name, shape in transformer_shapes(KLEIN_4B.transformer).items():
        if name != leave_out:
            size = 2 * prod(shape)
            header[name] = {"dtype": "BF16", "shape": list(shape), "data_offsets": [at, at + size]}
            at += size
    raw = json.dumps(header).encode()
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(raw)) + raw)
        file.truncate(8 + len(raw) + at)
    return path


@pytest.mark.alone
def test_an_official_file_in_milliseconds(tmp_path: Path) -> None:
    path = official_file(tmp_path / "flux-2-klein-base-4b.safetensors")
    start = time.perf_counter()
    report = check(path)
    assert time.perf_counter() - start < 0.5
    assert path.stat().st_size > 7e9
    assert (report.family, report.variant, report.complete) == ("klein-4b", "base", True)
    (component,) = report.components
    assert (component.kind, component.layout, component.dtype) == ("transformer", "bfl", "BF16")
    assert report.parameters == 3_875_544_576


def test_an_official_file_that_lacks_a_block(tmp_path: Path) -> None:
    report = check(official_file(tmp_path / "f.safetensors", leave_out="single_blocks.19.linear2.weight"))
    assert report.family == "klein-4b"
    assert not report.complete
    assert report.components[0].missing == ("single_blocks.19.linear2.weight",)


def test_a_whole_folder(folder: Path) -> None:
    report = check(folder)
    assert report.complete
    assert (report.family, report.variant) == ("nano", "distilled")
    assert [(c.kind, c.layout, c.dtype) for c in report.components] == [
        ("transformer", "diffusers", "F32"),
        ("text_encoder", "bfl", "F32"),
        ("autoencoder", "diffusers", "F32 + I64"),
    ]


def test_what_a_folder_lacks(folder: Path) -> None:
    (folder / "vae" / "diffusion_pytorch_model.safetensors").unlink()
    (folder / "tokenizer" / "tokenizer.json").unlink()
    report = check(folder)
    assert report.absent == ("autoencoder", "tokenizer")
    assert not report.complete


def test_parts_that_do_not_fit_each_other(folder: Path) -> None:
    settings = json.loads((folder / "kleinbild.json").read_text())
    (folder / "kleinbild.json").write_text(json.dumps({**settings, "text_layers": [1, 2]}))
    report = check(folder)
    assert not report.complete
    assert report.problem is not None
    assert "text context 72 wide, the text encoder gives 48" in report.problem


def test_every_missing_extra_and_misshapen_tensor(path: Path) -> None:
    state = load_file(path)
    for i in range(3):
        del state[f"single_blocks.{i}.linear1.weight"]
    state["img_in.weight"] = torch.ones(64, 127)
    state["odd"] = torch.ones(1)
    save_file(state, path)
    (component,) = check(path).components
    assert set(component.missing) == {f"single_blocks.{i}.linear1.weight" for i in range(3)}
    assert component.extra == ("odd",)
    assert [(m.name, m.expected, m.actual) for m in component.misshapen] == [("img_in.weight", (64, 128), (64, 127))]


def test_shards_by_their_index(path: Path, tmp_path: Path) -> None:
    state = load_file(path)
    names = sorted(state)
    files = {name: f"{i % 2}.safetensors" for i, name in enumerate(names)}
    for file in set(files.values()):
        save_file({name: state[name] for name in names if files[name] == file}, tmp_path / file)
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": files}))
    assert check(index).complete
    assert not check(tmp_path / "0.safetensors").complete


@pytest.mark.parametrize(("file", "kind"), [("text_encoder", "text_encoder"), ("autoencoder", "autoencoder")])
def test_other_networks_by_themselves(path: Path, file: str, kind: str) -> None:
    report = check(path.parent / f"{file}.safetensors")
    assert report.complete
    assert [component.kind for component in report.components] == [kind]
    assert (report.family, report.variant) == (None, None)


def test_the_report_as_json(path: Path) -> None:
    values = json.loads(json.dumps(check(path).to_json()))
    assert values["complete"] is True
    assert values["path"] == str(path)
    assert values["components"][0]["layout"] == "bfl"
    assert values["parameters"] == values["components"][0]["parameters"]


def test_unknown_content_and_damage(path: Path, tmp_path: Path) -> None:
    save_file({"something.weight": torch.ones(2)}, tmp_path / "other.safetensors")
    with pytest.raises(WeightsError, match="holds no network of this family"):
        check(tmp_path / "other.safetensors")
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(WeightsError, match="is cut short"):
        check(path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(MissingWeightsError, match="no weights in"):
        check(tmp_path / "empty")


def test_checking_needs_no_torch(path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from kleinbild.model.weights import check;"
        "print(check(Path(sys.argv[1])).complete, 'torch' in sys.modules)"
    )
    ran = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=True)
    assert ran.stdout.split() == ["True", "False"]
