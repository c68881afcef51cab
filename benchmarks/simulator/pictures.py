"""Pictures of any size, drawn once for each size and format: a disc on a plain ground, which packs small and decodes."""

from __future__ import annotations

import base64
import io
from functools import cache

from PIL import Image, ImageDraw

GROUND, DISC = (189, 236, 214), (214, 92, 61)
BLACK = (0, 0, 0)


@cache
def picture(width: int, height: int, kind: str = "png", *, black: bool = False) -> bytes:
    """`kind` is png, jpeg (or jpg) or webp; `black` is what some services give out for what they hold back."""
    image = Image.new("RGB", (width, height), BLACK if black else GROUND)
    if not black:
        ImageDraw.Draw(image).ellipse((width // 4, height // 4, width * 3 // 4, height * 3 // 4), fill=DISC)
    file = io.BytesIO()
    image.save(file, "JPEG" if kind == "jpg" else kind.upper())
    return file.getvalue()


@cache
def as_text(width: int, height: int, kind: str = "png", *, black: bool = False) -> str:
    return base64.b64encode(picture(width, height, kind, black=black)).decode()
