"""Every picture of a data set looked at once, before anything is trained: can it be read, what is in it.

All are decoded, so that a broken one is told now and not in the middle of a run; all that are broken are told at once.
What was seen is kept by path, size and time of change, so that the next look opens nothing. No torch here.

Shape suffixes: H W pixels, C channels.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from PIL import Image

from kleinbild.core.errors import PictureError
from kleinbild.core.sizes import Size
from kleinbild.engine.files import read_file, write_file
from kleinbild.engine.references import open_picture
from kleinbild.train.data.folders import counted, named

NUM_THREADS = 4  # decoders let others work meanwhile; more would only hold more pictures at once
HASH_SIDE, THUMB_SIDE = 8, 8
VERSION = 1

Progress = Callable[[int, int], None]
Given = TypeVar("Given")
Made = TypeVar("Made")


@dataclass(frozen=True, slots=True)
class Seen:
    """A picture that can be read, upright. `pixels` is a digest of what is to be seen in it, `gradients` a hash that changes
    little where the picture does (64 bits), `thumb` its colours on a grid of 8 by 8, both in hex."""

    sha256: str
    width: int
    height: int
    transparent: bool
    pixels: str
    gradients: str
    thumb: str

    @property
    def size(self) -> Size:
        return Size(self.width, self.height)


@dataclass(frozen=True, slots=True)
class Looked:
    """What was seen of each file, and of each that cannot be used why."""

    seen: Mapping[Path, Seen]
    broken: Mapping[Path, PictureError]

    def require_whole(self) -> Mapping[Path, Seen]:
        """What was seen. Raises PictureError that names all broken pictures."""
        if self.broken:
            what = [f"{error.message}" for error in self.broken.values()]
            hints = {error.hint for error in self.broken.values()}
            raise PictureError(
                f"{counted(len(what), 'picture')} cannot be used: {named(what, 20)}",
                f"{hints.pop()}, or take it away" if len(hints) == 1 else "replace them or take them away",
            )
        return self.seen


def look(paths: Iterable[Path], *, memory: Path | None = None, progress: Progress | None = None) -> Looked:
    """Looks at each file once. `memory` is a file that keeps what was seen, for the next time."""
    wanted = list(dict.fromkeys(paths))
    known = _remembered(memory)
    kept: dict[str, dict[str, Any]] = {}
    seen: dict[Path, Seen] = {}
    broken: dict[Path, PictureError] = {}
    results = in_order(lambda path: _look(path, known), wanted)
    for done, (path, (mark, result)) in enumerate(zip(wanted, results, strict=True), 1):
        if isinstance(result, PictureError):
            broken[path] = result
        else:
            seen[path], kept[mark] = result, asdict(result)
        if progress is not None:
            progress(done, len(wanted))
    if memory is not None and any(mark not in known for mark in kept):
        memory.parent.mkdir(parents=True, exist_ok=True)
        write_file(memory, json.dumps({"version": VERSION, "pictures": {**known, **kept}}).encode())
    return Looked(seen, broken)


def open_upright(path: Path) -> Image.Image:
    """The picture as the engine reads it: upright, RGB, what is transparent on white. Raises PictureError."""
    return open_picture(read_file(path), str(path))


def in_order(work: Callable[[Given], Made], items: Iterable[Given], *, ahead: int = 2 * NUM_THREADS) -> Iterator[Made]:
    """`work` of each item, in their order, in threads that are at most `ahead` items in front: memory stays bounded."""
    with ThreadPoolExecutor(NUM_THREADS) as threads:
        pending = []
        for item in items:
            pending.append(threads.submit(work, item))
            if len(pending) > ahead:
                yield pending.pop(0).result()
        for future in pending:
            yield future.result()


def gradient_hash(image: Image.Image) -> int:
    """dHash: whether each of 8 by 8 cells is lighter than its left neighbour, as 64 bits."""
    grey_HW = np.asarray(image.convert("L").resize((HASH_SIDE + 1, HASH_SIDE), Image.Resampling.BOX), np.int16)
    return int.from_bytes(np.packbits(grey_HW[:, 1:] > grey_HW[:, :-1]).tobytes(), "big")


def _look(path: Path, known: Mapping[str, dict[str, Any]]) -> tuple[str, Seen | PictureError]:
    mark = ""
    with suppress(OSError):  # then reading says why
        status = path.stat()
        mark = f"{path.absolute()}|{status.st_size}|{status.st_mtime_ns}"
    if mark in known:
        return mark, Seen(**known[mark])
    try:
        file = read_file(path)
        image = open_picture(file, str(path))
    except PictureError as error:
        return mark, error
    with Image.open(io.BytesIO(file)) as header:  # it has just been decoded without complaint
        transparent = header.has_transparency_data
    thumb = image.resize((THUMB_SIDE, THUMB_SIDE), Image.Resampling.BOX, reducing_gap=2.0)
    return mark, Seen(
        sha256=hashlib.sha256(file).hexdigest(),
        width=image.width,
        height=image.height,
        transparent=transparent,
        pixels=hashlib.sha256(f"{image.size}".encode() + image.tobytes()).hexdigest(),
        gradients=f"{gradient_hash(image):016x}",
        thumb=thumb.tobytes().hex(),
    )


def _remembered(memory: Path | None) -> dict[str, dict[str, Any]]:
    """What an earlier look has kept; nothing, if that is of another version or damaged: it is looked at anew."""
    if memory is None or not memory.is_file():
        return {}
    try:
        values = json.loads(memory.read_text("utf-8"))
        if values["version"] != VERSION:
            return {}
        return {str(mark): asdict(Seen(**seen)) for mark, seen in values["pictures"].items()}
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return {}
