"""Pictures as clients send and get them."""

from __future__ import annotations

import base64
import io
from typing import Any

from PIL import Image, ImageChops, ImageStat


def bytes_of(answer: Any, index: int = 0) -> bytes:
    return base64.b64decode(answer.data[index].b64_json)


def opened(file: bytes) -> Image.Image:
    with Image.open(io.BytesIO(file)) as image:
        image.load()
        return image


def difference(one: bytes | Image.Image, other: bytes | Image.Image) -> float:
    """The mean over pixels and channels, 0 to 255."""
    first, second = ((opened(each) if isinstance(each, bytes) else each).convert("RGB") for each in (one, other))
    mean = ImageStat.Stat(ImageChops.difference(first, second)).mean
    return sum(mean) / len(mean)


def png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def data_url(file: bytes) -> str:
    return f"data:image/png;base64,{base64.b64encode(file).decode()}"
