"""Pictures of any size through a model that makes multiples of 16: the input is framed, what is made of it unframed.

An input whose sides the model does not make is padded at the right and the bottom by repeating its edge, and what was
made from it is cut back: nothing is shifted or resampled. One beyond the model's limits is scaled to the area at which
the model is at its best, and what was made from it is scaled back.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from PIL import Image

from kleinbild.core.sizes import Size, SizeRange
from kleinbild.engine.references import MAX_REFERENCE_PIXELS, check_shape


@dataclass(frozen=True, slots=True)
class Frame:
    """What the model makes for a picture of `size`: `made`, of which `content`, from the left top, is the picture."""

    size: Size
    content: Size
    made: Size

    @classmethod
    def plain(cls, size: Size) -> Frame:
        """The frame of a size that the model makes."""
        return cls(size, size, size)

    @property
    def is_plain(self) -> bool:
        """Whether the picture is what the model makes, as it is."""
        return self.size == self.content == self.made

    @property
    def scales(self) -> bool:
        return self.size != self.content

    def into(self, image: Image.Image) -> Image.Image:
        """A picture of `size` as the model takes it, of size `made`."""
        if self.scales:
            image = image.resize((self.content.width, self.content.height), Image.Resampling.LANCZOS)
        return extend(image, self.made)

    def out_of(self, made: Image.Image) -> Image.Image:
        """The picture of `size` out of what the model made."""
        if not self.is_plain:
            made = made.crop((0, 0, self.content.width, self.content.height))
        if self.scales:
            made = made.resize((self.size.width, self.size.height), Image.Resampling.LANCZOS)
        return made


def frame_for(size: Size, name: str, sizes: SizeRange, best_area: int) -> Frame:
    """The frame of an input of any `size`: as it is if the model takes that, else scaled to about `best_area` pixels.

    Raises PictureError, which calls the input `name`, if it is too narrow.
    """
    check_shape(size, name, sizes)
    longest, shortest = max(size.width, size.height), min(size.width, size.height)
    scale = 1.0
    if not sizes.contains(size) or size.area > MAX_REFERENCE_PIXELS:
        scale = min(math.sqrt(best_area / size.area), sizes.max_side / longest)
        scale = max(scale, sizes.min_side / shortest)
    content = _scaled(size, scale, sizes)
    while not sizes.allows(made := sizes.padded(content)):  # the padding may be what is too much
        scale -= 1 / longest
        content = _scaled(size, scale, sizes)
    return Frame(size, content, made)


def extend(image: Image.Image, size: Size, left: int = 0, top: int = 0) -> Image.Image:
    """`image` at `left`, `top` on a ground of `size`, which repeats the image's edge."""
    if image.size == (size.width, size.height):
        return image
    right, bottom = size.width - left - image.width, size.height - top - image.height
    pixels_HWC = np.pad(np.asarray(image), ((top, bottom), (left, right), (0, 0)), mode="edge")
    return Image.fromarray(pixels_HWC)


def _scaled(size: Size, scale: float, sizes: SizeRange) -> Size:
    """Whole numbers of pixels, each side at least the least that the model makes."""
    return Size(*(max(round(side * scale), sizes.min_side) for side in (size.width, size.height)))
