"""Sizes are on the grid, keep shapes, and enlarge nothing in silence."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kleinbild.core.errors import PictureError, RequestError
from kleinbild.core.sizes import Size, SizeRange
from kleinbild.train.data.buckets import Framing, bucket, histogram, place, usable_sides, views
from kleinbild.train.data.examples import Example
from kleinbild.train.data.pictures import look, open_upright
from tests.unit.train.data.making import picture

KLEIN = SizeRange(min_side=64, max_side=2048, max_pixels=4 * 2**20, multiple=16)


@given(st.integers(64, 8000), st.integers(64, 8000), st.sampled_from([256, 512, 768, 1024]))
def test_buckets_keep_shape_and_area(width: int, height: int, side: int) -> None:
    size = Size(width, height)
    if not 1 / 8 <= width / height <= 8:
        return
    made = bucket(size, side, KLEIN)
    assert KLEIN.allows(made)
    assert place(size, made).lost < 0.13
    if 1 / 3 < width / height < 3:
        assert 0.75 < made.area / side**2 < 1.35


@given(st.integers(8, 3000), st.integers(8, 3000), st.integers(4, 64), st.integers(4, 64))
def test_the_crop_is_the_largest_part_around_the_centre(width: int, height: int, rows: int, columns: int) -> None:
    placed = place(Size(width, height), Size(columns * 16, rows * 16))
    left, top, right, bottom = placed.box
    assert left >= 0
    assert top >= 0
    assert right <= width + 1e-9
    assert bottom <= height + 1e-9
    assert (right - left) / (bottom - top) == pytest.approx(columns / rows)
    assert max((right - left) / width, (bottom - top) / height) == pytest.approx(1)
    assert abs((left + right) / 2 - width / 2) <= 0.5
    assert abs((top + bottom) / 2 - height / 2) <= 0.5


def test_a_picture_of_the_right_size_is_left_as_it_is(tmp_path: Path) -> None:
    image = open_upright(picture(tmp_path / "a.png", (128, 64)))
    assert place(Size(128, 64), Size(128, 64))(image) is image


def test_cropping_alone_changes_no_pixel(tmp_path: Path) -> None:
    image = open_upright(picture(tmp_path / "a.png", (131, 64)))
    made = place(Size(131, 64), Size(128, 64))(image)
    assert made.tobytes() == image.crop((1, 0, 129, 64)).tobytes()


def test_several_areas_where_the_picture_is_large_enough() -> None:
    framing = Framing(KLEIN, (512, 768, 1024))
    assert usable_sides(Size(2000, 2000), framing) == (512, 768, 1024)
    assert usable_sides(Size(800, 800), framing) == (512, 768)
    assert usable_sides(Size(300, 300), framing) == (512,)


def test_views_and_notes(tmp_path: Path) -> None:
    large, small, wide = (
        Example(picture(tmp_path / f"{name}.png", size), name, name=name)
        for name, size in (("large", (640, 640)), ("small", (64, 64)), ("wide", (660, 200)))
    )
    seen = look([large.target, small.target, wide.target]).require_whole()
    found, notes = views([large, small, wide], seen, Framing(KLEIN, (128, 256)))
    assert [(view.example.name, str(view.target.made)) for view in found] == [
        ("large", "128x128"),
        ("large", "256x256"),
        ("small", "128x128"),
        ("wide", "208x64"),
        ("wide", "464x144"),
    ]
    assert "1 picture enlarged: small (2.0 times)" in notes
    assert "1 picture too small for the largest area: small" in notes
    assert histogram(found)["128x128"] == 2


def test_what_is_cropped_is_told(tmp_path: Path) -> None:
    example = Example(picture(tmp_path / "a.png", (64, 90)), "", name="a")
    (view,), notes = views([example], look(example.files).require_whole(), Framing(KLEIN, (72,)))
    assert view.target.made == Size(64, 96)
    assert notes == ("more than 5% cropped of 1 picture: a (6%)",)


def test_references_take_the_targets_grid_or_their_own(tmp_path: Path) -> None:
    target, reference = picture(tmp_path / "t.png", (256, 128)), picture(tmp_path / "r.png", (512, 512))
    example = Example(target, "", (reference,), name="t")
    seen = look(example.files).require_whole()
    (same,), _ = views([example], seen, Framing(KLEIN, (176,)))
    assert same.references[0] is not None
    assert same.references[0].made == same.target.made
    (free,), _ = views([example], seen, Framing(KLEIN, (176,), references="free"))
    assert free.references == (None,)


def test_pictures_too_narrow_are_an_error(tmp_path: Path) -> None:
    example = Example(picture(tmp_path / "a.png", (800, 64)), "", name="the strip")
    with pytest.raises(PictureError, match="the strip is 800x64: longer than 8 times"):
        views([example], look(example.files).require_whole(), Framing(KLEIN, (256,)))


def test_resolutions_beyond_the_model_are_an_error() -> None:
    with pytest.raises(RequestError, match="a resolution of 4096 is beyond"):
        Framing(KLEIN, (512, 4096))
    with pytest.raises(RequestError, match="no resolution"):
        Framing(KLEIN, ())
