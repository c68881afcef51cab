"""nano says which words it does not know, lists what it knows and names the model that knows more."""

from __future__ import annotations

import pytest

from kleinbild.core.errors import PromptError
from kleinbild.nano import words


@pytest.mark.parametrize(
    "prompt",
    [
        "a fox on a mint background",
        "A FOX, on mint!",
        "Two foxes in the snow.",
        "a soccer ball and a teddy bear, night sky",
    ],
)
def test_its_own_words_in_any_case_and_punctuation(prompt: str) -> None:
    words.check(prompt, 0)


def test_unknown_words_are_named_once_and_the_known_ones_listed() -> None:
    with pytest.raises(PromptError) as caught:
        words.check("a spaceship, a wizard and a spaceship on Mars", 0)
    assert caught.value.message == 'nano does not know "spaceship", "wizard", "mars"'
    assert "fox" in caught.value.hint
    assert "aurora gradient" in caught.value.hint
    assert "kleinbild pull klein-4b" in caught.value.hint


def test_half_of_a_name_is_not_a_name() -> None:
    with pytest.raises(PromptError, match="ball"):
        words.check("a ball on blue", 0)


def test_an_edit_needs_a_picture() -> None:
    with pytest.raises(PromptError, match="none was given"):
        words.check("remove the fox", 0)
    words.check("remove the fox", 1)


def test_image_2_needs_two_pictures() -> None:
    with pytest.raises(PromptError, match="image 2"):
        words.check("put the object of image 1 on the background of image 2", 1)


def test_four_different_things_are_too_many() -> None:
    words.check("a fox, a cat and a dog", 0)
    with pytest.raises(PromptError, match="at most 3 different things, the prompt names 4"):
        words.check("a fox, a cat, a dog and a pig", 0)


@pytest.mark.parametrize("prompt", ["a green lion on blue", "make the lion green", "turn the lion purple"])
def test_what_comes_in_its_own_colour_only(prompt: str) -> None:
    with pytest.raises(PromptError, match='nano cannot colour "lion"') as caught:
        words.check(prompt, 1)
    assert "car" in caught.value.hint
    assert "purple" in caught.value.hint


@pytest.mark.parametrize(
    "prompt",
    ["a green car on white", "a green apple on red", "lion, green", "paint the car red", "make the background red"],
)
def test_colours_of_things_and_of_backgrounds(prompt: str) -> None:
    words.check(prompt, 1)


@pytest.mark.parametrize(
    ("prompt", "num_references"),
    [("a small fox", 0), ("a tiny fox left of a pizza", 0), ("four little cats", 0), ("a SMALL green car on a beach", 0),
     ("a HUGE green car on a beach", 0), ("a big fox in the middle", 0), ("a big top hat", 0),
     ("a large owl under the night sky", 0), ("add a small fox on the left", 1), ("add a big fox", 1)],
)  # fmt: skip
def test_sizes(prompt: str, num_references: int) -> None:
    words.check(prompt, num_references)


@pytest.mark.parametrize(
    ("prompt", "num_references", "message"),
    [
        ("a big fox on the left", 0, "alone and in the middle"),
        ("two large cats", 0, "alone and in the middle"),
        ("large cats", 0, "alone and in the middle"),
        ("a big fox and a pizza", 0, "alone and in the middle"),
        ("add a big fox at the top", 1, "alone and in the middle"),
        ("make the fox big", 1, "changes no sizes"),
        ("make the fox small", 1, "changes no sizes"),
    ],
)
def test_sizes_that_it_does_not_make(prompt: str, num_references: int, message: str) -> None:
    with pytest.raises(PromptError, match=message):
        words.check(prompt, num_references)


@pytest.mark.parametrize(("prompt", "learned"), [("make the fox small", "small"), ("a big fox on the left", "big fox")])
def test_an_adapters_own_size_is_its_own_matter(prompt: str, learned: str) -> None:
    words.check(prompt, prompt.startswith("make"), learned=[learned])
