"""Pictures as services deliver them."""

from __future__ import annotations

import base64
import io

from PIL import Image


def picture(format_: str = "PNG", size: tuple[int, int] = (32, 24), mode: str = "RGB", colour: str = "orange") -> bytes:
    buffer = io.BytesIO()
    Image.new(mode, size, colour).save(buffer, format_)
    return buffer.getvalue()


def noise(format_: str = "JPEG", size: tuple[int, int] = (96, 96)) -> bytes:
    """With so much in it that half of the file is half of the picture."""
    buffer = io.BytesIO()
    Image.effect_noise(size, 90).convert("RGB").save(buffer, format_)
    return buffer.getvalue()


def in_base64(file: bytes) -> str:
    return base64.b64encode(file).decode()
