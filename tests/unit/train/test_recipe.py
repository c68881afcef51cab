"""Recipes say what they mean, refuse what they do not know, and what they leave open follows from model and data."""

from __future__ import annotations

from pathlib import Path

import pytest

from kleinbild.core.errors import RequestError
from kleinbild.model.weights.settings import Settings
from kleinbild.train.defaults import Trainee, resolve
from kleinbild.train.recipe import names, read, with_settings, write
from tests.unit.train.made import NANO_BASE

KLEIN = Trainee("klein-4b", Settings(default_size=1024, distilled=False))


@pytest.mark.parametrize("name", names())
@pytest.mark.parametrize("trainee", [NANO_BASE, KLEIN], ids=["nano", "klein"])
def test_what_is_written_is_read_again(tmp_path: Path, name: str, trainee: Trainee) -> None:
    recipe = resolve({**read(name), "trigger_words": ["füchs", 'a "quoted" word']}, trainee, 20)
    write(recipe, tmp_path / "recipe.toml")
    assert resolve(read(tmp_path / "recipe.toml"), trainee, 999) == recipe


def test_defaults_follow_from_the_model_and_the_data() -> None:
    small, large = (resolve(read("style"), KLEIN, num) for num in (5, 40))
    assert (small.steps, large.steps) == (500, 1200)
    assert (small.precision, small.learning_rate, small.sizes) == ("bf16", 1e-4, (1024,))
    assert small.gradient_checkpointing
    assert small.time_shift == 0  # the resolution's own
    nano = resolve(read("style"), NANO_BASE, 5)
    assert (nano.precision, nano.learning_rate, nano.sizes) == ("fp32", 2e-3, (128,))
    assert (nano.time_mean, nano.time_spread, nano.time_shift) == (2.0, 1.4, 1.0)
    assert resolve({"batch_size": 4, "accumulation": 5, "epochs": 10}, KLEIN, 40).steps == 20
    assert resolve({"method": "full", "steps": 9}, KLEIN, 1).learning_rate == 1e-5
    assert resolve({"optimizer": "prodigy", "steps": 9}, KLEIN, 1).learning_rate == 1.0
    assert resolve({"times": "weighted", "steps": 9}, KLEIN, 1).loss_weight == "peaked"


def test_what_the_model_can_do_is_kept_by_examples_or_else_by_its_own_pictures() -> None:
    nano = resolve(read("object"), NANO_BASE, 12)
    assert (nano.prior_pictures, nano.regularization_share) == (320, 0.5)
    assert (
        nano.steps == 600 * 3 * 2 // nano.batch_size
    )  # as many samples of what is learned, and those for keeping on top
    with_examples = resolve(read("object"), NANO_BASE, 12, num_regularization=20)
    assert (with_examples.prior_pictures, with_examples.regularization_share) == (0, 0.5)
    for without in ({"prior_pictures": 0}, {"regularization_share": 0.0}, {"method": "full"}):
        recipe = resolve({**read("object"), **without}, NANO_BASE, 12)
        assert (recipe.prior_pictures, recipe.regularization_share) == (0, 0.0)
    klein = resolve({"prior_pictures": 100}, KLEIN, 12)
    assert (klein.prior_pictures, klein.regularization_share) == (100, 0.2)
    assert resolve({}, KLEIN, 12).prior_pictures == 0


def test_one_dial_changes_anything() -> None:
    values = with_settings(
        read("style"), ["rank=64", "times=distilled-4", "targets=attention,img_in", "masked_loss=false"]
    )
    recipe = resolve(values, KLEIN, 20)
    assert (recipe.rank, recipe.alpha, recipe.times, recipe.masked_loss) == (64, 64.0, "distilled-4", False)
    assert recipe.targets == ("attention", "img_in")


@pytest.mark.parametrize(
    ("setting", "message", "hint"),
    [
        ("rnk=3", "no 'rnk'", "did you mean rank"),
        ("rank=0", "rank cannot be 0", "from 1 to 1024"),
        ("rank=two", "rank cannot be 'two'", "a whole number"),
        ("precision=fp16", "precision cannot be 'fp16'", "fp16 overflows"),
        ("sizes=big", "sizes cannot be 'big'", "512, 768"),
        ("masked_loss=1", "masked_loss cannot be 1", "true or false"),
        ("rank", "sets nothing", "rank=32"),
    ],
)
def test_what_is_wrong_is_told_with_what_is_allowed(setting: str, message: str, hint: str) -> None:
    with pytest.raises(RequestError, match=message) as raised:
        with_settings({}, [setting])
    assert hint in raised.value.hint


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"method": "full", "precision": "int8"}, "cannot be in int8"),
        ({"method": "dora", "precision": "nf4"}, "DoRA needs the exact norms"),
        ({"regularization_share": 0.3}, "no example is one for regularization"),
    ],
)
def test_what_contradicts_itself_is_refused(values: dict[str, object], message: str) -> None:
    with pytest.raises(RequestError, match=message):
        resolve({"steps": 9, **values}, KLEIN, 20)


def test_a_distilled_model_is_not_trained_with_the_plain_loss() -> None:
    with pytest.raises(RequestError, match="undoes that") as raised:
        resolve({"model": "klein-4b"}, Trainee("klein-4b", Settings()), 20)
    assert "klein-base-4b" in raised.value.hint


def test_an_unknown_recipe_lists_the_known() -> None:
    with pytest.raises(RequestError, match="edit, full, multi-reference, object, style, subject"):
        read("stile")
