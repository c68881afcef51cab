"""A run under its judge, end to end with nano: looked at, stopped where it should be, finished and served by name."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TypeVar

import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file

from kleinbild.core.adapters import AdapterUse
from kleinbild.core.errors import PromptError, RequestError
from kleinbild.core.requests import PictureRequest
from kleinbild.core.training import Finished, Previewed, TrainingEvent, Validated, Warned, from_line
from kleinbild.engine.runtime import Engine
from kleinbild.model.adapters.registry import adapters_folder, digest, find
from kleinbild.nano.scenes.render import Placed, Scene, render
from kleinbild.nano.scenes.tasks import scene
from kleinbild.train import exam
from kleinbild.train.judge import Judge, judge_of
from kleinbild.train.sweep import STRENGTHS
from kleinbild.train.worker import work

T = TypeVar("T")
GROUNDS = ("white", "teal")


@pytest.fixture(autouse=True)
def at_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.set_num_threads(1)
    monkeypatch.setenv("KLEINBILD_HOME", str(tmp_path / "home"))


def run_folder(folder: Path, **recipe: object) -> Path:
    """A run's folder with its data beside it: one thing on plain grounds, called by a word that nano does not know."""
    data = folder.with_name(f"{folder.name}-data")
    data.mkdir(parents=True)
    for ground in GROUNDS:
        Image.fromarray(render(scene(ground, ("1f98a", (1, 1))))).save(data / f"{ground}.png")
        (data / f"{ground}.txt").write_text(f"fuchur on {ground}", "utf-8")
    folder.mkdir()
    values = {
        "data": str(data), "name": "fuchur", "trigger_words": ["fuchur"], "steps": 4, "rank": 2, "batch_size": 2,
        "prior_pictures": 0, "validate_every": 2, "preview_every": 4, "preview_prompts": ["fuchur on a meadow"], "licence": "CC-BY-4.0",
        **recipe,
    }  # fmt: skip
    lines = (f"{key} = {json.dumps(value)}" for key, value in values.items())
    (folder / "recipe.toml").write_text("\n".join(lines), "utf-8")
    return folder


def events(folder: Path) -> list[TrainingEvent]:
    return [from_line(line)[0] for line in (folder / "events.jsonl").read_text("utf-8").splitlines()]


def of(kind: type[T], told: Sequence[TrainingEvent]) -> list[T]:
    return [event for event in told if isinstance(event, kind)]


def test_a_run_is_looked_at_finished_and_served_by_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exam, "MOST_SWEPT_STEPS", 1)
    folder = run_folder(tmp_path / "run")
    assert work(folder, judge_of) == 0
    told = events(folder)
    assert [check.step for check in of(Validated, told)] == [2, 4]
    assert list(of(Validated, told)[0].by_time) == ["0.1", "0.3", "0.5", "0.7", "0.9", "0.97"]
    assert "drift" in of(Validated, told)[1].metrics
    (preview,) = of(Previewed, told)
    assert (preview.step, preview.model) == (4, "nano-base, nano")
    with Image.open(folder / preview.path) as sheet:
        assert sheet.width > 3 * 128

    finished = told[-1]
    assert isinstance(finished, Finished)
    found = find("fuchur")
    card = found.card
    assert card is not None
    assert finished.sha256 == card.sha256 == digest(found.path) == digest(folder / finished.path)
    assert (card.family, card.base, card.trigger_words, card.licence) == ("nano", "nano-base", ("fuchur",), "CC-BY-4.0")
    assert card.report["config"]["rank"] == 2
    assert card.report["data"]["num_examples"] == 2
    assert card.report["metrics"]["validation_loss"] == of(Validated, told)[-1].loss
    assert len(card.report["sweep"]) == 2 * (1 + len(STRENGTHS))
    assert set(card.report["versions"]) == {"kleinbild", "torch", "python"}
    with safe_open(found.path, "pt") as file:
        header = file.metadata()
    assert header["modelspec.trigger_phrase"] == "fuchur"
    assert header["kleinbild.base_fingerprint"] == card.base_fingerprint
    assert json.loads(header["kleinbild.config"])["steps"] == 4

    page = (adapters_folder() / "fuchur" / "report.html").read_text("utf-8")
    assert page == (folder / "report.html").read_text("utf-8")
    assert "data:image/webp;base64," in page
    assert "http" not in page.replace("http-equiv", "")  # nothing is fetched from anywhere
    for told_in_words in ("fuchur", "Strengths", "Validation loss", "CC-BY-4.0", card.sha256):
        assert told_in_words in page
    assert list((folder / "tensorboard").iterdir())

    uses = (AdapterUse("fuchur"),)
    picture = Engine("nano").generate(PictureRequest("fuchur on a beach", seed=1, adapters=uses))
    assert picture.record.adapters[0].sha256 == card.sha256


def test_the_loss_is_measured_on_what_is_named_for_it_and_never_learned(tmp_path: Path) -> None:
    apart = tmp_path / "apart"
    apart.mkdir()
    Image.fromarray(render(Scene("red", (Placed("1f98a", 1, 1),)))).save(apart / "red.png")
    (apart / "red.txt").write_text("fuchur on red", "utf-8")
    folder = run_folder(tmp_path / "run", validation_data=str(apart), preview_every=0, sweep=False)
    judged: list[Judge] = []

    learned: list[torch.Tensor] = []

    def watched(run, model, held_out) -> Judge:  # type: ignore[no-untyped-def]
        learned.extend(run.samples[i].target_NC for i in range(len(run.samples)))
        judged.append(judge_of(run, model, held_out))
        assert [each.target.name for each in run.examples] == ["teal.png", "white.png"]
        return judged[0]

    assert work(folder, watched) == 0
    measured = [each.target_NC for one in judged[0].validation.by_time.values() for each in one]
    assert len(measured) == 6  # the one picture, at each of the times
    assert not any(torch.equal(one, other) for one in measured for other in learned)
    assert [check.step for check in of(Validated, events(folder))] == [2, 4]
    card = find("fuchur").card
    assert card is not None
    assert card.report["data"]["num_examples"] == 2

    (apart / "red.png").write_bytes((folder.with_name("run-data") / "teal.png").read_bytes())
    again = run_folder(tmp_path / "again", validation_data=str(apart))
    assert work(again, judge_of) == RequestError.exit_code
    assert "1 example for validation would be trained on, too: apart/red.png" in events(again)[-1].message  # type: ignore[union-attr]


def test_looking_changes_no_weight(tmp_path: Path) -> None:
    watched, alone = run_folder(tmp_path / "watched", preview_every=2, sweep=False), run_folder(tmp_path / "alone")
    assert work(watched, judge_of) == 0
    assert work(alone) == 0
    one, other = (load_file(folder / "adapter.safetensors") for folder in (watched, alone))
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_a_run_whose_loss_rises_is_stopped_and_its_best_weights_are_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = run_folder(tmp_path / "run", steps=20, validate_every=1, preview_every=0, sweep=False)
    losses = iter((0.9, 0.5, 0.6, 0.6, 0.6, 0.6, 0.6, 0.6))
    bests: list[str] = []

    def watched(run, model, held_out) -> Judge:  # type: ignore[no-untyped-def]
        judge = judge_of(run, model, held_out)
        measured = judge.validation.losses

        def losing(*arguments):  # type: ignore[no-untyped-def]
            bests.append(digest(judge.best_path) if judge.best_path.exists() else "")
            return type(measured(*arguments))(next(losses), {})

        judge.validation.losses = losing  # type: ignore[method-assign]
        return judge

    assert work(folder, watched) == 0
    told = events(folder)
    assert told[-1].step == 7  # type: ignore[union-attr]
    assert "0.5000 at step 2" in of(Warned, told)[-1].message
    card = find("fuchur").card
    assert card is not None
    assert card.report["weights_of_step"] == 2
    assert card.sha256 == bests[2] != bests[1]
    assert (card.report["sweep"], card.strengths) == ([], {})  # this was left out, too
    assert "Stopped early" in (folder / "report.html").read_text("utf-8")


def test_a_run_that_learns_by_heart_is_stopped(tmp_path: Path) -> None:
    """Whatever it is asked for, the model makes the second of its training pictures."""
    folder = run_folder(tmp_path / "run", steps=8, preview_every=2, sweep=False)
    learnt = Image.open(folder.with_name("run-data") / "teal.png").convert("RGB")

    def watched(run, model, held_out) -> Judge:  # type: ignore[no-untyped-def]
        judge = judge_of(run, model, held_out)
        other = Image.new("RGB", (128, 128), "black")
        judge.studio.pictures = lambda _kind, asks, _file, strength=1.0: [learnt if strength else other] * len(asks)  # type: ignore[method-assign]
        return judge

    assert work(folder, watched) == 0
    told = events(folder)
    assert told[-1].step == 4  # type: ignore[union-attr]
    assert [check.metrics["copied"] for check in of(Validated, told)] == [1, 1]
    assert "learnt by heart: 100%" in of(Warned, told)[-1].message


def test_early_stopping_can_be_left_out(tmp_path: Path) -> None:
    unwatched = {"preview_every": 0, "sweep": False, "early_stop": False}
    folder = run_folder(tmp_path / "run", steps=8, validate_every=1, learning_rate=0.5, **unwatched)
    assert work(folder, judge_of) == 0
    assert events(folder)[-1].step == 8  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("values", "error"),
    [({"name": "Not A Name"}, RequestError), ({"preview_prompts": ["a zeppelin on white"]}, PromptError)],
)
def test_what_cannot_work_is_told_before_the_first_step(tmp_path: Path, values: dict[str, object], error: type) -> None:
    folder = run_folder(tmp_path / "run", **values)
    assert work(folder, judge_of) == error.exit_code
    told = [type(event).__name__ for event in events(folder)]
    assert [name for name in told if name != "Warned"] == ["Failed"]  # warnings are notes on the data
