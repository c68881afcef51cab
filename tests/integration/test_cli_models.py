"""`kleinbild models check`, `models export`, `pull`, `doctor` and `nano eval`."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image
from safetensors.torch import load_file, save_file

from kleinbild.cli.main import run
from kleinbild.model.catalog import find
from kleinbild.nano.variety import ASKED
from tests.integration.command import typed
from tests.tiny import SETTINGS, write_model
from tests.unit.model.hub_server import Hub, serve

Capture = pytest.CaptureFixture[str]
MISSHAPEN = "transformer_blocks.0.attn.norm_q.weight"


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Hub:
    """A hub on this machine that has klein-4b, in a few bytes."""
    networks = ("transformer", "vae", "text_encoder")
    files = {"model_index.json": b"{}", "tokenizer/tokenizer.json": b"{}"}
    files |= {f"{network}/config.json": b"{}" for network in networks}
    files |= {f"{network}/model.safetensors": bytes(1000) for network in networks}
    monkeypatch.setenv("KLEINBILD_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "cache"))
    return Hub(str(find("klein-4b").repo), files)


def test_pull_tells_size_and_licence_and_then_where_the_model_is(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    folder = tmp_path / "home" / "models" / "klein-4b"
    with serve(hub):
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        assert run(["pull", "klein-4b", "--yes"]) == 0
        told = capsys.readouterr()
        assert told.out == f"{folder}\n"
        assert "16.1 GB" in told.err
        assert "Apache-2.0" in told.err
        assert (folder / "model_index.json").exists()

        before = len(hub.gets)
        assert run(["pull", "klein-4b"]) == 0
    assert len(hub.gets) == before
    assert capsys.readouterr() == (f"{folder}\n", "klein-4b is here already\n")

    assert run(["models"]) == 0
    assert str(folder) in capsys.readouterr().out


def test_pull_asks_at_a_terminal(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> None:
    with serve(hub):
        variables = {
            "HF_ENDPOINT": hub.url,
            "KLEINBILD_HOME": str(tmp_path / "home"),
            "HF_HUB_CACHE": str(tmp_path / "cache"),
        }
        declined = typed("n\n", "pull", "klein-4b", cwd=tmp_path, **variables)
        assert "Fetch it? [y/N]" in declined.stderr
        assert declined.code == 130
        assert hub.gets == []
        assert typed("y\n", "pull", "klein-4b", cwd=tmp_path, **variables).code == 0


def test_check_of_a_whole_model_and_of_a_damaged_one(tiny_model: Path, tmp_path: Path, capsys: Capture) -> None:
    folder = tmp_path / "exported"
    assert run(["models", "export", str(tiny_model), str(folder)]) == 0
    assert capsys.readouterr().out == f"{folder}\n"

    assert run(["models", "check", str(folder)]) == 0
    told = capsys.readouterr().out
    assert [told.count(word) for word in ("diffusers", "complete", "NOT COMPLETE")] == [2, 3, 0]
    assert run(["models", "check", str(folder), "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["complete"] is True
    assert {part["kind"] for part in report["components"]} == {"transformer", "text_encoder", "autoencoder"}

    damage(folder / "transformer" / "diffusion_pytorch_model.safetensors")
    assert run(["models", "check", str(folder)]) == 3
    told = capsys.readouterr()
    assert "transformer: missing proj_out.weight" in told.out
    assert "transformer: extra surplus" in told.out
    assert f"transformer: misshapen {MISSHAPEN}: 8 instead of 16" in told.out
    assert told.err.splitlines()[0] == f"error: {folder} is not a whole model"
    assert run(["models", "check", str(folder), "--json"]) == 3
    assert json.loads(capsys.readouterr().out)["complete"] is False


def damage(path: Path) -> None:
    tensors = load_file(path)
    tensors["surplus"] = tensors.pop("proj_out.weight")
    tensors[MISSHAPEN] = tensors[MISSHAPEN][:8].contiguous()
    save_file(tensors, path)


def test_export_into_a_folder_with_something_in_it_is_refused(
    tiny_model: Path, tmp_path: Path, capsys: Capture
) -> None:
    (tmp_path / "mine.txt").write_text("precious")
    assert run(["models", "export", str(tiny_model), str(tmp_path)]) == 4
    assert "not empty" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_eval_measures_each_row_and_misses_goals_with_random_weights(tmp_path: Path, capsys: Capture) -> None:
    model = write_model(
        tmp_path / "model", settings=replace(SETTINGS, default_size=128, default_steps=1, max_text_tokens=100)
    )
    sheets = tmp_path / "sheets"
    assert run(["nano", "eval", "-m", str(model), "--count", "1", "--sheets", str(sheets)]) == 3
    told = capsys.readouterr()
    table, varied = told.out.split("\n\n")
    header, *rows = table.splitlines()
    assert header.split() == "task pictures all right 95 % interval goal PSNR in boxes of what stays".split()
    assert len(rows) >= 10
    assert rows[0].split()[:8] == "one object 1 0.0% 0% to 79% 98%".split()
    assert [line.split()[:2] for line in varied.splitlines()[1:]] == [[task, "16"] for task in ASKED]
    assert all(line.split()[3] == "0.0" for line in varied.splitlines()[1:])
    assert "misses its goal" in told.err
    assert len(list(sheets.iterdir())) == len(rows)
    with Image.open(sheets / "one-object.png") as image:
        assert image.height > 128
