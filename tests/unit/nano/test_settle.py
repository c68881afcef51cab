"""What a prompt leaves open and its seed settles."""

from __future__ import annotations

from itertools import islice
from random import Random

import pytest

from kleinbild.nano import words
from kleinbild.nano.scenes.draw import Draw
from kleinbild.nano.scenes.lexicon import BACKGROUNDS, HOMES, NOUNS
from kleinbild.nano.scenes.tasks import GRIDS, samples
from kleinbild.nano.settle import settle

SEEDS = range(40)


@pytest.mark.parametrize(
    ("prompt", "settled"),
    [
        ("A fox on a mint background.", "a fox in the middle, mint background"),
        ("fox", "a fox on the left, forest background"),
        ("a green car, starry sky", "a green car at the top, starry sky background"),
        ("a red car on red", "a red car on the right, red background"),
        ("a fox under the night sky", "a fox at the bottom, night sky background"),
        ("a fox on the left", "a fox on the left, forest background"),
        ("a fox", "a big fox in the middle, forest background"),
        ("a fox on mint", "a small fox on the left, mint background"),
        ("a green car", "a big green car in the middle, desert background"),
        ("a large green car", "a large green car in the middle, desert background"),
        ("a tiny fox on mint", "a tiny fox at the top, mint background"),
        ("a green small car on mint", "a small green car in the middle, mint background"),
        ("a small fox and a pizza on mint", "a small fox above a pizza, mint background"),
        ("four little cats", "four little cats, sunset gradient background"),
        ("two cats", "two cats, sunset gradient background"),
        ("cats on the beach", "three cats, beach background"),
        ("green cars", "two green cars, desert background"),
        ("pizza, fox, teal", "a pizza above a fox, teal background"),
        ("a fox next to a pizza on the beach", "a fox right of a pizza, beach background"),
        ("a cat, a dog and an owl in the snow", "a cat below a dog and an owl, snow background"),
    ],
)
def test_one_of_the_ways_to_settle(prompt: str, settled: str) -> None:
    assert settled in {settle(prompt, seed) for seed in SEEDS}


@pytest.mark.parametrize(
    "prompt",
    [
        "a fox on the left on a mint background", "two cats on a beach", "a fox above a pizza, teal background", "a beach",
        "a fox and two cats", "cats and a dog", "a zorp on red", "change the background to red", "a cat, a dog, a fish and an owl", "",
    ],
)  # fmt: skip
def test_what_is_said_or_not_understood_stays(prompt: str) -> None:
    assert {settle(prompt, seed) for seed in SEEDS} == {prompt}


@pytest.mark.parametrize(
    ("prompt", "settled"),
    [
        ("a Fox left of an owl on red", "a small Fox left of a small owl on red"),
        ("pizza, fox, teal", "a small pizza above a small fox, teal background"),
        ("two cats on mint", "two small cats on mint"),
        ("a green  car left of a tiny owl on mint", "a small green  car left of a tiny owl on mint"),
        ("a fox", "a fox in the middle, forest background"),
        ("a zorp and a fox", "a zorp and a fox"),
    ],
)
def test_several_things_are_small_where_there_is_no_room(prompt: str, settled: str) -> None:
    assert settled in {settle(prompt, seed, narrow=True) for seed in SEEDS}


def test_nothing_is_big_unasked_where_there_is_no_room() -> None:
    assert not any("big" in settle("a fox", seed, narrow=True) for seed in SEEDS)
    assert "big" in settle("a big fox", 1, narrow=True)


def test_seeds_that_follow_each_other_differ() -> None:
    assert len({settle("a fox on a mint background", seed) for seed in range(7, 15)}) == 8
    assert len({settle("a fox and a pizza on teal", seed) for seed in range(4)}) == 4
    assert len({settle("a fox", seed) for seed in SEEDS}) == 32
    assert settle("a fox", 3) == settle("a fox", 3)


def test_things_are_at_home() -> None:
    grounds = {background.name for background in BACKGROUNDS}
    assert set(HOMES) == {noun.code for noun in NOUNS}
    assert set(HOMES.values()) <= grounds
    for noun in NOUNS:
        assert any(f"{HOMES[noun.code]} background" in settle(noun.name, seed) for seed in range(4)), noun.name


def test_nano_understands_all_that_is_settled() -> None:
    random = Random(4)
    draw = Draw(random, evaluation=True, codes=tuple(noun.code for noun in NOUNS), grids=GRIDS)
    for sample in islice(samples(draw), 3000):
        if not sample.references:
            prompt = sample.wording(random)
            settled = settle(prompt, random.getrandbits(32))
            words.check(settled, 0)
            assert settle(settled, 1) == settled, prompt
            assert sample.task != "bare" or settled != prompt
