"""Pictures as a service delivered them: believed only when every one that was asked for is there and decodes to its end.

What fails here was made and most likely billed, so that the error is of work that was accepted; `billed` None says that
nobody knows.
"""

from __future__ import annotations

import asyncio
import binascii
import io
from collections.abc import Sequence
from functools import partial

import pybase64
from PIL import Image

from kleinbild.core.errors import PictureError
from kleinbild.core.sizes import Size
from kleinbild.core.threads import MANY_BYTES, on_bytes
from kleinbild.providers.hosted import Fetched, ProviderError
from kleinbild.safety.pictures import measure, size_of, sniff
from kleinbild.safety.png import is_png


async def checked(
    files: Sequence[bytes], count: int | None = None, seeds: Sequence[int | None] = ()
) -> tuple[Fetched, ...]:
    """`files` as pictures, exactly `count` if that is given and at least one, with `seeds` as far as there are any.
    Raises ProviderError."""
    if not files or (count is not None and len(files) != count):
        raise bad_answer("the service did not give the pictures that were asked for", f"{len(files)} of {count or 1}")
    try:
        for file in files:  # a decoder's turn may be long in coming, whatever the file's size
            await on_bytes(len(file) if is_png(file) else MANY_BYTES, partial(measure, file))
    except PictureError as error:
        raise bad_answer("the service gave what is no picture", error.message) from error
    told = [*seeds, *[None] * len(files)]
    return tuple(Fetched(file, seed) for file, seed in zip(files, told, strict=False))


def size_notes(pictures: Sequence[Fetched], asked: Size | None) -> tuple[str, ...]:
    """A note of each size that a service made instead of the one asked for."""
    if asked is None:
        return ()
    sizes = [size_of(picture.file) for picture in pictures]
    return tuple(f"the service made {size}, not {asked}" for size in dict.fromkeys(sizes) if size != asked)


async def preview(file: bytes) -> bytes | None:
    """A preview as PNG; None if it is no picture, which is no reason to lose the picture that comes after it."""
    try:
        return await asyncio.to_thread(_as_png, file)
    except PictureError:
        return None


async def decoded(text: object) -> bytes:
    """`from_base64` of what may be long."""
    return await on_bytes(len(text) if isinstance(text, str) else 0, lambda: from_base64(text))


def from_base64(text: object) -> bytes:
    """The file in base64, with or without `data:…;base64,` before it. Raises ProviderError."""
    if not isinstance(text, str) or not text:
        raise bad_answer("the service's answer holds no picture")
    head, comma, _ = text[:100].partition(",")
    bare = text[len(head) + 1 :] if comma and head.startswith("data:") else text
    try:
        return pybase64.b64decode(bare, validate=True)
    except (binascii.Error, ValueError) as error:
        raise bad_answer("the service's answer holds no picture", "the base64 is damaged") from error


def bad_answer(message: str, detail: str = "", *, billed: bool | None = None) -> ProviderError:
    """Of work that was taken on, and whose result cannot be used."""
    return ProviderError(message, cause="bad_answer", acceptance="accepted", billed=billed, detail=detail)


def _as_png(file: bytes) -> bytes:
    measure(file)
    if sniff(file) == "PNG":
        return file
    out = io.BytesIO()
    with Image.open(io.BytesIO(file)) as image:
        image.convert("RGBA" if image.has_transparency_data else "RGB").save(out, "PNG", compress_level=1)
    return out.getvalue()
