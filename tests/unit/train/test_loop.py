"""The loop, run as it is: it learns, pauses, dies and goes on to the same bits; what goes wrong is told in words."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from random import Random

import pytest
import torch
from safetensors.torch import load_file

from kleinbild.core.errors import EngineError, OutputError, RequestError
from kleinbild.core.training import (
    Checkpointed,
    Failed,
    Finished,
    Paused,
    Progressed,
    Started,
    TrainingEvent,
    Warned,
    from_line,
)
from kleinbild.model.adapters.read import read_adapter
from kleinbild.nano.specs import NANO
from kleinbild.train import worker
from kleinbild.train.loop import Run, Verdict, train
from kleinbild.train.networks import Trained
from kleinbild.train.processes import Processes
from tests.unit.train.made import pictures

torch.set_num_threads(1)  # as the processes that are compared with it: sums of several threads have other last bits
CPU = Processes(torch.device("cpu"))


@pytest.fixture(autouse=True, scope="module")
def own_home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """What is encoded is kept here, not in the home of who runs the tests."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("KLEINBILD_HOME", str(tmp_path_factory.mktemp("home")))
        yield


SMALL = {
    "steps": 6, "batch_size": 2, "rank": 4, "progress_every": 2, "checkpoint_every": 2,
    "validate_every": 6, "preview_every": 0, "sweep": False, "prior_pictures": 0,  # what a judge does is shown in test_judge.py
}  # fmt: skip


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return pictures(tmp_path_factory.mktemp("data"), num=3)


def folder_for(path: Path, data: Path, **values: object) -> Path:
    path.mkdir()
    lines = [f"{key} = {json.dumps(value)}" for key, value in {"data": str(data), **SMALL, **values}.items()]
    (path / "recipe.toml").write_text("\n".join(lines), "utf-8")
    return path


def prepared(folder: Path, told: list[TrainingEvent] | None = None, stop: worker.Stop | None = None) -> Run:
    return worker.prepare(folder, CPU, (told if told is not None else []).append, stop or worker.Stop())


def trained_in(folder: Path) -> dict[str, torch.Tensor]:
    assert train(prepared(folder))
    return load_file(folder / "adapter.safetensors")


def assert_same(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> None:
    assert ours.keys() == theirs.keys()
    for name, tensor in ours.items():
        assert torch.equal(tensor, theirs[name]), name


@pytest.mark.parametrize("method", ["lora", "lokr", "dora", "full"])
def test_what_is_trained_can_be_read_and_is_told(tmp_path: Path, data: Path, method: str) -> None:
    told: list[TrainingEvent] = []
    folder = folder_for(tmp_path / "run", data, method=method, gradient_checkpointing=True, ema=0.9)
    train(prepared(folder, told))
    kinds = [type(event) for event in told if not isinstance(event, Warned)]  # notes on the data
    assert kinds == [Started, Progressed, Checkpointed, Progressed, Checkpointed, Progressed, Finished]
    finished = told[-1]
    assert isinstance(finished, Finished)
    if method == "full":
        assert load_file(folder / finished.path).keys() >= {"img_in.weight", "single_blocks.5.linear2.weight"}
    else:
        loaded = read_adapter(folder / finished.path, NANO.transformer)
        assert len(loaded.adapter.entries) >= 2 * 12 + 6 * 2


@pytest.mark.parametrize("values", [{}, {"optimizer": "muon", "ema": 0.9, "accumulation": 2}, {"optimizer": "prodigy"}])
def test_a_run_that_is_paused_goes_on_to_the_same_bits(tmp_path: Path, data: Path, values: dict[str, object]) -> None:
    whole = trained_in(folder_for(tmp_path / "whole", data, **values))
    parts = folder_for(tmp_path / "parts", data, **values)
    for paused_at in (1, 2, 3):
        told: list[TrainingEvent] = []
        assert not train(prepared(parts, told, worker.Stop(asked=True)))  # one step each time
        assert told[-1] == Paused(paused_at)
    assert_same(trained_in(parts), whole)


def test_tokens_are_those_of_pictures_references_and_texts_over_all_starts(tmp_path: Path) -> None:
    edits = pictures(tmp_path / "edits", num=2, num_references=1)
    folder = folder_for(tmp_path / "run", edits)
    assert not train(prepared(folder, stop=worker.Stop(asked=True)))
    told: list[TrainingEvent] = []
    assert train(prepared(folder, told))
    assert isinstance(told[-1], Finished)
    picture, reference, text = 8 * 8, 8 * 8, 28
    assert told[-1].metrics == {"tokens": 6 * 2 * (picture + reference + text)}


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory, data: Path) -> dict[str, torch.Tensor]:
    return trained_in(folder_for(tmp_path_factory.mktemp("whole") / "run", data, steps=20))


def started(folder: Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "kleinbild.train.worker", str(folder)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})


def events(process: subprocess.Popen[str]) -> Iterator[TrainingEvent]:
    assert process.stdout is not None
    for line in process.stdout:
        yield from_line(line)[0]


def test_a_process_that_is_killed_goes_on_to_the_same_bits(
    tmp_path: Path, data: Path, uninterrupted: dict[str, torch.Tensor]
) -> None:
    folder = folder_for(tmp_path / "run", data, steps=20)
    at = Random().randrange(2, 17)
    kept = False  # progress is told before the state of that step is kept
    with started(folder) as first:
        for event in events(first):
            kept |= isinstance(event, Checkpointed)
            if kept and isinstance(event, Progressed) and event.step >= at:
                first.send_signal(signal.SIGKILL)
                break
    assert first.returncode == -signal.SIGKILL
    with started(folder) as second:
        told = list(events(second))
    assert second.returncode == 0
    begun = next(event for event in told if not isinstance(event, Warned))
    assert isinstance(begun, Started), at
    assert 0 < begun.step < 20, at
    assert_same(load_file(folder / "adapter.safetensors"), uninterrupted)


def test_sigterm_pauses_a_process_and_it_goes_on_to_the_same_bits(
    tmp_path: Path, data: Path, uninterrupted: dict[str, torch.Tensor]
) -> None:
    folder = folder_for(tmp_path / "run", data, steps=20, checkpoint_every=0)
    told = []
    with started(folder) as first:
        for event in events(first):
            told.append(event)
            if isinstance(event, Progressed) and event.step == 6:
                first.send_signal(signal.SIGTERM)
    assert first.returncode == 0
    assert isinstance(told[-1], Paused)
    assert told[-1].step >= 6
    assert_same(trained_in(folder), uninterrupted)


def test_a_run_is_not_gone_on_with_otherwise(tmp_path: Path, data: Path) -> None:
    folder = folder_for(tmp_path / "run", data)
    train(prepared(folder, stop=worker.Stop(asked=True)))
    text = (folder / "recipe.toml").read_text("utf-8")
    (folder / "recipe.toml").write_text(text.replace("rank = 4", "rank = 8").replace("seed = 0", "seed = 7"), "utf-8")
    with pytest.raises(RequestError, match="rank 4, not 8; seed 0, not 7"):
        train(prepared(folder))


def test_a_run_is_not_gone_on_with_other_data(tmp_path: Path) -> None:
    own = pictures(tmp_path / "own", num=3)
    folder = folder_for(tmp_path / "run", own)
    train(prepared(folder, stop=worker.Stop(asked=True)))
    (own / "1.txt").write_text("a frog on blue", "utf-8")
    (own / "0.png").unlink()
    with pytest.raises(RequestError, match=r"examples changed.*1\.png|examples gone"):
        train(prepared(folder))


def test_previews_and_names_may_change_between_two_starts(tmp_path: Path, data: Path) -> None:
    folder = folder_for(tmp_path / "run", data)
    train(prepared(folder, stop=worker.Stop(asked=True)))
    text = (folder / "recipe.toml").read_text("utf-8")
    (folder / "recipe.toml").write_text(text.replace('name = ""', 'name = "fox"'), "utf-8")
    assert train(prepared(folder))


@dataclass
class Poison:
    """Makes a weight infinite after some steps, as an optimizer that went astray would."""

    at: int
    seen: list[int] = field(default_factory=list)

    def at_step(self, step: int, trained: Trained) -> Verdict:
        self.seen.append(step)
        if step == self.at:
            with torch.no_grad():
                next(iter(trained.parameters.values())).fill_(torch.inf)
        return Verdict()

    def finish(self, trained: Trained) -> None:
        raise AssertionError("this run has no end")


def test_nan_stops_the_run_with_the_last_good_checkpoint(tmp_path: Path, data: Path) -> None:
    folder = folder_for(tmp_path / "run", data)
    run = prepared(folder)
    run.judge = Poison(at=5)
    with pytest.raises(EngineError, match="step 6 was not taken") as raised:
        train(run)
    good = folder / "checkpoints" / "step-4.safetensors"
    assert str(good) in raised.value.hint
    assert all(torch.isfinite(tensor).all() for tensor in load_file(good).values())
    kept = torch.load(folder / "state.pt", weights_only=True)
    assert kept["step"] == 4
    assert not (folder / "adapter.safetensors").exists()


def test_infinite_activations_are_named_in_the_first_steps(tmp_path: Path, data: Path) -> None:
    run = prepared(folder_for(tmp_path / "run", data))
    run.trained.transformer.get_submodule("single_blocks.2.linear2").weight.data.fill_(torch.inf)
    with pytest.raises(EngineError, match=r"single_blocks\.2 gives numbers"):
        train(run)


def test_a_full_disk_leaves_the_last_state_whole(tmp_path: Path, data: Path) -> None:
    """The state is written into a device that is always full."""
    folder = folder_for(tmp_path / "run", data)
    train(prepared(folder, stop=worker.Stop(asked=True)))
    before = (folder / "state.pt").read_bytes()
    (folder / "state.tmp").symlink_to("/dev/full")
    with pytest.raises(OutputError, match=r"state\.pt cannot be written: No space left"):
        train(prepared(folder))
    assert (folder / "state.pt").read_bytes() == before
    assert train(prepared(folder))


class Stopper:
    """Stops the run at a step."""

    def at_step(self, step: int, trained: Trained) -> Verdict:
        return Verdict(stop=step == 3, reason="enough")

    def finish(self, trained: Trained) -> Finished:
        return Finished(trained.step, "fox", "adapter.safetensors", "0" * 64, {"loss": 0.5})


def test_a_judge_stops_a_run_and_says_how_it_ended(tmp_path: Path, data: Path) -> None:
    told: list[TrainingEvent] = []
    run = prepared(folder_for(tmp_path / "run", data), told)
    run.judge = Stopper()
    assert train(run)
    tokens = 3 * 2 * (64 + 28)
    assert told[-1] == Finished(3, "fox", "adapter.safetensors", "0" * 64, {"loss": 0.5, "tokens": tokens})
    assert "enough" in [getattr(event, "message", "") for event in told]


def test_a_failure_is_told_and_gives_its_exit_code(
    tmp_path: Path, data: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    folder = folder_for(tmp_path / "run", data, model="nano")
    assert worker.work(folder) == 2
    (line,) = capfd.readouterr().out.splitlines()
    event, _ = from_line(line)
    assert isinstance(event, Failed)
    assert event.kind == "RequestError"
    assert "nano is distilled to 4 steps" in event.message
    assert "nano-base" in event.hint
    assert (folder / "events.jsonl").read_text("utf-8").strip() == line


def test_batches_that_cannot_be_divided_are_refused(tmp_path: Path, data: Path) -> None:
    with pytest.raises(RequestError, match="a batch of 2 cannot be divided among 3 processes"):
        worker.prepare(
            folder_for(tmp_path / "run", data), Processes(torch.device("cpu"), 0, 3), [].append, worker.Stop()
        )
