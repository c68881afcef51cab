"""A picture from outside, made harmless before it is kept: told by its first bytes, measured before it is decoded,
upright, in sRGB, and with nothing in it but pixels.

`clean` decodes every picture, so that what is kept is known to be one. An upright JPEG keeps its compressed data and
loses all else, and so does a plain PNG; every other picture becomes a PNG, which loses nothing of its pixels,
transparency included. Either way what is hidden in or behind the file (EXIF with its places, XMP, comments, a second
file) is gone.

All of it is blocking: call it in a thread.
"""

from __future__ import annotations

import io
import re
import struct
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

from PIL import ExifTags, Image, ImageCms, ImageOps

from kleinbild.core.errors import PictureError
from kleinbild.core.sizes import Size
from kleinbild.safety import png

PictureFormat = Literal["PNG", "JPEG", "WEBP", "GIF"]

_MAGIC: tuple[tuple[re.Pattern[bytes], PictureFormat], ...] = (
    (re.compile(rb"\x89PNG\r\n\x1a\n"), "PNG"),
    (re.compile(rb"\xff\xd8\xff"), "JPEG"),
    (re.compile(rb"RIFF....WEBPVP8[ LX]", re.DOTALL), "WEBP"),
    (re.compile(rb"GIF8[79]a"), "GIF"),
)
_GIVE_OTHER = "give a PNG, JPEG, WebP or GIF file"
_BROKEN = (OSError, SyntaxError, ValueError, TypeError, RuntimeError, EOFError, IndexError, KeyError, struct.error)
"""What Pillow's decoders raise for damaged files."""
_one_at_a_time = threading.Lock()

_MARKER = re.compile(rb"\xff([^\x00\xff\xd0-\xd7])", re.DOTALL)
"""The next marker in a JPEG's entropy-coded data: not a stuffed byte, a fill byte or a restart."""
_END, _SCAN = 0xD9, 0xDA
_KEPT_SEGMENTS = range(0xC0, 0xE0)
"""Tables, frames and scans."""
_KEPT_APPLICATIONS = re.compile(rb"\xff\xe0\0\x10JFIF\0.{9}|\xff\xee\0\x0eAdobe.{7}", re.DOTALL)
"""Pixel density, and how colours are coded; without a thumbnail or anything else."""


@dataclass(frozen=True)
class PictureLimits:
    max_bytes: int = 50 * 10**6
    max_pixels: int = 50 * 10**6


def sniff(file: bytes, name: str = "the picture") -> PictureFormat:
    """What a file is by its first bytes, whatever it is called. Raises PictureError for anything but our formats."""
    for magic, format_ in _MAGIC:
        if magic.match(file):
            return format_
    raise PictureError(f"{name} is {'empty' if not file else 'no picture that is taken'}", _GIVE_OTHER)


def clean(file: bytes, name: str = "the picture", limits: PictureLimits = PictureLimits()) -> bytes:
    """The same picture as a JPEG or PNG without anything else. Raises PictureError, calling it `name`."""
    if len(file) <= limits.max_bytes and (bare := png.bare(file, limits.max_pixels)) is not None:
        return bare
    with _decoded(file, name, limits) as image:
        if image.format == "JPEG" and not _needs_change(image):
            return _bare_jpeg(file)
        return _png(_in_srgb(ImageOps.exif_transpose(image)))


def measure(file: bytes, name: str = "the picture", limits: PictureLimits = PictureLimits()) -> Size:
    """Its width and height. It is read to its end, so that a file cut short is seen: a PNG by its checksums, which takes a
    twentieth of the time and waits for no other picture, any other by decoding it. Raises PictureError, as `clean`."""
    if png.is_png(file) and len(file) <= limits.max_bytes:
        try:
            size = png.measured(file)
        except png.DamagedError as error:
            raise PictureError(f"{name} is damaged or cut short", "export it again") from error
        _check_pixels(size.area, name, limits)
        return size
    with _opened(file, name, limits) as image:
        image.load()
        return Size(image.width, image.height)


def size_of(file: bytes) -> Size:
    """What its header says, of a picture that has been checked: nothing is decoded. Raises OSError for what is none."""
    if png.is_png(file):
        return png.size_of(file)
    with Image.open(io.BytesIO(file)) as image:
        return Size(image.width, image.height)


@contextmanager
def _decoded(file: bytes, name: str, limits: PictureLimits) -> Iterator[Image.Image]:
    """The whole picture. What a decoder raises, here or inside the `with`, becomes a PictureError."""
    with _opened(file, name, limits) as image:
        image.load()
        yield image


@contextmanager
def _opened(file: bytes, name: str, limits: PictureLimits) -> Iterator[Image.Image]:
    """Its header, within the limits."""
    if len(file) > limits.max_bytes:
        raise PictureError(f"{name} has {len(file) / 1e6:.0f} MB", f"give at most {limits.max_bytes / 1e6:g} MB")
    format_ = sniff(file, name)
    try:
        with _quietly(), Image.open(io.BytesIO(file), formats=(format_,)) as image:
            _check_pixels(image.width * image.height, name, limits)
            yield image
    except PictureError:
        raise
    except Image.DecompressionBombError as error:
        raise _too_many_pixels(name, limits) from error
    except _BROKEN as error:
        raise PictureError(f"{name} is damaged or cut short", "export it again") from error


@contextmanager
def _quietly() -> Iterator[None]:
    """Without Pillow's warnings, whose filters are the whole process's; hence one picture at a time, which also bounds
    the memory that decoded pictures take."""
    with _one_at_a_time, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _check_pixels(num_pixels: int, name: str, limits: PictureLimits) -> None:
    """From the header: nothing is decoded yet."""
    if num_pixels > limits.max_pixels:
        raise _too_many_pixels(name, limits)


def _too_many_pixels(name: str, limits: PictureLimits) -> PictureError:
    allowed = f"{limits.max_pixels / 1e6:g} megapixels"
    return PictureError(f"{name} has more than {allowed}", f"shrink it to {allowed}")


def _needs_change(image: Image.Image) -> bool:
    turned = image.getexif().get(ExifTags.Base.Orientation) in range(2, 9)
    return turned or image.mode == "CMYK" or _profile(image) is not None


def _profile(image: Image.Image) -> ImageCms.ImageCmsProfile | None:
    """The colour profile to convert from: None without one, for a damaged one, and for sRGB."""
    data = image.info.get("icc_profile")
    if not data or image.mode not in {"RGB", "RGBA", "CMYK"}:
        return None
    try:
        profile = ImageCms.ImageCmsProfile(io.BytesIO(data))
        return None if "srgb" in ImageCms.getProfileDescription(profile).lower() else profile
    except (ImageCms.PyCMSError, OSError):
        return None


def _in_srgb(image: Image.Image) -> Image.Image:
    profile = _profile(image)
    if profile is None:
        return image if image.mode not in {"CMYK", "RGBX"} else image.convert("RGB")
    alpha = image.getchannel("A") if image.mode == "RGBA" else None
    colours = image.convert("RGB") if alpha else image
    try:
        srgb = ImageCms.profileToProfile(colours, profile, ImageCms.createProfile("sRGB"), outputMode="RGB")
    except ImageCms.PyCMSError:  # a profile of other colours than the picture's
        srgb = colours.convert("RGB")
    assert srgb is not None  # it is, unless converted in place
    if alpha:
        srgb.putalpha(alpha)
    return srgb


def _png(image: Image.Image) -> bytes:
    image.info = {key: image.info[key] for key in ("transparency",) if key in image.info}
    out = io.BytesIO()
    image.save(out, "PNG", compress_level=1)  # it is read once more, by the engine
    return out.getvalue()


def _bare_jpeg(file: bytes) -> bytes:
    """A decodable JPEG up to its end marker, without comments and applications' segments."""
    kept = [file[:2]]
    position = 2
    while (marker := _MARKER.search(file, position)) is not None:
        code = marker[1][0]
        if code == _END:
            return b"".join([*kept, b"\xff\xd9"])
        start = marker.start()
        end = start + 2 + struct.unpack_from(">H", file, start + 2)[0]
        if code == _SCAN:
            end = _scan_end(file, end)
        if code in _KEPT_SEGMENTS or _KEPT_APPLICATIONS.fullmatch(file, start, end):
            kept.append(file[start:end])
        position = end
    raise ValueError("no end marker")


def _scan_end(file: bytes, start: int) -> int:
    following = _MARKER.search(file, start)
    return following.start() if following else len(file)
