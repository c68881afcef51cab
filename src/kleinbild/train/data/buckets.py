"""Which size each picture is learned at: its own shape at one of several areas, on the model's grid of tokens.

Sizes don't bind batches (examples of any sizes share a pass), so there is a bucket for each shape, and little is cropped.
Nothing is enlarged beyond a factor: where an area is too large for a picture, it is learned at smaller ones only.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from PIL import Image

from kleinbild.core.errors import MaskError, RequestError
from kleinbild.core.sizes import Size, SizeRange, size_for_aspect
from kleinbild.engine.references import MAX_REFERENCE_PIXELS, check_shape, fit
from kleinbild.train.data.examples import Example
from kleinbild.train.data.folders import counted, named
from kleinbild.train.data.pictures import Seen

MAX_ASPECT_DIFFERENCE = 1.02

ReferenceFit = Literal["target", "free"]
"""`target`: on the very grid of what is made from it, for edits. `free`: in its own shape, for subjects and styles."""


@dataclass(frozen=True, slots=True)
class Framing:
    """How pictures meet the model. `sides`: a picture is learned at each of the areas side². `sizes` is the model's range.

    `max_upscale` is the largest factor by which a picture is enlarged, `reference_area` the most pixels of a free
    reference. `alpha_masks`: where a picture is opaque is its mask, if it has no other.
    """

    sizes: SizeRange
    sides: tuple[int, ...]
    references: ReferenceFit = "target"
    reference_area: int = MAX_REFERENCE_PIXELS
    max_upscale: float = 1.1
    alpha_masks: bool = False

    def __post_init__(self) -> None:
        if not self.sides:
            raise RequestError("no resolution was given", "give one, for example 512")
        for side in self.sides:
            if not self.sizes.min_side <= side <= self.sizes.max_side or side**2 > self.sizes.max_pixels:
                raise RequestError(
                    f"a resolution of {side} is beyond the model's range: {self.sizes}",
                    f"give one from {self.sizes.min_side} to {math.isqrt(self.sizes.max_pixels)}",
                )

    @property
    def free_sizes(self) -> SizeRange:
        return replace(self.sizes, max_pixels=min(self.sizes.max_pixels, self.reference_area))


@dataclass(frozen=True, slots=True)
class Placed:
    """A picture of `size` made `made`: its part `box` (left, top, right, bottom; around the centre), resampled."""

    size: Size
    made: Size
    box: tuple[float, float, float, float]

    @property
    def scale(self) -> float:
        return self.made.width / (self.box[2] - self.box[0])

    @property
    def lost(self) -> float:
        """The share of the picture that is cropped."""
        left, top, right, bottom = self.box
        return 1.0 - (right - left) * (bottom - top) / self.size.area

    def __call__(self, image: Image.Image) -> Image.Image:
        """The picture as the model takes it; the very same if it is that already."""
        if self.size == self.made:
            return image
        return image.resize((self.made.width, self.made.height), Image.Resampling.LANCZOS, box=self.box)


@dataclass(frozen=True, slots=True)
class View:
    """An example at one size. References that are `None` are fitted freely (`engine.references.fit`)."""

    example: Example
    target: Placed
    references: tuple[Placed | None, ...]


def views(
    examples: Iterable[Example], seen: Mapping[Path, Seen], framing: Framing
) -> tuple[tuple[View, ...], tuple[str, ...]]:
    """Every example at each of its sizes, and notes on what did not fit. Raises PictureError for pictures too narrow."""
    found: list[View] = []
    enlarged, smaller = [], []
    for example in examples:
        size = seen[example.target].size
        check_shape(size, example.name, framing.sizes)
        sides = usable_sides(size, framing)
        if len(sides) < len(framing.sides):
            smaller.append(example.name)
        for made in dict.fromkeys(bucket(size, side, framing.sizes) for side in sides):
            target = place(size, made)
            if target.scale > framing.max_upscale:
                enlarged.append(f"{example.name} ({target.scale:.1f} times)")
            found.append(View(example, target, _references(example, seen, target, framing)))
    return tuple(found), _notes(enlarged, smaller, found)


def usable_sides(size: Size, framing: Framing) -> tuple[int, ...]:
    """The areas at which a picture is not enlarged too much; the smallest, if it is at all."""
    sides = sorted(framing.sides)
    fits = [side for side in sides if place(size, bucket(size, side, framing.sizes)).scale <= framing.max_upscale]
    return tuple(fits or sides[:1])


def bucket(size: Size, side: int, sizes: SizeRange) -> Size:
    """The size on the model's grid with about the shape of `size` and the area side²."""
    best = size_for_aspect(size.width / size.height, side**2, sizes.multiple)
    return best if sizes.allows(best) else sizes.nearest(best)


def place(size: Size, made: Size) -> Placed:
    """The largest part of a picture, around its centre, that has the shape of `made`."""
    scale = max(made.width / size.width, made.height / size.height)
    width, height = min(made.width / scale, size.width), min(made.height / scale, size.height)
    left, top = (size.width - width) / 2, (size.height - height) / 2
    if scale == 1.0:  # whole pixels: nothing is resampled
        left, top = left // 1, top // 1
    return Placed(size, made, (left, top, left + width, top + height))


def fit_free(image: Image.Image, name: str, framing: Framing) -> Image.Image:
    """A reference in its own shape, as the engine fits those of requests."""
    return fit(image, name, framing.free_sizes)


def histogram(found: Sequence[View]) -> dict[str, int]:
    """How many views each size has, the most frequent first."""
    return dict(Counter(str(view.target.made) for view in found).most_common())


def _references(
    example: Example, seen: Mapping[Path, Seen], target: Placed, framing: Framing
) -> tuple[Placed | None, ...]:
    if framing.references == "free":
        for path in example.references:
            check_shape(seen[path].size, str(path), framing.sizes)
        return (None,) * len(example.references)
    return tuple(place(seen[path].size, target.made) for path in example.references)


def _notes(enlarged: list[str], smaller: list[str], found: list[View]) -> tuple[str, ...]:
    notes = []
    if enlarged:
        notes.append(f"{counted(len(enlarged), 'picture')} enlarged: {named(enlarged)}")
    if smaller:
        notes.append(f"{counted(len(smaller), 'picture')} too small for the largest area: {named(smaller)}")
    if cropped := [f"{view.example.name} ({view.target.lost:.0%})" for view in found if view.target.lost > 0.05]:
        notes.append(f"more than 5% cropped of {counted(len(cropped), 'picture')}: {named(cropped)}")
    return tuple(notes)


def aspects_differ(one: Seen, other: Seen) -> bool:
    """Whether two pictures have other shapes, rounding aside."""
    ratio = one.width / one.height * other.height / other.width
    return max(ratio, 1 / ratio) > MAX_ASPECT_DIFFERENCE


def check_mask(mask: Seen, target: Seen, name: str) -> None:
    """Raises MaskError for a mask of another shape than its picture's."""
    if aspects_differ(mask, target):
        raise MaskError(f"the mask of {name} is {mask.size}, its picture {target.size}", "make both of one shape")
