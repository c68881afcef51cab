"""The finished picture: pixels, how they were made, and saving both in one file. No torch here.

The record goes where each format keeps text: PNG an international text chunk named `kleinbild`, JPEG and WebP the EXIF
user comment.
"""

from __future__ import annotations

import io
import os
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

from PIL import Image, ImageOps, UnidentifiedImageError
from PIL.PngImagePlugin import PngInfo

from kleinbild.core.errors import OutputError, PictureError
from kleinbild.core.formats import PictureFormat
from kleinbild.core.metadata import Record
from kleinbild.core.tokens import NO_TOKENS, Tokens
from kleinbild.engine.files import write_file

SUFFIXES: dict[str, PictureFormat] = {".png": "png", ".jpg": "jpeg", ".jpeg": "jpeg", ".webp": "webp"}
PNG_KEY = "kleinbild"
JPEG_QUALITY = 95

_EXIF_IFD = 0x8769
_USER_COMMENT = 0x9286
_ASCII = b"ASCII\0\0\0"  # EXIF's mark of a comment's character code
_MAX_JPEG_EXIF = 65_533 - 6  # a JPEG segment's length, less "Exif\0\0"


@dataclass(frozen=True, slots=True)
class Picture:
    """One picture. `pil` is RGB; `timings` are seconds by stage (`text`, `references`, `denoise`, `decode`, `finish`).

    Pictures made in one pass share the timings of the pass. `notes` say where it is not quite what was asked for: a
    size that was rounded, an input that was scaled. `tokens` is what it took of the model.
    """

    pil: Image.Image
    record: Record
    timings: dict[str, float]
    notes: tuple[str, ...] = ()
    tokens: Tokens = NO_TOKENS

    @property
    def seed(self) -> int:
        return self.record.seed

    def save(self, path: str | os.PathLike[str], format: PictureFormat | None = None) -> Path:  # noqa: A002 - as Pillow names it
        """Writes the picture with its record and gives the path back; the suffix says the format if `format` is None.

        Raises OutputError where it cannot be written; then nothing is left behind and an older file stays as it was.
        """
        target = Path(path)
        write_file(target, self.to_bytes(format_for(target, format)))
        return target

    def to_bytes(self, format: PictureFormat = "png", quality: int | None = None) -> bytes:  # noqa: A002
        """The encoded file with the record in it.

        `quality`, 0 to 100, is for JPEG (None: 95) and WebP (None: every pixel is kept, as in a PNG).
        """
        buffer = io.BytesIO()
        if format == "png":
            chunks = PngInfo()
            chunks.add_itxt(PNG_KEY, self.record.to_json())
            self.pil.save(buffer, "PNG", pnginfo=chunks)
        elif format == "webp":
            how = {"lossless": True} if quality is None else {"quality": quality}
            self.pil.save(buffer, "WEBP", exif=self._exif(), **how)
        elif format == "jpeg":
            exif = self._exif()
            if len(exif) > _MAX_JPEG_EXIF:
                raise OutputError("the prompt is too long for the record inside a JPEG", "save as png or webp")
            self.pil.save(
                buffer, "JPEG", quality=JPEG_QUALITY if quality is None else quality, subsampling=0, exif=exif
            )
        else:
            raise OutputError(f"unknown format {format!r}", f"use one of {', '.join(get_args(PictureFormat))}")
        return buffer.getvalue()

    def _exif(self) -> bytes:
        exif = Image.Exif()
        exif.get_ifd(_EXIF_IFD)[_USER_COMMENT] = _ASCII + self.record.to_json().encode("ascii")
        return exif.tobytes()

    def _repr_png_(self) -> bytes:
        """What notebooks show."""
        return self.to_bytes("png")


def format_for(path: Path, asked: PictureFormat | None) -> PictureFormat:
    """The format to write `path` in: `asked`, or what the suffix says. Raises OutputError if they contradict."""
    by_suffix = SUFFIXES.get(path.suffix.lower())
    if asked is None:
        if by_suffix is None:
            what = f"unknown suffix {path.suffix!r}" if path.suffix else "no suffix that says the format"
            raise OutputError(f"{path}: {what}", f"use one of {', '.join(SUFFIXES)}, or name the format")
        return by_suffix
    if by_suffix is not None and by_suffix != asked:
        raise OutputError(f"{path}: the suffix says {by_suffix}, the format says {asked}", "make them agree")
    return asked


def read_record(source: str | os.PathLike[str] | bytes) -> Record:
    """The record inside a PNG, JPEG or WebP file, given as a path or its bytes. Raises PictureError if there is none."""
    name = "the picture" if isinstance(source, bytes) else str(Path(source))
    try:
        file = io.BytesIO(source) if isinstance(source, bytes) else source
        with Image.open(file, formats=("PNG", "JPEG", "WEBP")) as image:
            text = _record_text(image)
    except FileNotFoundError as error:
        raise PictureError(f"no such file: {name}", "check the path") from error
    except UnidentifiedImageError as error:
        raise PictureError(f"{name} is not a PNG, JPEG or WebP picture", "give a file that Kleinbild wrote") from error
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise PictureError(f"{name} cannot be read: {error}", "give a file that Kleinbild wrote") from error
    if text is None:
        raise PictureError(
            f"{name} holds no record of how it was made",
            "only pictures that Kleinbild wrote have one; some programs remove it when they save or send a picture",
        )
    try:
        return Record.from_json(text)
    except ValueError as error:
        raise PictureError(f"{name}: {error}", "it may be from another version of Kleinbild") from error


def png_file(image: Image.Image) -> bytes:
    """A Pillow image, upright, as a file that keeps every pixel; what PNG cannot hold becomes RGB."""
    upright = ImageOps.exif_transpose(image)
    if upright.mode not in ("1", "L", "LA", "P", "RGB", "RGBA", "I;16"):
        upright = upright.convert("RGB")
    buffer = io.BytesIO()
    upright.save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()


def _record_text(image: Image.Image) -> str | None:
    if image.format == "PNG":
        text = image.info.get(PNG_KEY)
        return text if isinstance(text, str) else None
    comment = image.getexif().get_ifd(_EXIF_IFD).get(_USER_COMMENT)
    if isinstance(comment, bytes) and comment.startswith(_ASCII + b"{"):
        return comment.removeprefix(_ASCII).decode("ascii", "replace")
    return None
