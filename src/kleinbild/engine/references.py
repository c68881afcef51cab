"""Reference pictures: a file's bytes to an RGB picture of a size that the model takes. No torch here.

Opening honours EXIF orientation, puts transparent pictures on white, scales 16-bit grey to 8, takes the first frame of
an animation, and checks the size in the header before any pixel is decoded. Fitting is what diffusers' pipeline does:
shrink to the largest area (Lanczos), then cut the sides to multiples of 16 around the centre. Two things are added:
sides that the model does not know are shrunk too, and small pictures are enlarged to the least side. (A reference
whose size the result shall have is framed instead: `kleinbild.engine.framing`.)
"""

from __future__ import annotations

import io
import math
import struct
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from kleinbild.core.errors import PictureError
from kleinbild.core.sizes import MAX_ASPECT, Size, SizeRange

MAX_DECODED_PIXELS = 50_000_000
"""More than a 50-megapixel camera makes is refused before it is decoded: 150 MB in memory."""
MAX_REFERENCE_PIXELS = 1024 * 1024
"""What a reference is shrunk to, as the family was trained."""
MIN_SIDE = 8
"""Pictures with a shorter side are no pictures of anything; up to the model's least side they are enlarged."""

FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "AVIF")
"""Pure decoders, none of which runs a program. MPO, what some phones write, is opened as the JPEG that it begins with."""

_GIVE_OTHER = "give a PNG, JPEG, WebP, GIF, BMP, TIFF or AVIF file"
_BROKEN = (OSError, SyntaxError, ValueError, TypeError, RuntimeError, EOFError, IndexError, struct.error)
"""What Pillow's decoders raise for damaged files, as found with hundreds of thousands of them."""
_warnings_lock = threading.Lock()


def prepare_reference(file: bytes, name: str, sizes: SizeRange) -> Image.Image:
    """An encoded picture to RGB in a size from `sizes`. `name` is what errors call it."""
    return fit(open_picture(file, name), name, sizes)


def open_picture(file: bytes, name: str = "the picture") -> Image.Image:
    """An encoded picture to upright RGB on white, first frame. Raises PictureError in words."""
    return _open(file, name, _to_rgb)


def open_alpha(file: bytes, name: str = "the mask") -> Image.Image:
    """The transparency of an encoded picture, upright: 0 transparent, 255 opaque. Raises PictureError if it has none."""
    return _open(file, name, _to_alpha)


def _open(file: bytes, name: str, convert: Callable[[Image.Image, str], Image.Image]) -> Image.Image:
    if not file:
        raise PictureError(f"{name} is empty", _GIVE_OTHER)
    try:
        with _without_warnings(), Image.open(io.BytesIO(file), formats=FORMATS) as image:
            _check_header(image, name)
            return convert(ImageOps.exif_transpose(image), name)
    except PictureError:
        raise
    except UnidentifiedImageError as error:
        raise PictureError(f"{name} is not a picture in a known format", _GIVE_OTHER) from error
    except Image.DecompressionBombError as error:
        raise PictureError(
            f"{name} has too many pixels", f"shrink it to {MAX_DECODED_PIXELS / 1e6:.0f} megapixels"
        ) from error
    except _BROKEN as error:
        raise PictureError(f"{name} is damaged or cut short: {error}", "fetch or export it again") from error


def fit(image: Image.Image, name: str, sizes: SizeRange) -> Image.Image:
    """An RGB picture to a size from `sizes`, at most 1024² pixels. Raises PictureError if it is too narrow."""
    size = Size(*image.size)
    check_shape(size, name, sizes)
    scaled = _scaled(size, sizes)
    if scaled != size:
        image = image.resize((scaled.width, scaled.height), Image.Resampling.LANCZOS)
    return _crop_to_multiples(image, sizes.multiple)


def fitted(size: Size, sizes: SizeRange) -> Size:
    """The size that `fit` makes of a picture of `size`."""
    scaled = _scaled(size, sizes)
    return Size(*(side // sizes.multiple * sizes.multiple for side in (scaled.width, scaled.height)))


def _scaled(size: Size, sizes: SizeRange) -> Size:
    longest, shortest = max(size.width, size.height), min(size.width, size.height)
    area = min(MAX_REFERENCE_PIXELS, sizes.max_pixels)
    scale = min(1.0, math.sqrt(area / size.area), sizes.max_side / longest)
    if shortest < sizes.min_side:
        scale = sizes.min_side / shortest
    if scale == 1.0:
        return size
    return Size(*(max(int(side * scale), sizes.min_side) for side in (size.width, size.height)))


def check_shape(size: Size, name: str, sizes: SizeRange) -> None:
    """Raises PictureError for a picture that is too narrow for the model, at any scale."""
    max_aspect = min(MAX_ASPECT, sizes.max_side / sizes.min_side)
    if max(size.width, size.height) > max_aspect * min(size.width, size.height):
        raise PictureError(
            f"{name} is {size}: longer than {max_aspect:g} times its width is more than the model takes",
            "crop it, or extend its shorter sides",
        )


@contextmanager
def _without_warnings() -> Iterator[None]:
    """Pillow warns of large and of odd files on standard error; what is wrong with one is an error of ours, in words."""
    with _warnings_lock, warnings.catch_warnings():  # the lock: filters are the whole process's
        warnings.simplefilter("ignore")
        yield


def _check_header(image: Image.Image, name: str) -> None:
    width, height = image.size
    if width * height > MAX_DECODED_PIXELS:
        raise PictureError(
            f"{name} is {width}x{height}, {width * height / 1e6:.0f} megapixels",
            f"shrink it to {MAX_DECODED_PIXELS / 1e6:.0f} megapixels",
        )
    if min(width, height) < MIN_SIDE:
        raise PictureError(
            f"{name} is {width}x{height}: too small to show anything", f"give one of at least {MIN_SIDE} pixels a side"
        )


def _to_rgb(image: Image.Image, name: str) -> Image.Image:
    if image.mode.startswith("I"):
        return _from_16_bit(image, name)
    if image.mode == "F":
        raise PictureError(f"{name} has floating-point pixels without a known range", "export it with 8 or 16 bits")
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba).convert("RGB")
    return image.convert("RGB")


def _to_alpha(image: Image.Image, name: str) -> Image.Image:
    if not image.has_transparency_data:
        raise PictureError(
            f"{name} has no transparency (it is {image.mode}): it does not say what to edit",
            "save it as a PNG with an alpha channel, transparent where the picture shall change",
        )
    return image.convert("RGBA").getchannel("A")


def _from_16_bit(image: Image.Image, name: str) -> Image.Image:
    """Grey of 16 bits to 8; Pillow's own conversion would clip it. (16-bit colour arrives with 8 already.)"""
    grey = np.asarray(image).astype(np.int64)
    if grey.min() < 0 or grey.max() > 65_535:
        raise PictureError(f"{name} has 32-bit pixels without a known range", "export it with 8 or 16 bits")
    return Image.fromarray(((grey + 128) // 257).astype(np.uint8)).convert("RGB")


def _crop_to_multiples(image: Image.Image, multiple: int) -> Image.Image:
    width, height = (side // multiple * multiple for side in image.size)
    if (width, height) == image.size:
        return image
    left, top = (image.width - width) // 2, (image.height - height) // 2
    return image.crop((left, top, left + width, top + height))
