"""The command with the model in the package: the examples of the help, and `doctor`."""

from __future__ import annotations

import io
import json
import shlex
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest
from PIL import Image

from kleinbild.cli import examples
from kleinbild.cli.doctor import offloading
from kleinbild.cli.main import run
from kleinbild.engine import forecast
from kleinbild.model.official import KLEIN_4B
from kleinbild.model.placement import WeightBytes


@pytest.fixture(autouse=True, scope="module")
def measured_once() -> Iterator[None]:
    """Of the same plan: this machine is as fast in each test."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(forecast, "measure", cache(forecast.measure))
        yield


def test_the_examples_of_the_help_work_one_after_the_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsysbinary: pytest.CaptureFixture[bytes]
) -> None:
    monkeypatch.chdir(tmp_path)
    for example in (*examples.GENERATE, *examples.EDIT):
        command, _, redirections = example.partition(" < ")
        source, _, target = redirections.partition(" > ")
        if source:
            monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(Path(source).read_bytes())))
        assert run(shlex.split(command)[1:]) == 0, example
        told = capsysbinary.readouterr().out
        assert told, example
        if target:
            Path(target).write_bytes(told)

    sizes = {str(path.relative_to(tmp_path)): size_of(path) for path in tmp_path.rglob("*.*")}
    assert len(sizes) == 11
    assert sizes["cats/two-cats-in-the-snow-8.png"] == sizes["purple.png"] == (128, 128)
    assert sizes["apple.png"] == sizes["lemon.png"] == (144, 96)
    assert sizes["wide.png"] == (192, 128)
    assert Path("again.png").read_bytes() == Path("apple.png").read_bytes()


def size_of(path: Path) -> tuple[int, int]:
    with Image.open(path) as image:
        return image.size


def test_doctor_tells_what_is_here_and_times_a_picture(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["doctor", "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["models"]["nano"].endswith("nano.safetensors")
    assert facts["cpu"]["cores"] >= 1
    assert facts["threads"] >= 1
    assert facts["picture"]["model"] == "nano"
    assert 0 < facts["picture"]["next_seconds"] < 60
    assert "hub" not in facts, "no network unless asked for"
    for name in ("klein-4b", "klein-base-4b", "klein-9b", "klein-base-9b", "klein-9b-kv"):
        seconds = facts[name]["seconds"]
        assert 0 < seconds["512x512"] < seconds["1024x1024"]
        assert facts[name]["peak_bytes"] > (13e9 if "4b" in name else 28e9)
        assert facts[name]["offload"] == "none"  # there is no GPU here, or it is large


def test_doctor_says_how_a_model_is_made_to_fit() -> None:
    everything, _, alone, blocks = WeightBytes.of(KLEIN_4B, "bfloat16").placements()
    assert offloading(everything, 80_000_000_000) == ""
    assert offloading(alone, 9_000_000_000) == (
        " with offload components (text encoder and transformer take turns: "
        "all at once does not fit into the 9.00 GB that are free)"
    )
    assert "offload blocks" in offloading(blocks, 5_000_000_000)


def test_doctor_asks_the_hub_only_on_request(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    assert run(["doctor", "--online"]) == 0
    lines = dict(line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines())
    assert lines["hub"].startswith("http://127.0.0.1:9 cannot be reached: ")
    assert "nano in float32" in lines["picture"]


def test_plan_forecasts_without_making_anything(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run(["plan", "a fox on red", "--size", "256x128", "--steps", "8", "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert (facts["model"], facts["size"], facts["steps"], facts["dtype"]) == ("nano", "256x128", 8, "float32")
    assert 0 < facts["seconds"]["decode"] < facts["total_seconds"] < 60
    assert 10e6 < facts["picture_bytes"] < facts["weight_bytes"] < 60e6
    assert run(["plan", "a tin robot", "-m", "klein-4b", "--size", "64x64", "--steps", "1", "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert (facts["model"], facts["dtype"]) == ("klein-4b", "bfloat16")
    assert (facts["weight_bytes"] > 13e9, facts["offload"]) == (True, "none")
    assert run(["plan", "a fox on red", "--steps", "1", "--offload", "blocks", "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert (facts["weight_bytes"] < 30e6, facts["offload"]) == (True, "blocks")
    assert run(["plan", "a fox on red", "--offload", "all"]) == 2
    assert run(["plan", "a spaceship on red"]) == 2
    Image.new("RGB", (64, 64)).save(tmp_path / "red.png")
    edit = ["plan", "change the background to blue", "-i", "red.png", "--json"]
    assert run(edit) == 0
    exact = json.loads(capsys.readouterr().out)["picture_bytes"]
    assert run([*edit, "--cache-references"]) == 0
    assert json.loads(capsys.readouterr().out)["picture_bytes"] > exact  # the keys and values
    (tmp_path / "red.png").unlink()
    assert list(tmp_path.iterdir()) == []
