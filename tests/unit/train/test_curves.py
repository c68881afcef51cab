"""Curves in TensorBoard's files, and nothing sent to anybody who was not asked for."""

from __future__ import annotations

import builtins
from pathlib import Path

import pytest

from kleinbild.core.errors import RequestError
from kleinbild.core.training import Paused, Progressed, Validated
from kleinbild.train.curves import Curves, TensorBoard, WeightsAndBiases, sinks_of
from tests.unit.train.made import recipe


def test_tensorboard_reads_what_was_told(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    with Curves(TensorBoard(tmp_path)) as curves:
        for step in (10, 20):
            curves.add(Progressed(step, 100, 1 / step, 1e-4, 3.0))
        curves.add(Validated(20, 0.5, {"0.9": 0.25}, {"drift": 0.125}))
        curves.add(Paused(20))
    found = EventAccumulator(str(tmp_path))
    found.Reload()
    assert [(e.step, round(e.value, 4)) for e in found.Scalars("training/loss")] == [(10, 0.1), (20, 0.05)]
    assert found.Scalars("validation/at time 0.9")[0].value == 0.25
    assert found.Scalars("watch/drift")[0].value == 0.125


def test_without_wandb_asking_for_it_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def missing(name: str, *arguments: object, **named: object) -> object:
        if name == "wandb":
            raise ImportError(name)
        return real(name, *arguments, **named)

    monkeypatch.setattr(builtins, "__import__", missing)
    with pytest.raises(RequestError, match="wandb is not installed") as caught:
        WeightsAndBiases("project", tmp_path, {})
    assert "pip install 'kleinbild[wandb]'" in caught.value.hint


def test_a_recipe_may_name_a_project_and_offline_it_stays_in_the_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    wandb = pytest.importorskip("wandb")
    monkeypatch.setenv("HOME", str(tmp_path))  # where nobody has logged in
    monkeypatch.setenv("WANDB_MODE", "online")
    with pytest.raises(RequestError, match="W&B does not take the run"):
        sinks_of(recipe(wandb="foxes"), tmp_path)
    wandb.teardown()  # it reads its environment once
    monkeypatch.setenv("WANDB_MODE", "offline")
    for name, project in (("quiet", ""), ("told", "foxes")):
        folder = tmp_path / name
        folder.mkdir()
        with Curves(*sinks_of(recipe(wandb=project), folder)) as curves:
            curves.add(Progressed(10, 100, 0.5, 1e-4, 3.0))
            curves.add(Validated(10, 0.25))
    wandb.teardown()  # its process writes the last of it
    assert not (tmp_path / "quiet" / "wandb").exists()
    (kept,) = (tmp_path / "told").glob("wandb/offline-run-*/run-told-*.wandb")
    assert b"validation/loss" in kept.read_bytes()
    assert capfd.readouterr().out == ""
