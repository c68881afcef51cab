"""The run: resumed to the last bit, stopped with its state kept, given up where a guard trips."""

from __future__ import annotations

import os
import signal
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from kleinbild.cli.distill import stop_signals
from kleinbild.core.errors import EngineError, OutputError
from kleinbild.core.training import Paused, Previewed, Progressed, Started, TrainingEvent, Validated, Warned
from kleinbild.model.weights import Model
from kleinbild.train.distill.field import Sample
from kleinbild.train.distill.guards import Measured, fake_loss_tripped
from kleinbild.train.distill.job import run_of
from kleinbild.train.distill.loop import Report, Run, learning_rate, train
from kleinbild.train.distill.recipe import Recipe
from tests.unit.train.distill.tiny import QUICK

POLISHED = replace(QUICK, num_updates=6, polish=True, polish_share=0.5, fake_updates=2, polish_rate=1e-4)


def go_on(
    model: Model, samples: list[Sample], recipe: Recipe, folder: Path, stop_after: int | None = None
) -> tuple[Run, Report | None, list[TrainingEvent]]:
    """A process of its own, as far as the run can tell: everything is made anew but the folder."""
    run, told = run_of(model, (), samples, recipe), []

    def stopped() -> bool:
        return stop_after is not None and run.step >= stop_after

    return run, train(run, folder, told.append, stopped), told


@pytest.mark.parametrize("product", ["model", "adapter"])
def test_a_run_that_was_stopped_ends_with_the_same_weights(
    product: str, tiny: Model, samples: list[Sample], tmp_path: Path
) -> None:
    recipe = replace(POLISHED, product=product)  # type: ignore[arg-type]
    straight, report, _ = go_on(tiny, samples, recipe, tmp_path / "straight")
    for stop_after in (2, 4, 5):  # in stage 1, and twice in stage 2
        _, none, told = go_on(tiny, samples, recipe, tmp_path / "resumed", stop_after)
        assert none is None
        assert told[-1] == Paused(stop_after)
    resumed, same_report, told = go_on(tiny, samples, recipe, tmp_path / "resumed")
    assert isinstance(told[0], Started)
    assert told[0].step == 5
    for kind in ("parameters", "average"):
        for a, b in zip(getattr(straight.student, kind), getattr(resumed.student, kind), strict=True):
            assert torch.equal(a, b)
    assert straight.fake is not None
    assert resumed.fake is not None
    for a, b in zip(straight.fake.parameters, resumed.fake.parameters, strict=True):
        assert torch.equal(a, b)
    assert report == same_report
    assert report is not None
    assert len(report.fake_losses) == 3


def test_a_run_tells_what_it_does(tiny: Model, samples: list[Sample], tmp_path: Path) -> None:
    _, report, told = go_on(tiny, samples, QUICK, tmp_path)
    assert report is not None
    assert report.before.distance > 0
    assert [type(event) for event in told if not isinstance(event, Warned)] == [
        Started, Validated, Previewed, Validated, Previewed, Validated, Previewed, Progressed, Validated, Previewed
    ]  # fmt: skip
    assert all((tmp_path / event.path).is_file() for event in told if isinstance(event, Previewed))


def test_the_first_signal_keeps_the_state_and_the_second_ends_it() -> None:
    with stop_signals() as stopped:
        assert not stopped()
        os.kill(os.getpid(), signal.SIGTERM)
        assert stopped()
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGTERM)
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


def test_a_folder_holds_one_run(tiny: Model, samples: list[Sample], tmp_path: Path) -> None:
    go_on(tiny, samples, QUICK, tmp_path, stop_after=1)
    other = run_of(tiny, (), samples, QUICK, fingerprint="of other samples")
    with pytest.raises(OutputError, match="other samples"):
        train(other, tmp_path, lambda _event: None)


def test_a_spoiled_run_is_out_of_bounds(tiny: Model, samples: list[Sample], tmp_path: Path) -> None:
    spoiled = replace(QUICK, rate=1.0, final_rate=1.0, ema_decay=0.0)
    _, report, told = go_on(tiny, samples, spoiled, tmp_path)
    assert report is not None
    assert any("the spread of latents" in words for words in report.tripped)
    assert [event.message for event in told if isinstance(event, Warned)] == list(report.tripped)


def test_a_loss_that_is_no_number_ends_the_run(tiny: Model, samples: list[Sample], tmp_path: Path) -> None:
    run = run_of(tiny, (), samples, QUICK)
    run.student.parameters[0].data.fill_(float("nan"))
    with pytest.raises(EngineError, match="not a number"):
        train(run, tmp_path, lambda _event: None)
    assert not (tmp_path / "state.pt").exists()


def test_a_spoiled_polish_is_undone(tiny: Model, samples: list[Sample], tmp_path: Path) -> None:
    spoiled = replace(POLISHED, num_updates=8, polish_share=5 / 8, polish_rate=1.0, ema_decay=0.0)
    begun = run_of(tiny, (), samples, spoiled)
    run, report, told = go_on(tiny, samples, spoiled, tmp_path)
    assert report is not None
    assert report.rolled_back is not None
    assert report.after.distance == report.after_trajectory.distance
    assert any("given up" in event.message for event in told if isinstance(event, Warned))
    assert run.good is not None
    for kept, mean, first in zip(run.good, run.student.average, begun.student.average, strict=True):
        assert torch.equal(kept, mean)
        assert not torch.equal(mean, first)


def test_the_fake_scores_loss_is_held_against_what_it_was() -> None:
    usual = [1.0, 1.1, 0.9] * 10
    assert fake_loss_tripped([*usual, 1.6]) is None
    assert "2.5" in str(fake_loss_tripped([*usual, 2.5]))
    assert "0.4" in str(fake_loss_tripped([*usual, 0.4]))
    assert fake_loss_tripped([1.0, 2.5]) is None, "too few to tell"


def test_bounds_are_in_words() -> None:
    bad = Measured(0.5, (0.1, 0.5), std_ratio=1.2, clipped=0.3, diversity=0.5)
    assert [words.split("(")[0].strip() for words in bad.tripped()] == [
        "the spread of latents is 1.200 of the teacher's",
        "30.0% more pixels than the teacher's are clipped",
        "pictures are 0.50 times as various as the teacher's",
    ]


def test_the_rate_falls_in_stage_1_and_stays_in_stage_2() -> None:
    recipe = replace(POLISHED, num_updates=100, warmup=10, rate=1.0, final_rate=0.1, polish_rate=0.5)
    rates = [learning_rate(recipe, step) for step in range(100)]
    assert rates[0] < rates[5] < rates[9]
    assert rates[10:50] == sorted(rates[10:50], reverse=True)
    assert rates[49] == pytest.approx(0.1, abs=0.01)
    assert set(rates[50:]) == {0.5}
