"""Where pictures go. The place is checked before anything is computed, and pictures are written whole or not at all."""

from __future__ import annotations

import os
import sys
import tempfile
import unicodedata
from dataclasses import dataclass
from pathlib import Path
from typing import cast, get_args

from kleinbild.cli.terminal import result_bytes
from kleinbild.cli.wishes import Wishes
from kleinbild.core.errors import OutputError, RequestError
from kleinbild.core.formats import PictureFormat
from kleinbild.engine.picture import Picture, format_for

MAX_NAME = 50  # letters of the prompt in a file name: with four bytes each it still fits a file system
STDOUT = "-"


@dataclass(frozen=True, slots=True)
class Destination:
    """Where the pictures of one command go: to stdout, to `file`, or under names of our own into `folder`."""

    format: PictureFormat
    folder: Path
    file: Path | None = None
    to_stdout: bool = False
    count: int = 1

    def write(self, picture: Picture, number: int) -> Path | None:
        """Writes picture `number` (from 1) and says where; None is stdout."""
        if self.to_stdout:
            result_bytes(picture.to_bytes(self.format))
            return None
        if self.file is None:
            self.folder.mkdir(exist_ok=True)
        return picture.save(self._path(picture, number), self.format)

    def _path(self, picture: Picture, number: int) -> Path:
        if self.file is None:
            return free_path(self.folder / f"{slug(picture.record.prompt)}-{picture.seed}{suffix(self.format)}")
        return self.file if self.count == 1 else self.file.with_stem(f"{self.file.stem}-{number}")


def plan(wishes: Wishes) -> Destination:
    """The destination that is wished for. Raises OutputError if it cannot be written."""
    output, asked, count = wishes.output, read_format(wishes.format), wishes.count
    if output == STDOUT:
        return _stdout(asked, count)
    if output == "":
        raise OutputError("-o is empty", "name a file or a folder")
    path = Path(output or ".").expanduser()
    is_folder = output is None or output.endswith(("/", os.sep)) or path.is_dir()
    if not is_folder:
        require_writable(path.parent)
        return Destination(format_for(path, asked), path.parent, path, count=count)
    require_writable(path if os.path.lexists(path) else path.parent)
    return Destination(asked or "png", path, count=count)


def require_writable(folder: Path) -> None:
    """Raises OutputError unless files can be made in `folder`; tries it with one that has no name."""
    try:
        with tempfile.TemporaryFile(dir=folder):
            pass
    except (FileNotFoundError, NotADirectoryError) as error:
        if folder.is_dir():  # as /proc answers
            raise OutputError(f"{folder} is not writable", "choose another folder") from error
        what = "is not a folder" if folder.exists() else "does not exist"
        raise OutputError(f"the folder {folder} {what}", f"make it first: mkdir -p {folder}") from error
    except OSError as error:
        raise OutputError(f"{folder} is not writable: {error.strerror}", "choose another folder") from error


def read_format(text: str | None) -> PictureFormat | None:
    """What --format says. Raises RequestError for a format that is not written."""
    if text is None:
        return None
    wanted, known = text.lower().replace("jpg", "jpeg"), get_args(PictureFormat)
    if wanted not in known:
        raise RequestError(f"--format {text!r} is not a format that is written", f"use {', '.join(known)}")
    return cast("PictureFormat", wanted)


def slug(prompt: str) -> str:
    """A file name's worth of `prompt`: letters and digits of any script in lower case, joined by dashes."""
    text = "".join(c if c.isalnum() else " " for c in unicodedata.normalize("NFKC", prompt).lower())
    name = "-".join(text.split())
    if len(name) > MAX_NAME:
        name = name[: MAX_NAME + 1].rpartition("-")[0] or name[:MAX_NAME]
    return name or "picture"


def free_path(path: Path) -> Path:
    """`path`, or the first of `…-2`, `…-3` that no file has yet."""
    number, free = 1, path
    while os.path.lexists(free):
        number += 1
        free = path.with_stem(f"{path.stem}-{number}")
    return free


def suffix(of: PictureFormat) -> str:
    return ".jpg" if of == "jpeg" else f".{of}"


def _stdout(asked: PictureFormat | None, count: int) -> Destination:
    if count > 1:
        raise OutputError(f"stdout takes one picture, not {count}", "name a folder with -o, or leave -n out")
    if sys.stdout is not None and sys.stdout.isatty():
        raise OutputError(
            "a picture would garble the terminal", "send stdout into a file or a pipe, or name a file with -o"
        )
    return Destination(asked or "png", Path(), to_stdout=True)
