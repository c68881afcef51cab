"""Sizes of pictures: reading them from text, and the range that a model makes."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass

from kleinbild.core.errors import SizeError

MAX_ASPECT = 8
"""The longer side may be at most this many times the shorter: what the family was trained on."""

LARGE_PICTURE = 1024 * 1024
"""Pixels. Larger pictures are decoded in strips. That takes longer, but at 2048x2048 the official autoencoder in one
piece holds three maps of 2 GiB each at once, in bfloat16; up to the family's usual size it is a quarter of that."""

_SIZE = re.compile(r"\s*([+-]?\d{1,9})\s*[xX×]\s*([+-]?\d{1,9})\s*", re.ASCII)
_ASPECT = re.compile(r"\s*(\d{1,6}(?:\.\d{1,6})?)\s*:\s*(\d{1,6}(?:\.\d{1,6})?)\s*", re.ASCII)


@dataclass(frozen=True, slots=True)
class Size:
    """Width and height in pixels. Any numbers; whether a model makes the size is for `SizeRange.check` to say."""

    width: int
    height: int

    @property
    def area(self) -> int:
        return self.width * self.height

    def __str__(self) -> str:
        return f"{self.width}x{self.height}"


@dataclass(frozen=True, slots=True)
class SizeRange:
    """What a model makes: sides that are multiples of `multiple` from `min_side` to `max_side`, at most `max_pixels`."""

    min_side: int
    max_side: int
    max_pixels: int
    multiple: int

    def check(self, size: Size) -> None:
        """Raises SizeError that says what is allowed and the nearest allowed size."""
        if not self.allows(size):
            raise SizeError(
                f"the model does not make {size}: {self}", f"the nearest that it makes is {self.nearest(size)}"
            )

    def allows(self, size: Size) -> bool:
        return self.contains(size) and size == self.padded(size)

    def contains(self, size: Size) -> bool:
        """Whether `size` lies within the limits, multiple or not."""
        sides = (size.width, size.height)
        return all(self.min_side <= side <= self.max_side for side in sides) and size.area <= self.max_pixels

    def rounded(self, size: Size) -> Size:
        """The allowed size closest to one within the limits. Raises SizeError, as `check` does, for one beyond them."""
        if not self.contains(size):
            self.check(size)
        return self.nearest(size)

    def padded(self, size: Size) -> Size:
        """`size` with each side up to the next multiple; it may be more than the model makes."""
        return Size(*(math.ceil(side / self.multiple) * self.multiple for side in (size.width, size.height)))

    def nearest(self, size: Size) -> Size:
        """The allowed size closest to `size`: of its shape, as far as the limits allow that."""
        sides = [side if side > 0 else self.min_side for side in (size.width, size.height)]
        scale = max(1.0, self.min_side / min(sides))
        scale = min(scale, self.max_side / max(sides), math.sqrt(self.max_pixels / (sides[0] * sides[1])))
        rounded = Size(*(self._side(side * scale, round) for side in sides))
        return (
            rounded
            if rounded.area <= self.max_pixels
            else Size(*(self._side(side * scale, math.floor) for side in sides))
        )

    def _side(self, side: float, to_whole: Callable[[float], int]) -> int:
        return min(max(to_whole(side / self.multiple) * self.multiple, self.min_side), self.max_side)

    def __str__(self) -> str:
        return (
            f"sides are multiples of {self.multiple} from {self.min_side} to {self.max_side}, "
            f"at most {self.max_pixels:,} pixels in all"
        )


def parse_size(text: str) -> Size:
    """`128x96` as a Size. Raises SizeError for anything else; numbers are not checked here."""
    match = _SIZE.fullmatch(text)
    if match is None:
        raise SizeError(f"{text!r} is not a size", "write WIDTHxHEIGHT in pixels, for example 128x96")
    return Size(int(match[1]), int(match[2]))


def parse_aspect(text: str) -> float:
    """`3:2` as width over height. Raises SizeError for anything else, and beyond 8:1 and 1:8."""
    match = _ASPECT.fullmatch(text)
    if match is None or not float(match[1]) or not float(match[2]):
        raise SizeError(f"{text!r} is not an aspect ratio", "write WIDTH:HEIGHT, for example 3:2")
    return check_aspect(float(match[1]) / float(match[2]))


def check_aspect(ratio: float) -> float:
    """`ratio` (width over height) itself. Raises SizeError beyond 8:1 and 1:8."""
    if not 1 / MAX_ASPECT <= ratio <= MAX_ASPECT:  # not a number, too
        raise SizeError(
            f"an aspect ratio of {ratio:g} is too extreme", f"use one from 1:{MAX_ASPECT} to {MAX_ASPECT}:1"
        )
    return ratio


def size_for_aspect(ratio: float, area: int, multiple: int) -> Size:
    """The size with sides that are multiples of `multiple` that fits `ratio` and, half as important, `area` best."""
    ideal = math.sqrt(area * ratio)
    columns = range(max(1, math.floor(ideal * 0.75 / multiple)), math.ceil(ideal * 1.35 / multiple) + 1)
    sizes = [Size(n * multiple, max(1, round(n / ratio)) * multiple) for n in columns]

    def misfit(size: Size) -> float:
        return abs(math.log(size.width / size.height / ratio)) + 0.5 * abs(math.log(size.area / area))

    return min(sizes, key=misfit)
