"""Pictures given with -i: files, or `-` for one on stdin. And the mask, a file."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from kleinbild.core.errors import PictureError
from kleinbild.engine.files import MAX_FILE_BYTES, read_file

STDIN = "-"


def read_references(names: Sequence[str]) -> tuple[tuple[bytes, ...], tuple[str, ...]]:
    """The files and their names, in order. Raises PictureError for one that cannot be read."""
    if list(names).count(STDIN) > 1:
        raise PictureError("-i - was given twice; stdin holds one picture", "give the other one as a file")
    files = tuple(_stdin() if name == STDIN else read_file(Path(name).expanduser()) for name in names)
    return files, tuple("" if name == STDIN else Path(name).name for name in names)


def read_mask(path: Path) -> bytes:
    """The mask's file. Raises PictureError if it cannot be read."""
    return read_file(path.expanduser())


def _stdin() -> bytes:
    if sys.stdin is None or sys.stdin.isatty():
        raise PictureError(
            "-i - reads a picture from stdin, but nothing is sent to it", "for example: kleinbild edit … -i - < cat.png"
        )
    file = sys.stdin.buffer.read(MAX_FILE_BYTES + 1)
    if len(file) > MAX_FILE_BYTES:
        raise PictureError(f"the picture on stdin is larger than {MAX_FILE_BYTES // 2**20} MiB", "give a smaller one")
    return file
