"""Curves in TensorBoard's files, and nothing sent to anybody who was not asked for."""

from __future__ import annotations

import builtins
from pathlib import Path

import pytest

from kleinbild.core.errors import RequestError
from kleinbild.core.training import Paused, Progressed, Validated
from kleinbild.train.curves import Curves, TensorBoard, WeightsAndBiases


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
    assert "pip install wandb" in caught.value.hint
