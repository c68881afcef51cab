"""Who can do it, and what would be lost."""

from __future__ import annotations

from dataclasses import fields, replace
from decimal import Decimal
from typing import Any

import pytest

from kleinbild.core.prices import Measure
from kleinbild.core.sizes import Size
from tests.unit.gateway.routing.places import asked, decided, order, place, why_not


@pytest.mark.parametrize(
    ("can", "wanted", "told"),
    [
        ({"tasks": frozenset({"image.generate"})}, {"task": "image.edit"}, ("task", "it does not do image.edit, but image.generate")),
        ({"max_references": 2}, {"references": 3}, ("references", "3 > 2")),
        ({"max_prompt": 1000}, {"prompt_chars": 1001}, ("prompt", "1001 > 1000 letters")),
        ({}, {"size": Size(4096, 4096)}, ("size", "4096x4096: the nearest is 2048x2048")),
        ({}, {"parameters": {"mask": True}, "losses": "drop"}, ("loses mask", "mask True is not honoured")),
        ({}, {"parameters": {"guidance": 3}, "losses": "strict"}, ("loses guidance", "guidance 3 is not honoured")),
        (
            {},
            {"parameters": {"guidance": 3}, "required": frozenset({"guidance"}), "losses": "drop"},
            ("loses guidance", "guidance 3 is not honoured"),
        ),
        (
            {},
            {"size": Size(1000, 1000), "required": frozenset({"size"})},
            ("loses size", "size 1000x1000 becomes 992x992"),
        ),
    ],
)  # fmt: skip
def test_what_a_place_cannot_do_excludes_it(can: dict[str, Any], wanted: dict[str, Any], told: tuple[str, str]) -> None:
    decision = decided(asked(**wanted), [place("a", **can)])
    assert why_not(decision) == {"a": told}


def test_with_warn_what_honours_more_of_what_was_given_comes_first() -> None:
    cheap, dear = place("cheap", "0.01", parameters=frozenset()), place("dear", "0.09")
    wanted = {"parameters": {"seed": 5}}
    decision = decided(asked(**wanted, losses="warn"), [cheap, dear])
    assert order(decision) == ["dear", "cheap"]
    assert [str(loss) for loss in decision.candidates[1].losses] == ["seed 5 is not honoured"]
    assert "seed 5 is not honoured" in decision.candidates[1].reason


def test_with_drop_the_policy_decides_and_the_loss_is_still_told() -> None:
    cheap, dear = place("cheap", "0.01", parameters=frozenset()), place("dear", "0.09")
    decision = decided(asked(parameters={"seed": 5}, losses="drop"), [cheap, dear])
    assert order(decision) == ["cheap", "dear"]
    assert decision.candidates[0].losses
    assert order(decided(asked(parameters={"seed": 5}, losses="drop"), [place("b"), place("a", parameters=frozenset())])) == ["b", "a"]  # fmt: skip


def test_with_strict_what_would_be_lost_excludes() -> None:
    cheap, dear = place("cheap", "0.01", parameters=frozenset()), place("dear", "0.09")
    assert order(decided(asked(parameters={"seed": 5}, losses="strict"), [cheap, dear])) == ["dear"]


def test_a_loss_that_makes_no_other_picture_does_not_change_the_order() -> None:
    cheap, dear = place("cheap", "0.01"), place("dear", "0.09", parameters=frozenset({"user"}))
    decision = decided(asked(parameters={"user": "someone"}), [cheap, dear])
    assert order(decision) == ["cheap", "dear"]
    assert [loss.parameter for loss in decision.candidates[0].losses] == ["user"]


def test_steps_as_the_place_makes_them_anyway_are_no_loss() -> None:
    fixed = place("a", parameters=frozenset({"size"}), default_steps=4)
    assert not decided(asked(steps=4, parameters={"steps": 4}), [fixed]).candidates[0].losses
    assert decided(asked(steps=8, parameters={"steps": 8}), [fixed]).candidates[0].losses


@pytest.mark.parametrize(("parameters", "calls"), [({"seed": 5}, [1, 1, 1]), ({}, [3])])
def test_pictures_whose_seeds_are_asked_for_are_made_one_at_a_time(parameters: Any, calls: list[int]) -> None:
    lonely = place("a", parameters=frozenset({"seed"}), max_images=4, one_seed=True)
    three = asked(parameters=parameters, images=3)
    assert [call.images for call in decided(three, [lonely]).candidates[0].fit.calls] == calls


def test_what_a_place_does_anyway_is_no_loss() -> None:
    faithful = place("a", parameters=frozenset({"size"}), always=(("input_fidelity", "high"),))
    assert not decided(asked(parameters={"input_fidelity": "high"}), [faithful]).candidates[0].losses
    assert decided(asked(parameters={"input_fidelity": "low"}), [faithful]).candidates[0].losses


@pytest.mark.parametrize(
    ("can", "size", "told"),
    [
        ({}, Size(1024, 768), []),
        ({}, Size(1020, 768), ["size 1020x768 becomes 1024x768"]),
        ({"sizes": None, "exact_sizes": ("1024x1024", "1536x1024")}, Size(1536, 1024), []),
        ({"sizes": None, "exact_sizes": ("1024x1024", "1536x1024")}, Size(1280, 720), ["size 1280x720 becomes 1536x1024"]),
        ({"sizes": None, "ratios": ("1:1", "16:9")}, Size(1280, 720), ["size 1280x720 becomes the shape 16:9"]),
        ({"sizes": None}, Size(1280, 720), ["size 1280x720 is not honoured"]),
        ({"parameters": frozenset()}, Size(1280, 720), ["size 1280x720 is not honoured"]),
    ],
)  # fmt: skip
def test_the_nearest_size_is_taken_and_said(can: dict[str, Any], size: Size, told: list[str]) -> None:
    (candidate,) = decided(asked(size=size), [place("a", **can)]).candidates
    assert [str(loss) for loss in candidate.losses] == told


def test_a_shape_that_is_another_picture_excludes() -> None:
    square = place("a", sizes=None, exact_sizes=("1024x1024",))
    assert why_not(decided(asked(size=Size(1536, 512)), [square])) == {"a": ("size", "1536x512: the nearest is 1024x1024")}  # fmt: skip
    shapes = place("a", sizes=None, ratios=("1:1",))
    assert why_not(decided(asked(size=Size(1600, 900)), [shapes])) == {"a": ("size", "1600x900: the nearest shape is 1:1")}  # fmt: skip


def test_a_long_value_that_is_lost_is_told_in_a_line() -> None:
    decision = decided(asked(parameters={"negative_prompt": "x" * 9000}), [place("a")])
    assert len(str(decision.candidates[0].losses[0])) < 100


def test_no_size_is_no_loss_and_priced_as_said() -> None:
    (candidate,) = decided(asked(megapixels=Decimal(2)), [place("a")]).candidates
    assert not candidate.losses


def test_a_call_is_of_all_that_was_asked_but_what_the_place_does_otherwise() -> None:
    told = {"quality": "high", "references": 2, "input_tokens": 5, "most_input_tokens": 7, "previews": 3}
    measure = Measure(3, Decimal(2), Decimal(1), 8, **told)  # type: ignore[arg-type]
    assert measure.of_call(2, Decimal(4), 9) == replace(measure, images=2, megapixels=Decimal(4), steps=9)
    assert all(getattr(measure, each.name) != each.default for each in fields(Measure) if each.name != "tokens")
