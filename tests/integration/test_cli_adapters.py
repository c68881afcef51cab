"""`kleinbild adapters`: add, list, show, remove, doctor and convert."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from kleinbild.cli.main import run
from kleinbild.model.adapters.registry import adapters_folder, digest
from tests.integration.command import environment

Capture = pytest.CaptureFixture[str]
D = 224  # nano's width
PROJ = "double_blocks.1.img_attn.proj"


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("KLEINBILD_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


def write(path: Path, *, hidden: int = D, suffixes: tuple[str, str] = ("lora_A", "lora_B"), **others: Tensor) -> Path:
    torch.manual_seed(1)
    stem = f"diffusion_model.{PROJ}"
    tensors = {
        f"{stem}.{suffixes[0]}.weight": torch.randn(4, hidden) * hidden**-0.5,
        f"{stem}.{suffixes[1]}.weight": torch.randn(hidden, 4) * 0.1,
    }
    save_file({**tensors, **others}, path, metadata={"modelspec.license": "CC0-1.0"})
    return path


def test_added_listed_shown_and_removed(home: Path, tmp_path: Path, capsys: Capture) -> None:
    file = write(tmp_path / "My Crayon v2.safetensors")
    assert run(["adapters", "add", str(file), "--trigger", "crayon drawing", "--trigger", "wax"]) == 0
    told = capsys.readouterr()
    place = home / "adapters" / "my-crayon-v2"
    assert told.out == f"{place}\n"
    assert "my-crayon-v2 is an adapter for nano" in told.err
    assert (place / "adapter.safetensors").read_bytes() == file.read_bytes()

    assert run(["adapters", "list"]) == 0
    header, row = capsys.readouterr().out.splitlines()
    assert header.split()[:2] == ["name", "family"]
    assert all(text in row for text in ("my-crayon-v2", "nano", "CC0-1.0", "crayon drawing, wax"))
    assert run(["adapters", "list", "--json"]) == 0
    (card,) = json.loads(capsys.readouterr().out)
    assert (card["sha256"], card["trigger_words"]) == (digest(file), ["crayon drawing", "wax"])

    assert run(["adapters", "show", "my-crayon-v2"]) == 0
    assert str(place) in capsys.readouterr().out
    assert run(["adapters", "show", "my-crayon-v2", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["path"] == str(place)

    assert run(["adapters", "remove", "my-crayon-v2"]) == 0
    assert capsys.readouterr().out == ""
    assert not place.exists()
    assert run(["adapters", "show", "my-crayon-v2"]) == 3
    assert "there is no adapter called 'my-crayon-v2'" in capsys.readouterr().err
    assert run(["adapters", "list"]) == 0
    assert "none is registered" in capsys.readouterr().err


def test_a_name_that_is_taken_is_kept_unless_told_otherwise(home: Path, tmp_path: Path, capsys: Capture) -> None:
    file = write(tmp_path / "a.safetensors")
    assert run(["adapters", "add", str(file), "--name", "wax", "--licence", "MIT"]) == 0
    assert run(["adapters", "add", str(file), "--name", "wax"]) == 2
    assert "already" in capsys.readouterr().err
    assert run(["adapters", "add", str(file), "--name", "wax", "--replace", "--licence", ""]) == 0
    capsys.readouterr()
    assert run(["adapters", "show", "wax"]) == 0
    assert "nobody said" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("damage", "code", "words"),
    [
        ("surplus", 3, "1 of 3 tensors do not match: surplus"),
        ("hidden", 3, "fits none of nano, klein-4b, klein-9b"),
        ("cut", 3, "cut short"),
        ("gone", 3, "there is no adapter file"),
        ("name", 2, "cannot be an adapter's name"),
    ],
)
def test_a_wrong_file_is_not_added(
    home: Path, tmp_path: Path, capsys: Capture, damage: str, code: int, words: str
) -> None:
    others = {"surplus": torch.zeros(2)} if damage == "surplus" else {}
    file = write(tmp_path / "a.safetensors", hidden=200 if damage == "hidden" else D, **others)
    if damage == "cut":
        file.write_bytes(file.read_bytes()[:-9])
    elif damage == "gone":
        file.unlink()
    name = ["--name", "Not A Name"] if damage == "name" else []
    assert run(["adapters", "add", str(file), *name]) == code
    told = capsys.readouterr()
    assert told.out == ""
    assert words in told.err
    assert "hint: " in told.err
    assert not adapters_folder().exists() or not list(adapters_folder().iterdir())


def test_leniently_what_does_not_match_is_left_out(home: Path, tmp_path: Path) -> None:
    file = write(tmp_path / "a.safetensors", surplus=torch.zeros(2))
    assert run(["adapters", "add", str(file), "--lenient"]) == 0


def test_doctor_of_a_file_and_of_a_registered_one(home: Path, tmp_path: Path, capsys: Capture) -> None:
    own = f"diffusion_model.{PROJ}.alpha"
    file = write(tmp_path / "a.safetensors", **{own: torch.tensor(2.0)})
    assert run(["adapters", "doctor", str(file)]) == 0
    told = capsys.readouterr().out
    for text in ("for:        nano", "changes:    1 LoRA", "rank:       4", "scale:      0.5", "double_blocks.1"):
        assert text in told
    assert "diffusers refuses it: keys with .alpha" in told
    assert "%" in told  # beside nano's own weights
    assert run(["adapters", "add", str(file), "--name", "wax"]) == 0
    capsys.readouterr()
    assert run(["adapters", "doctor", "wax", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["family"], found["kinds"], found["scales"]) == ("nano", {"LoRA": 1}, {"0.5": 1})
    assert found["traps"][0]["program"] == "diffusers"
    assert run(["adapters", "doctor", "wacks"]) == 3
    assert run(["adapters", "doctor", str(file), "-m", "klein-4b"]) == 3  # its weights are not here


def test_convert_and_its_proof(home: Path, tmp_path: Path, capsys: Capture) -> None:
    file, out = write(tmp_path / "a.safetensors"), tmp_path / "b.safetensors"
    assert run(["adapters", "convert", str(file), "--to", "kohya", "-o", str(out)]) == 0
    told = capsys.readouterr()
    assert told.out == f"{out}\n"
    assert "the same but for rounding" in told.err
    assert min(load_file(out)) == "lora_unet_double_blocks_1_img_attn_proj.alpha"
    assert run(["adapters", "convert", str(file), "-o", str(out)]) == 2
    assert "--force" in capsys.readouterr().err
    assert run(["adapters", "convert", str(file), "-o", str(out), "--force", "--svd", "2"]) == 0
    told = capsys.readouterr()
    assert "made smaller: 1 layers" in told.err
    assert "not the same" in told.err
    assert min(load_file(out)) == "transformer.transformer_blocks.1.attn.to_out.0.lora_A.weight"
    for options in (["--to", "khoya"], ["--svd", "0"], ["--svd", "many"]):
        assert run(["adapters", "convert", str(file), "-o", str(tmp_path / "c"), *options]) == 2
    whole = tmp_path / "whole.safetensors"
    save_file({f"diffusion_model.{PROJ}.diff": torch.randn(D, D)}, whole)
    assert run(["adapters", "convert", str(whole), "-o", str(tmp_path / "c")]) == 4
    assert "--svd RANK" in capsys.readouterr().err


def test_what_needs_no_numbers_does_not_load_torch(tmp_path: Path) -> None:
    """`list`, `show`, `remove` and every `--help`."""
    script = (
        "import sys; from kleinbild.cli.main import run; "
        "codes = [run(line.split()) for line in ('--help', 'adapters --help', 'adapters list', 'adapters show x', 'adapters remove x')]; "
        "assert codes == [0, 0, 0, 3, 3], codes; assert 'torch' not in sys.modules and 'safetensors' not in sys.modules"
    )
    done = subprocess.run(
        [sys.executable, "-c", script],
        env=environment(KLEINBILD_HOME=str(tmp_path)),
        capture_output=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr.decode()
