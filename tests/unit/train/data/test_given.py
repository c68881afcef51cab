"""What is checked is what is trained on: command, preflight and worker find the same examples by the same keys."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from kleinbild.cli.checking import subject_of
from kleinbild.cli.main import run
from kleinbild.core.errors import RequestError
from kleinbild.train import worker
from kleinbild.train.data.check import check
from kleinbild.train.data.given import resolved
from kleinbild.train.processes import Processes
from kleinbild.train.recipe import read
from tests.unit.train.made import NANO_BASE, pictures

CPU = Processes(torch.device("cpu"))


def told(_event: object) -> None:
    """For nobody."""


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("KLEINBILD_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


def test_the_command_the_check_and_the_worker_find_the_same(
    tmp_path: Path, home: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    data, kept = pictures(tmp_path / "d", num=3), pictures(tmp_path / "r", num=2, seed=2)
    (data / "0.txt").unlink()
    apart = pictures(tmp_path / "v", num=1, seed=3)
    options = [
        "--reg",
        str(kept),
        "--validation",
        str(apart),
        "--set",
        "trigger_words=zwx",
        "--set",
        "steps=1",
        "--set",
        "validate_every=0",
    ]
    assert run(["train", "check", str(data), "--recipe", "style", *options, "--json"]) == 0
    checked = json.loads(capfd.readouterr().out)
    assert [checked[f"num_{each}"] for each in ("examples", "regularization", "validation")] == [3, 2, 1]
    assert "empty captions" not in [finding["kind"] for finding in checked["findings"]]
    folder = tmp_path / "run"
    named = ["--name", "No Name", "--out", str(folder)]  # which nothing can be called: it ends before its first step
    assert run(["train", "style", "--data", str(data), *options, *named]) == 2
    assert "No Name" in capfd.readouterr().err
    trained = worker.prepare(folder, CPU, told, worker.Stop())
    assert [each.regularization for each in trained.examples] == [False] * 3 + [True] * 2
    assert trained.examples[0].caption == "zwx"
    again = check(data, read(folder / "recipe.toml"), subject_of("nano-base"))
    assert again.recipe == trained.recipe
    assert trained.recipe.regularization_share > 0


def test_each_line_is_a_caption_where_the_recipe_says_so(tmp_path: Path) -> None:
    data = pictures(tmp_path / "d", num=2)
    (data / "0.txt").write_text("a fox\n\n  an orange fox \na fox\n")
    (data / "1.txt").write_text(" \n")
    values = {"model": "nano-base", "data": str(data), "trigger_words": ["zwx"]}
    _, dataset, _ = resolved({**values, "caption_lines": True}, NANO_BASE)
    assert [each.captions for each in dataset.examples] == [("a fox", "an orange fox"), ("zwx",)]
    _, whole, _ = resolved(values, NANO_BASE)
    assert whole.examples[0].captions == ("a fox\n\n  an orange fox \na fox",)


def test_a_recipe_without_pictures_is_refused() -> None:
    with pytest.raises(RequestError, match="names no pictures"):
        resolved({"data": ""}, NANO_BASE)
