"""nano's world: what is asked, what is drawn, and that the oracle tells right from wrong."""

from __future__ import annotations

from dataclasses import replace
from itertools import islice
from random import Random

import numpy as np
import pytest
from PIL import Image, ImageFilter

from kleinbild.nano import words
from kleinbild.nano.scenes.draw import SINGLES, WIDE, Draw
from kleinbild.nano.scenes.lexicon import (
    BACKGROUNDS,
    COLORS,
    NOUN_BY_NAME,
    NOUNS,
    OWN_COLORS,
    PAINTABLE,
    UNSEEN,
    in_color,
)
from kleinbild.nano.scenes.oracle import judge, nearest_scene
from kleinbild.nano.scenes.phrases import CENTER
from kleinbild.nano.scenes.render import Grid, Pixels, Placed, Scene, render
from kleinbild.nano.scenes.sprites import NUM_TURNS, painted, sprite, sprites
from kleinbild.nano.scenes.tasks import COUNTS, GRIDS, Sample, is_held_out, samples, scene

NAMED = tuple(noun.code for noun in NOUNS)


def some(count: int, *, evaluation: bool = False, codes: tuple[str, ...] = NAMED) -> list[Sample]:
    return list(islice(samples(Draw(Random(5), evaluation=evaluation, codes=codes, grids=GRIDS)), count))


def test_the_world_is_as_large_as_promised() -> None:
    assert len(NOUNS) >= 150
    assert len(BACKGROUNDS) >= 30
    assert len(PAINTABLE) >= 16
    assert not set(UNSEEN) & set(NAMED)
    assert {*NAMED, *UNSEEN} <= set(sprites())


def test_training_never_shows_what_evaluation_asks_for() -> None:
    assert not any(is_held_out(sample) for sample in some(4000))
    asked = some(6000, evaluation=True)
    assert {sample.task for sample in asked if is_held_out(sample)} == {sample.task for sample in asked}


def test_every_task_is_drawn() -> None:
    tasks = [sample.task for sample in some(6000)]
    assert all(tasks.count(task) > 60 for task in set(tasks))
    assert len(set(tasks)) == 17


def test_strange_objects_are_turned_and_in_other_hues() -> None:
    code = NOUN_BY_NAME["fox"].code
    plain = sprite(code)
    turned = [sprite(f"{code}~{turn},0") for turn in range(NUM_TURNS)]
    assert np.abs(turned[0].astype(int) - plain).max() <= 8  # through hue and back
    assert np.array_equal(turned[1][..., 3], np.rot90(plain[..., 3]))
    assert np.array_equal(turned[4][..., 3], plain[:, ::-1, 3])
    blue = sprite(f"{code}~0,200").astype(int)
    seen = blue[plain[..., 3] > 0].mean(axis=0)
    assert seen[2] > seen[0]
    assert len({tile.tobytes() for tile in (*turned, blue)}) == NUM_TURNS + 1


def test_only_objects_of_two_pictures_are_strange() -> None:
    drawn = list(islice(samples(Draw(Random(5), evaluation=False, codes=NAMED, strange=0.5)), 3000))
    strange = {sample.task for sample in drawn if any("~" in item.code for item in sample.target.placed)}
    assert strange == {"object on background", "object into scene", "both objects"}
    assert not any(is_held_out(sample) for sample in drawn)


def test_big_things_stand_alone_inside_the_picture() -> None:
    big = [sample.target for sample in some(3000) if sample.task == "big"]
    assert big
    for shown in big:
        (item,) = shown.placed
        left, top, right, bottom = item.box
        height, width = render(shown).shape[:2]
        assert (left, top) == (width - right, height - bottom)
        assert right - left == 84
        assert left >= 0
        assert top >= 0


def test_edits_change_only_what_they_say() -> None:
    for sample in some(2000):
        if sample.task == "background":
            assert sample.target.placed == sample.references[0].placed
        if sample.task in ("remove", "add", "replace", "move", "recolor"):
            assert sample.target.background == sample.references[0].background
        if sample.task == "recolor":
            before, after = (
                [(item.row, item.column) for item in each.placed] for each in (sample.references[0], sample.target)
            )
            assert before == after
        if sample.task == "move":
            assert len(set(sample.target.placed) - set(sample.references[0].placed)) == 1
        if sample.task == "object on background":
            first, second = sample.references
            assert sample.target == replace(second, placed=first.placed)
        if sample.task == "object into scene":
            assert set(sample.references[1].placed) < set(sample.target.placed)


def test_a_thing_in_another_colour_is_the_same_thing() -> None:
    for noun in PAINTABLE:
        own = sprite(noun.code)
        assert in_color(noun, OWN_COLORS[noun.code]).code == noun.code
        for color in set(COLORS) - {OWN_COLORS[noun.code]}:
            other = sprite(in_color(noun, color).code)
            assert np.array_equal(other[..., 3], own[..., 3])
            changed = np.abs(other[..., :3].astype(int) - own[..., :3]).max(axis=2)[own[..., 3] > 128]
            assert (changed > 20).mean() > 0.15, (noun.name, color)
    assert len(painted()) == len(PAINTABLE) * (len(COLORS) - 1)


def test_only_what_is_added_covers_another() -> None:
    for sample in some(1000):
        if sample.task in ("add", "remove"):
            continue
        boxes = [item.box for item in sample.target.placed]
        for i, (left, top, right, bottom) in enumerate(boxes):
            for other in boxes[i + 1 :]:
                assert right <= other[0] or other[2] <= left or bottom <= other[1] or other[3] <= top


def test_the_oracle_accepts_the_truth() -> None:
    for sample in some(60):
        picture = render(sample.target)
        assert nearest_scene(picture, sample.right) == sample.target
        verdict = judge(picture, sample.target, before=sample.references[-1] if sample.references else None)
        assert verdict.all_right
        assert verdict.box_psnr > 60


def test_the_oracle_judges_what_a_thing_does_not_cover() -> None:
    fox, cat = (CENTER, (0, 0))
    both = scene("mint", (FOX, fox), (CAT, cat))
    assert judge(render(both), both).all_right
    assert not judge(render(scene("mint", (CAT, fox), (CAT, cat))), both).objects_right
    assert not judge(render(scene("mint", (CAT, cat))), both).objects_right
    assert not judge(render(scene("mint", (FOX, fox))), both).objects_right


def test_the_oracle_judges_pictures_of_the_scenes_size() -> None:
    wide = scene("beach", (FOX, (1, 2)), grid=WIDE)
    assert render(wide).shape == (128, 192, 3)
    assert judge(render(wide), wide).all_right
    assert not judge(render(scene("beach", (FOX, (1, 0)), grid=WIDE)), wide).objects_right
    with pytest.raises(ValueError, match="large"):
        judge(render(scene("beach", (FOX, (1, 2)))), wide)


@pytest.mark.parametrize("grid", dict.fromkeys(GRIDS))
def test_places_are_those_of_the_picture(grid: Grid) -> None:
    height, width = (16 * tokens for tokens in grid)
    for row, column in SINGLES:
        (item,) = scene("mint", (FOX, (row, column)), grid=grid).placed
        left, top, right, bottom = item.box
        assert (left + right) / 2 == pytest.approx([32, width / 2, width - 32][column])
        assert (top + bottom) / 2 == pytest.approx([32, height / 2, height - 32][row])


def test_what_is_left_open_is_taught_as_the_first_of_all_that_is_right() -> None:
    for evaluation in (False, True):
        asked = [sample for sample in some(4000, evaluation=evaluation) if len(sample.right) > 1]
        bare = {"bare"} if evaluation else set()
        assert {sample.task for sample in asked} == {"one", "colored", "sized", "two", "three", "count", "add"} | bare
        for sample in asked:
            assert sample.target == sample.right[0]
            assert len(set(sample.right)) == len(sample.right)


def test_the_oracle_accepts_a_soft_and_noisy_picture() -> None:
    random = np.random.default_rng(0)
    for sample in some(20):
        picture = render(sample.target)
        noisy = picture.astype(np.float32) + random.normal(0, 12, picture.shape)
        assert judge(noisy.clip(0, 255).astype(np.uint8), sample.target).all_right


FOX, CAT = NAMED[:2]


@pytest.mark.parametrize(
    ("shown", "wrong"),
    [
        (Scene("mint", (Placed(CAT, 2, 2),)), "objects_right"),
        (Scene("mint"), "objects_right"),
        (Scene("mint", (Placed(FOX, 2, 0),)), "objects_right"),
        (Scene("teal", (Placed(FOX, 2, 2),)), "background_right"),
        (Scene("mint", (Placed(FOX, 2, 2), Placed(CAT, 0, -2))), "clean"),
        (Scene("mint", (Placed(UNSEEN[0], 2, 2),)), "objects_right"),
    ],
    ids=["another thing", "nothing", "another place", "another background", "a thing too many", "one without a name"],
)
def test_the_oracle_refuses(shown: Scene, wrong: str) -> None:
    verdict = judge(render(shown), Scene("mint", (Placed(FOX, 2, 2),)))
    assert not getattr(verdict, wrong)
    assert not verdict.all_right


@pytest.mark.parametrize("radius", [6, 10])
def test_the_oracle_refuses_a_smear(radius: int) -> None:
    fox = Scene("navy", (Placed(FOX, 2, 2),))
    blurred = np.asarray(Image.fromarray(render(fox)).filter(ImageFilter.GaussianBlur(radius)))
    assert not judge(blurred, fox).all_right


def mixed(ground: Scene, shown: Scene, share: float) -> Pixels:
    """`shown` at this opacity over `ground`."""
    below, above = render(ground).astype(np.float32), render(shown).astype(np.float32)
    return (below + share * (above - below)).round().astype(np.uint8)


@pytest.mark.parametrize(("share", "right"), [(0.5, False), (0.65, False), (0.75, True)])
def test_the_oracle_refuses_what_is_faint(share: float, right: bool) -> None:
    cat = Placed(CAT, 0, 4)  # all there, whatever the fox is
    both = Scene("white", (Placed(FOX, 4, 0), cat))
    assert judge(mixed(Scene("white", (cat,)), both, share), both).objects_right is right


@pytest.mark.parametrize(("share", "right"), [(0.0, True), (0.2, True), (0.3, False), (0.5, False)])
def test_the_oracle_refuses_a_ghost_of_what_an_edit_took_away(share: float, right: bool) -> None:
    cat = Placed(CAT, 4, 0)
    before = Scene("white", (cat, Placed(FOX, 0, 4)))
    removed = Scene("white", (cat,))
    moved = Scene("white", (cat, Placed(FOX, 3, 4)))  # on a fourth of where it was
    for after in (removed, moved):
        shown = mixed(after, Scene("white", (before.placed[1], *after.placed)), share)
        assert judge(shown, after, before=before).clean is right
    replaced = Scene("white", (cat, Placed(NAMED[2], 0, 4)))  # nothing is left of where the fox was
    assert judge(render(replaced), replaced, before=before).all_right


def test_the_oracle_sees_a_ghost_through_a_look() -> None:
    before, after = Scene("mint", (Placed(FOX, 2, 2),)), Scene("mint")
    assert judge(duotone(render(after)), after, duotone, before).all_right
    assert not judge(duotone(mixed(after, before, 0.4)), after, duotone, before).clean


def test_the_oracle_tells_colours_apart() -> None:
    car = next(noun for noun in PAINTABLE if noun.name == "car")
    shown = {color: Scene("white", (Placed(in_color(car, color).code, 2, 2),)) for color in COLORS}
    for color, car_scene in shown.items():
        assert [other for other in COLORS if judge(render(car_scene), shown[other]).all_right] == [color]


def test_what_stays_is_measured_by_itself() -> None:
    before = Scene("mint", (Placed(FOX, 2, 0), Placed(CAT, 2, 4)))
    after = Scene("mint", before.placed[:1])
    assert judge(render(after), after, before=before).kept_psnr == 99
    spoilt = render(after).copy()
    spoilt[40:60, 10:30] = 0  # in the fox, which was to stay
    kept = judge(spoilt, after, before=before).kept_psnr
    assert kept is not None
    assert kept < 30
    smeared = render(after).copy()
    smeared[40:60, 80:100] = 0  # where the cat was
    assert judge(smeared, after, before=before).kept_psnr == 99
    assert judge(render(after), after, before=Scene("blue", before.placed)).kept_psnr is None


def duotone(picture: Pixels) -> Pixels:
    light = picture.astype(np.float32).mean(axis=2, keepdims=True) / 255
    return (np.array([20, 30, 80]) * (1 - light) + np.array([255, 240, 200]) * light).round().astype(np.uint8)


def test_the_oracle_sees_through_a_look() -> None:
    fox, cat = Scene("mint", (Placed(FOX, 2, 2),)), Scene("mint", (Placed(CAT, 2, 2),))
    assert judge(duotone(render(fox)), fox, duotone).all_right
    assert not judge(duotone(render(cat)), fox, duotone).objects_right
    assert not judge(duotone(render(Scene("mint"))), fox, duotone).objects_right
    assert not judge(render(fox), fox, duotone).background_right
    assert not judge(duotone(render(fox)), fox).background_right


def test_the_oracle_counts() -> None:
    four = scene("blue", *((FOX, place) for place in COUNTS[4][0]))
    three = Scene("blue", four.placed[:3])
    assert not judge(render(three), four).all_right
    assert not judge(render(four), three).all_right


def test_every_wording_is_understood() -> None:
    random = Random(3)
    for sample in some(6000, codes=(*NAMED, *UNSEEN)):
        words.check(sample.wording(random), len(sample.references))
