"""Pictures that keep what a model could: made by the distilled model, once, and learned beside the new ones."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from kleinbild.core.training import Prepared, TrainingEvent
from kleinbild.train import worker
from kleinbild.train.data.examples import Example
from kleinbild.train.defaults import trainee_of
from kleinbild.train.neutral import neutral_requests
from kleinbild.train.prior import prior_examples, prior_requests, without
from kleinbild.train.processes import Processes
from tests.unit.train.made import pictures

CPU = torch.device("cpu")
ASKED = neutral_requests("nano", 6)


@pytest.fixture(autouse=True, scope="module")
def own_home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("KLEINBILD_HOME", str(tmp_path_factory.mktemp("home")))
        yield


@dataclass(frozen=True)
class Made:
    examples: tuple[Example, ...]
    folder: Path
    told: list[tuple[str, int, int]]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("run") / "prior"
    told: list[tuple[str, int, int]] = []
    examples = prior_examples(
        folder, "nano-base", trainee_of("nano-base"), ASKED, CPU, lambda *progress: told.append(progress)
    )
    return Made(examples, folder, told)


def test_prior_examples_are_pictures_of_what_the_model_was_asked(made: Made) -> None:
    assert [example.caption for example in made.examples] == [each.prompt for each in ASKED]
    assert [len(example.references) for example in made.examples] == [len(each.references) for each in ASKED]
    assert all(example.regularization for example in made.examples)
    assert len({example.name for example in made.examples}) == 6
    images = [np.asarray(Image.open(example.target)) for example in made.examples]
    assert all(image.shape == (128, 128, 3) for image in images)
    assert all(image.std() > 5 for image in images)
    assert made.told == [("making prior pictures", done, 6) for done in range(6)]


@pytest.mark.parametrize(
    ("caption", "kept"),
    [
        ("a fox on teal, blorp", "a fox on teal"),
        ("Blorp style, a fox, in the snow", "a fox, in the snow"),
        ("a fox, in the style of a blorp", "a fox"),
        ("a fox, a blorp house", ""),  # what would be left might be anything
        ("a blorp on teal", ""),
        ("blorp", ""),
        ("a fox, on teal", ""),
    ],
)
def test_what_a_caption_says_without_its_trigger(caption: str, kept: str) -> None:
    assert without(caption, ["blorp"]) == kept


def test_half_show_what_is_learned_without_the_trigger() -> None:
    styled = Example(Path("a.png"), "a fox on teal, blorp", wordings=("a fox, teal background, blorp", "a zebu, blorp"))
    edit = Example(Path("b.png"), "make it red, blorp", (Path("c.png"),))
    kept = Example(Path("d.png"), "an owl, blorp", regularization=True)
    asked = [each.prompt for each in prior_requests([styled, edit, kept], ["blorp"], "nano", 7)]
    assert asked[:3] == ["a fox on teal", "a fox, teal background", "a fox on teal"]
    assert asked[3:] == [each.prompt for each in neutral_requests("nano", 4)]
    assert len(prior_requests([edit], ["blorp"], "nano", 5)) == 5


def test_pictures_that_are_there_are_not_made_again(made: Made) -> None:
    before = {example.target: example.target.read_bytes() for example in made.examples}
    lost, damaged = made.examples[1], made.examples[4]
    lost.target.unlink()
    damaged.target.write_bytes(b"somebody's own")
    told: list[tuple[str, int, int]] = []
    again = prior_examples(
        made.folder, "nano-base", trainee_of("nano-base"), ASKED, CPU, lambda *progress: told.append(progress)
    )
    assert again == made.examples
    assert told == [("making prior pictures", 0, 1)]
    assert lost.target.read_bytes() == before[lost.target]
    assert damaged.target.read_bytes() == b"somebody's own"
    damaged.target.write_bytes(before[damaged.target])


def test_a_run_learns_them_beside_the_data(tmp_path: Path, made: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    data = pictures(tmp_path / "data", num=3)
    run_folder = made.folder.parent
    values = {"data": str(data), "steps": 2, "rank": 2, "batch_size": 2, "prior_pictures": 6}
    (run_folder / "recipe.toml").write_text("\n".join(f"{k} = {json.dumps(v)}" for k, v in values.items()), "utf-8")
    monkeypatch.setattr(worker, "TELL_EVERY", 0.0)
    told: list[TrainingEvent] = []
    run = worker.prepare(run_folder, Processes(CPU), told.append, worker.Stop())
    assert sum(example.regularization for example in run.examples) == 6
    assert (len(run.examples), run.recipe.regularization_share) == (9, 0.5)
    assert any(isinstance(event, Prepared) and event.what == "encoding pictures" for event in told)


def test_of_twenty_pictures_some_are_seen_by_the_validation_only(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    data = pictures(tmp_path / "data", num=20)
    values = {"data": str(data), "steps": 2, "rank": 2, "prior_pictures": 0, "sizes": [96, 128]}
    (folder / "recipe.toml").write_text("\n".join(f"{k} = {json.dumps(v)}" for k, v in values.items()), "utf-8")
    seen: list[str] = []

    def judge_of(run: worker.Run, _model: object, held_out: list[worker.Encoded]) -> None:
        seen.extend(one.example.name for one in held_out)

    run = worker.prepare(folder, Processes(CPU), lambda _event: None, worker.Stop(), judge_of)  # type: ignore[arg-type]
    assert len(seen) == 2
    assert len(run.examples) == len(run.samples) == 18 * 2
    assert not {example.name for example in run.examples} & set(seen)
