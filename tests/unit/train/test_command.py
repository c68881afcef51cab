"""`kleinbild train`, from the line to the file."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from kleinbild.cli.main import run
from kleinbild.cli.train import follow
from kleinbild.core.errors import CapacityError
from kleinbild.core.training import Failed, Paused, Started, Warned
from tests.unit.train.made import pictures

SETTINGS = "steps=2 batch_size=1 rank=2 prior_pictures=0 preview_every=0 validate_every=0 sweep=false"
SMALL = [part for value in SETTINGS.split() for part in ("--set", value)]


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.setenv("KLEINBILD_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


def test_training_prints_the_file_and_goes_on_only_if_asked(
    tmp_path: Path, home: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    data = pictures(tmp_path / "foxes", num=1)
    assert run(["train", "style", "--data", str(data), *SMALL]) == 0
    file = Path(capfd.readouterr().out.strip())
    assert file == home / "training" / "runs" / "style-foxes" / "adapter.safetensors"
    assert file.is_file()
    assert run(["train", "style", "--data", str(data), *SMALL]) == 2
    assert "--resume goes on with it" in capfd.readouterr().err
    assert run(["train", "style", "--data", str(data), *SMALL, "--resume", "--json"]) == 0
    kinds = [json.loads(line)["event"] for line in capfd.readouterr().out.splitlines()]
    assert kinds[-1] == "finished"


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (["style"], "no pictures were given"),
        (["stile", "--data", "."], "there is no recipe 'stile'"),
        (["style", "--data", ".", "--set", "rnk=3"], "a recipe has no 'rnk'"),
        (["style", "--data", "nowhere"], "there is no nowhere|there is no /"),
        (["style", "--data", "DATA", "-m", "nano"], "nano is distilled to 4 steps"),
        (["style", "--data", "DATA", "--resume"], "there is no run in"),
    ],
)
def test_what_cannot_be_trained_is_told_before_a_process_starts(
    tmp_path: Path, home: Path, capfd: pytest.CaptureFixture[str], line: list[str], message: str
) -> None:
    data = pictures(tmp_path / "data", num=1)
    assert run(["train", *[str(data) if part == "DATA" else part for part in line]]) == 2
    err = " ".join(capfd.readouterr().err.split())
    assert any(each in err for each in message.split("|")), err
    assert not (home / "training" / "runs").exists()


def test_recipes_are_listed(capfd: pytest.CaptureFixture[str]) -> None:
    assert run(["train", "recipes"]) == 0
    assert [line.split()[0] for line in capfd.readouterr().out.splitlines()[1:]] == [
        "edit", "full", "multi-reference", "object", "style", "subject"
    ]  # fmt: skip


def test_what_the_worker_says_becomes_a_result_or_an_error(tmp_path: Path) -> None:
    assert follow(iter([Started(0, 9, "nano-base", 3, 0), Warned("careful"), Paused(4)]), tmp_path) is None
    with pytest.raises(CapacityError, match="no memory"):
        follow(iter([Failed("CapacityError", "no memory", "smaller")]), tmp_path)
