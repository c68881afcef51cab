"""Times, weights, dropout and order: functions of (seed, sample), as the recipe says."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from statistics import mean

import pytest
import torch
from torch import Tensor

from kleinbild.model.packing import Packing, Segment
from kleinbild.train.data.cache import Encoded
from kleinbild.train.data.examples import Example
from kleinbild.train.objective import Sample, draw, loss_of
from kleinbild.train.order import order_of
from kleinbild.train.times import distilled_times, draw_time, shifted, training_shift, weight_at
from tests import tiny
from tests.parity.comparisons import random
from tests.unit.train.made import recipe

CPU = torch.device("cpu")
LINE = {"time_mean": 0.0, "time_spread": 1.0, "time_shift": 0.0}


def encoded(*, mask: Tensor | None = None, regularization: bool = False, num_references: int = 1) -> Encoded:
    example = Example(Path("fox.png"), "a fox", regularization=regularization)
    references = ((random(6, 128, seed=9), (2, 3)),) * num_references
    return Encoded(example, random(8, 128), (2, 4), references, (random(5, 72, seed=3),), mask)


def nothing(noisy_NC: Tensor, _context: Tensor, _times: Tensor, _packing: Packing) -> Tensor:
    """A network that always says no velocity."""
    return torch.zeros_like(noisy_NC)


def times_of(tokens: int, num: int = 4000, **values: object) -> list[float]:
    wanted = recipe(**{**LINE, **values})
    return [draw_time(wanted, tokens, torch.Generator().manual_seed(i)) for i in range(num)]


def test_times_are_shifted_by_the_resolutions_line() -> None:
    assert training_shift(256) == pytest.approx(1.6487, abs=1e-4)
    assert training_shift(4096) == pytest.approx(3.1582, abs=1e-4)
    for tokens in (256, 4096):
        median = sorted(times_of(tokens))[2000]
        assert median == pytest.approx(shifted(0.5, training_shift(tokens)), abs=0.02)
    assert sorted(times_of(4096, times="constant-shift", time_shift=3.0))[2000] == pytest.approx(0.75, abs=0.02)
    assert mean(times_of(256, times="uniform")) == pytest.approx(0.5, abs=0.02)


def test_half_of_the_times_of_distilled_4_are_near_those_that_the_distilled_model_is_asked_at() -> None:
    assert distilled_times(4096) == pytest.approx((1, 0.967, 0.908, 0.767), abs=2e-3)
    low = min(distilled_times(4096)[1:])
    near, usual = (mean(time > low for time in times_of(4096, times=each)) for each in ("distilled-4", "logit-normal"))
    assert usual == pytest.approx(0.5, abs=0.05)
    assert near == pytest.approx((usual + 0.86) / 2, abs=0.05)


def test_weights_by_time_are_about_one_on_average() -> None:
    times = [(i + 0.5) / 1000 for i in range(1000)]
    assert mean(weight_at(time, "bell") for time in times) == pytest.approx(1, abs=1e-3)
    assert mean(weight_at(time, "peaked") for time in times) == pytest.approx(0.9, abs=0.1)
    assert weight_at(0.88, "peaked") == pytest.approx(1.52)


def test_a_sample_is_a_function_of_seed_and_number() -> None:
    one, same, other = (draw(encoded(), random(5, 72), recipe(seed=4), number) for number in (7, 7, 8))
    assert torch.equal(one.noise_NC, same.noise_NC)
    assert one.time == same.time != other.time
    assert not torch.equal(one.noise_NC, other.noise_NC)


def test_captions_and_references_are_dropped_as_often_as_the_recipe_says() -> None:
    wanted, empty = recipe(caption_dropout=0.3, reference_dropout=0.2), random(5, 72, seed=8)
    drawn = [draw(encoded(), empty, wanted, number) for number in range(1500)]
    assert mean(each.context_LX is empty for each in drawn) == pytest.approx(0.3, abs=0.04)
    assert mean(not each.references for each in drawn) == pytest.approx(0.2, abs=0.04)
    assert all(len(each.segment.references) == len(each.references) for each in drawn)


def test_each_of_an_examples_captions_is_drawn_as_often() -> None:
    captions = tuple(random(5, 72, seed=seed) for seed in range(3))
    empty, wanted = random(5, 72, seed=8), recipe(caption_dropout=0.1)
    of_each = replace(encoded(), contexts=captions)
    drawn = [draw(of_each, empty, wanted, number).context_LX for number in range(1500)]
    for one in captions:
        assert mean(each is one for each in drawn) == pytest.approx(0.3, abs=0.04)


def test_large_pictures_count_as_much_as_small_ones() -> None:
    """And the order of samples, and rows of references, count nothing."""
    large = Sample(
        random(40, 128), random(40, 128, seed=1), (random(6, 128),), random(5, 72), Segment(5, (8, 5), ((2, 3),)), 0.4
    )
    small = Sample(random(4, 128), random(4, 128, seed=2), (), random(5, 72), Segment(5, (2, 2)), 0.4)
    of_each = [float(loss_of(nothing, [one], tiny.SPEC.transformer, CPU)) for one in (large, small)]
    assert of_each[1] == pytest.approx(float((small.noise_NC - small.target_NC).square().mean()), rel=1e-5)
    for batch in ([large, small], [small, large]):
        assert float(loss_of(nothing, batch, tiny.SPEC.transformer, CPU)) == pytest.approx(mean(of_each), rel=1e-5)


def test_only_what_a_mask_shows_counts() -> None:
    half = torch.tensor([1.0] * 4 + [0.0] * 4)[:, None]
    wanted = recipe(caption_dropout=0.0)
    shown = draw(encoded(mask=half), random(5, 72), wanted, 3)
    error_N = (shown.noise_NC - shown.target_NC).square().mean(-1)
    assert float(loss_of(nothing, [shown], tiny.SPEC.transformer, CPU)) == pytest.approx(float(error_N[:4].mean()))
    whole = draw(encoded(mask=half), random(5, 72), recipe(masked_loss=False), 3)
    assert float(loss_of(nothing, [whole], tiny.SPEC.transformer, CPU)) == pytest.approx(float(error_N.mean()))


def test_examples_come_as_often_as_they_repeat_and_regularization_as_its_share_says() -> None:
    examples = [
        Example(Path("a.png"), "a", repeats=3), Example(Path("b.png"), "b"), Example(Path("c.png"), "c", regularization=True)
    ]  # fmt: skip
    order = order_of(examples, 5, 0.2)
    drawn = [order.example(number) for number in range(100)]
    assert [drawn.count(i) for i in range(3)] == [60, 20, 20]
    assert drawn == [order_of(examples, 5, 0.2).example(number) for number in range(100)]
    assert drawn != [order_of(examples, 6, 0.2).example(number) for number in range(100)]
    weighted = draw(encoded(regularization=True), random(5, 72), recipe(regularization_weight=0.5), 1)
    assert weighted.weight == 0.5
