"""A picture from a server: the file as it came, and what the server says of it."""

from __future__ import annotations

import builtins
import io
import os
from dataclasses import dataclass, field
from decimal import Decimal
from functools import cached_property
from pathlib import Path
from typing import Any

from PIL import Image, UnidentifiedImageError

from kleinbild.core.errors import OutputError, PictureError
from kleinbild.core.formats import PictureFormat
from kleinbild.core.metadata import Record
from kleinbild.core.sizes import Size
from kleinbild.engine.files import write_file
from kleinbild.engine.picture import Picture, format_for, read_record


@dataclass(frozen=True)  # no slots: `record` is kept once read
class RemotePicture:
    """`bytes` are the file in `format`, with the record inside. `url` serves it for a while; it is signed.

    `usage` (OpenAI's tokens) and `timings` (seconds by stage) are those of the whole job `job_id`, of which this may be
    one picture of several. `warnings` say what is not quite as it was asked for. `cost` is what the job cost, in US
    dollars, and `deployments` are where it was made; None and empty where the server does not say.
    """

    bytes: builtins.bytes = field(repr=False)
    format: PictureFormat
    seed: int | None
    size: Size | None
    url: str = field(default="", repr=False)
    job_id: str = ""
    usage: dict[str, Any] | None = None
    timings: dict[str, float] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()
    cost: Decimal | None = None
    deployments: tuple[str, ...] = ()

    @cached_property
    def record(self) -> Record:
        """How it was made. Raises PictureError if the file does not say."""
        return read_record(self.bytes)

    def pil(self) -> Image.Image:
        """The pixels, as a new Pillow image."""
        try:
            image = Image.open(io.BytesIO(self.bytes), formats=("PNG", "JPEG", "WEBP"))
            image.load()
        except (UnidentifiedImageError, OSError, SyntaxError, ValueError) as error:
            raise PictureError(f"the server's picture cannot be read: {error}", "fetch it again") from error
        return image

    def save(self, path: str | os.PathLike[str], format: PictureFormat | None = None) -> Path:  # noqa: A002 - as Pillow names it
        """Writes the file, whole or not at all, and gives the path back; the suffix says the format if `format` does not.

        In the format that it came in it is written as it is; another is made of it, the record included. Raises
        OutputError where it cannot be written.
        """
        target = Path(path)
        wanted = format_for(target, format)
        write_file(target, self.bytes if wanted == self.format else self._converted(wanted))
        return target

    def to_picture(self) -> Picture:
        """The same as `kleinbild.generate` gives it. Raises PictureError if the file holds no record."""
        return Picture(self.pil().convert("RGB"), self.record, self.timings, self.warnings)

    def _converted(self, wanted: PictureFormat) -> builtins.bytes:
        try:
            return self.to_picture().to_bytes(wanted)
        except PictureError as error:
            raise OutputError(
                f"a {self.format} without a record does not become a {wanted}",
                f"save it as {self.format}, or ask for output_format={wanted!r}",
            ) from error

    def _repr_png_(self) -> builtins.bytes:
        """What notebooks show."""
        if self.format == "png":
            return self.bytes
        buffer = io.BytesIO()
        self.pil().save(buffer, "PNG")
        return buffer.getvalue()
