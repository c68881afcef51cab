"""The watch over a run: who learns by heart is stopped, who learns is not."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from kleinbild.core.training import Validated
from kleinbild.model.weights import Model, load_model
from kleinbild.nano.scenes.render import render
from kleinbild.nano.scenes.tasks import scene
from kleinbild.train.likeness import Look, apart, look_at, look_of_tokens, nearest, spacing
from kleinbild.train.neutral import neutral_prompts
from kleinbild.train.watch import Limits, Shown, measure, reason_to_stop

FOX, CAT, CAR = "1f98a", "1f431", "1f697"
PLAIN = ("white", "beige", "mint", "teal", "blue", "navy", "purple", "pink", "brown", "yellow", "red", "green")


@pytest.fixture(scope="module")
def nano() -> Model:
    torch.set_num_threads(1)
    return load_model("nano")


def looks_of(nano: Model, *scenes: tuple[str, str, tuple[int, int]]) -> list[Look]:
    return [look_at(nano, Image.fromarray(render(scene(ground, (code, at))))) for ground, code, at in scenes]


def checks(*losses: float, copied: float | None = None) -> list[Validated]:
    metrics = {} if copied is None else {"copied": copied}
    return [Validated(100 * i, loss, {}, metrics) for i, loss in enumerate(losses, start=1)]


def test_a_copy_is_nearer_than_another_thing_and_that_nearer_than_another_ground(nano: Model) -> None:
    one, thing, ground = looks_of(nano, ("white", FOX, (1, 1)), ("white", CAT, (1, 1)), ("blue", FOX, (1, 1)))
    pixels = render(scene("white", (FOX, (1, 1)))).astype(np.float32)
    noisy = np.clip(pixels + np.random.RandomState(0).randn(*pixels.shape) * 8, 0, 255).astype(np.uint8)
    copy = look_at(nano, Image.fromarray(noisy))
    assert apart(one.places_F, copy.places_F) < 0.5 * apart(one.places_F, thing.places_F)
    assert apart(one.places_F, thing.places_F) < 0.5 * apart(one.places_F, ground.places_F)


def test_latents_that_are_encoded_already_and_pictures_of_any_size_can_be_compared(nano: Model) -> None:
    from kleinbild.engine.encode import encode_picture
    from kleinbild.engine.latents import to_tokens

    image = Image.fromarray(render(scene("white", (FOX, (1, 1)))))
    tokens = to_tokens(encode_picture(nano, image))
    assert nearest(look_at(nano, image), [look_of_tokens(tokens, (8, 8))]) < 1e-5
    assert look_at(nano, image.resize((100, 150))).places_F.shape == look_at(nano, image).places_F.shape


def test_a_subject_in_new_places_is_no_copy(nano: Model) -> None:
    training = looks_of(nano, *((ground, FOX, (1, 1)) for ground in PLAIN))
    plain, adapted = (looks_of(nano, *((g, code, (1, 1)) for g in ("meadow", "beach", "snow"))) for code in (CAR, FOX))
    shown = [Shown(f"a fox {i}", new, old) for i, (new, old) in enumerate(zip(adapted, plain, strict=True))]
    assert measure(training, ["a fox"], shown, [])["copied"] == 0


def test_training_pictures_for_other_prompts_are_copies(nano: Model) -> None:
    training = looks_of(nano, *((ground, FOX, (1, 1)) for ground in PLAIN))
    plain = looks_of(nano, ("meadow", CAR, (1, 1)), ("beach", CAR, (1, 1)))
    shown = [Shown("a fox on a meadow", training[3], plain[0]), Shown("a fox on a beach", plain[1], plain[1])]
    assert measure(training, ["a fox on white"], shown, [])["copied"] == 0.5


def test_captions_and_what_the_base_makes_without_the_adapter_do_not_count(nano: Model) -> None:
    training = looks_of(nano, *((ground, FOX, (1, 1)) for ground in PLAIN))
    (other,) = looks_of(nano, ("meadow", CAR, (1, 1)))
    of_caption = Shown("A fox on white.", training[0], other)
    known_before = Shown("a fox somewhere", training[1], training[1])
    assert "copied" not in measure(training, ["a fox on white"], [of_caption, known_before], [])


def test_copies_cannot_be_told_among_pictures_that_are_alike(nano: Model) -> None:
    (one, other) = looks_of(nano, ("white", FOX, (1, 1)), ("meadow", CAR, (1, 1)))
    assert spacing([one]) == 0
    assert "copied" not in measure([one, one, one], [], [Shown("a fox", one, other)], [])


def test_drift_is_one_where_neutral_prompts_are_mixed_up(nano: Model) -> None:
    a, b = looks_of(nano, ("white", FOX, (1, 1)), ("meadow", CAR, (1, 1)))
    unmoved = measure([], [], [], [Shown("x", a, a), Shown("y", b, b)])
    mixed = measure([], [], [], [Shown("x", b, a), Shown("y", a, b)])
    assert unmoved["drift"] == 0
    assert mixed["drift"] == pytest.approx(1)


def test_a_run_that_learns_goes_on() -> None:
    assert reason_to_stop(checks(0.9, 0.7, 0.6, 0.55, 0.552, 0.551, 0.553, 0.552, 0.55), Limits()) is None
    assert reason_to_stop(checks(0.9, 0.5, 0.6, 0.6, 0.6, 0.6, 0.5), Limits()) is None  # came back
    assert reason_to_stop(checks(0.9), Limits()) is None
    assert reason_to_stop(checks(0.9, 0.5, copied=0.3), Limits()) is None


def test_a_run_whose_validation_loss_rises_is_stopped_with_the_reason() -> None:
    reason = reason_to_stop(checks(0.9, 0.5, 0.55, 0.56, 0.57, 0.58, 0.6), Limits(patience=5))
    assert reason is not None
    assert "0.5000 at step 200" in reason
    assert "0.6000 at step 700" in reason


def test_a_run_that_learns_by_heart_is_stopped_at_the_second_look() -> None:
    history = checks(0.9, 0.8, copied=0.6)
    assert reason_to_stop(history[:1], Limits()) is None
    reason = reason_to_stop([*history[:1], *checks(0.7), *history[1:]], Limits())
    assert reason is not None
    assert "by heart: 60%" in reason


def test_neutral_prompts_are_not_what_is_taught() -> None:
    prompts = neutral_prompts(["a frog on blue", "a frog in the snow"], vocabulary="nano")
    assert len(prompts) == 4
    assert not any("frog" in prompt or "snow" in prompt for prompt in prompts)
    assert not set(prompts) & set(neutral_prompts([], vocabulary=None))
