"""Sizes: what text means, what a model makes, and what it is told instead."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kleinbild.core.errors import SizeError
from kleinbild.core.sizes import Size, SizeRange, check_aspect, parse_aspect, parse_size, size_for_aspect

NANO = SizeRange(min_side=64, max_side=256, max_pixels=160 * 160, multiple=16)
KLEIN = SizeRange(min_side=64, max_side=2048, max_pixels=4 * 1024 * 1024, multiple=16)
RANGES = st.sampled_from([NANO, KLEIN])


@pytest.mark.parametrize("text", ["128x96", "128X96", " 128 x 96 ", "128×96"])
def test_a_size_is_read(text: str) -> None:
    assert parse_size(text) == Size(128, 96)


@pytest.mark.parametrize(
    "text", ["abc", "", "128", "128x", "x96", "128x96x3", "12.5x96", "128-96", "9" * 5000 + "x1", "１x１"]
)
def test_what_is_no_size_is_refused_with_an_example(text: str) -> None:
    with pytest.raises(SizeError) as caught:
        parse_size(text)
    assert repr(text) in caught.value.message
    assert "128x96" in caught.value.hint


@given(st.integers(-(10**6), 10**6), st.integers(-(10**6), 10**6))
def test_reading_undoes_writing(width: int, height: int) -> None:
    size = Size(width, height)
    assert parse_size(str(size)) == size


@pytest.mark.parametrize(
    ("size", "nearest"),
    [
        (Size(0, 128), "64x128"),
        (Size(-128, 128), "64x128"),
        (Size(127, 97), "128x96"),
        (Size(4096, 64), "256x64"),
        (Size(160, 176), "160x160"),
        (Size(1024, 1024), "160x160"),
        (Size(1536, 1024), "192x128"),
        (Size(32, 96), "64x192"),
    ],
)
def test_a_wrong_size_is_refused_with_what_is_allowed_and_the_nearest(size: Size, nearest: str) -> None:
    with pytest.raises(SizeError) as caught:
        NANO.check(size)
    assert str(size) in caught.value.message
    assert "multiples of 16 from 64 to 256, at most 25,600 pixels" in caught.value.message
    assert caught.value.hint.endswith(nearest)


@given(RANGES, st.integers(-100, 5000), st.integers(-100, 5000))
def test_the_nearest_size_is_allowed_and_allowed_sizes_are_their_own(sizes: SizeRange, width: int, height: int) -> None:
    nearest = sizes.nearest(Size(width, height))
    sizes.check(nearest)
    assert sizes.nearest(nearest) == nearest


@given(st.integers(64, 256), st.integers(64, 256))
def test_within_the_limits_a_size_is_rounded(width: int, height: int) -> None:
    size = Size(width, height)
    if size.area > NANO.max_pixels:
        with pytest.raises(SizeError, match="does not make"):
            NANO.rounded(size)
        return
    rounded = NANO.rounded(size)
    assert NANO.allows(rounded)
    assert abs(rounded.width - width) <= 16
    assert abs(rounded.height - height) <= 16
    assert (rounded == size) == NANO.allows(size)


@pytest.mark.parametrize("size", [Size(0, 128), Size(-128, 128), Size(63, 64), Size(257, 64), Size(161, 160)])
def test_beyond_the_limits_a_size_is_refused(size: Size) -> None:
    with pytest.raises(SizeError, match="the model does not make"):
        NANO.rounded(size)


def test_rounding_up_both_sides_may_be_too_much() -> None:
    assert NANO.rounded(Size(105, 243)) == Size(96, 240)


def test_padding_goes_up_to_the_next_multiple() -> None:
    assert NANO.padded(Size(65, 64)) == Size(80, 64)


@pytest.mark.parametrize(("text", "ratio"), [("1:1", 1.0), ("3:2", 1.5), (" 16 : 9 ", 16 / 9), ("2.35:1", 2.35)])
def test_an_aspect_is_read(text: str, ratio: float) -> None:
    assert parse_aspect(text) == pytest.approx(ratio)


@pytest.mark.parametrize("text", ["", "3", "3:", "3:0", "0:3", "-3:2", "a:b", "3/2", "9:1", "1:8.1"])
def test_what_is_no_aspect_is_refused(text: str) -> None:
    with pytest.raises(SizeError):
        parse_aspect(text)


@pytest.mark.parametrize("ratio", [math.nan, math.inf, 0.0, -1.0, 8.01, 0.12])
def test_extreme_ratios_are_refused(ratio: float) -> None:
    with pytest.raises(SizeError):
        check_aspect(ratio)


@pytest.mark.parametrize(
    ("aspect", "side", "expected"),
    [("1:1", 128, "128x128"), ("3:2", 128, "144x96"), ("3:2", 1024, "1248x832"), ("2:3", 1024, "832x1248")],
)
def test_sizes_for_an_aspect(aspect: str, side: int, expected: str) -> None:
    assert str(size_for_aspect(parse_aspect(aspect), side * side, 16)) == expected


@given(st.floats(1 / 8, 8), st.sampled_from([512, 1024]))
def test_a_size_for_an_aspect_is_close_in_shape_and_area(ratio: float, side: int) -> None:
    size = size_for_aspect(ratio, side * side, 16)
    assert size.width % 16 == size.height % 16 == 0
    assert abs(math.log(size.width / size.height / ratio)) < 0.1
    assert abs(math.log(size.area / side**2)) < 0.2
