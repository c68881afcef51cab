"""`kleinbild generate --from FILE`: the picture in FILE once more, or changed by what else the line says."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from PIL import Image, ImageChops

from kleinbild.cli.inputs import read_references
from kleinbild.cli.making import make
from kleinbild.cli.terminal import say, warn
from kleinbild.cli.wishes import Wishes
from kleinbild.core.errors import PictureError
from kleinbild.core.metadata import Record
from kleinbild.core.requests import digest, replay_request
from kleinbild.engine.picture import read_record
from kleinbild.engine.references import read_file


def make_again(source: Path, images: Sequence[str], asked: dict[str, Any], wishes: Wishes) -> None:
    """Replays the record in `source` with the references `images`; anything but a model in `asked` makes it another picture."""
    record = read_record(source)
    files = read_references(images)[0] if images else find_references(record, source)
    request = replace(replay_request(record, files), **asked)
    if "aspect" in asked:
        request = replace(request, size=None)
    if asked.keys() - {"model"} or wishes.count > 1:
        make(request, wishes)
        return
    before = lossless_pixels(source)  # the result may take its place
    picture = make(request, wishes, record)[0]
    if before is not None:
        compare(before, picture.pil, source)


def find_references(record: Record, source: Path) -> tuple[bytes, ...]:
    """The very files that `source` was made from: beside it or here, under their recorded names, with equal content."""
    return tuple(find_reference(record, number, source) for number in range(len(record.references)))


def find_reference(record: Record, index: int, source: Path) -> bytes:
    reference = record.references[index]
    name = Path(reference.name).name  # a record may come from anyone: no path leads elsewhere
    for place in (source.parent / name, Path(name)):
        if name and place.is_file() and digest(file := read_file(place)) == reference.sha256:
            return file
    raise PictureError(
        f"reference {index + 1} of {source} is neither beside it nor here: {name or 'it had no file name'}, "
        f"sha256 {reference.sha256[:12]}…",
        "give every reference, in order: " + " ".join(f"-i {other.name or 'FILE'}" for other in record.references),
    )


def lossless_pixels(source: Path) -> Image.Image | None:
    """The pixels in `source`, unless its format changed them."""
    with Image.open(source) as image:
        return None if image.format == "JPEG" else image.convert("RGB")


def compare(before: Image.Image, now: Image.Image, source: Path) -> None:
    if before.size == now.size and ImageChops.difference(before, now).getbbox() is None:
        say(f"the same as {source}, to the pixel")
    else:
        warn(f"{source} has other pixels: it was changed since, or made with another version of Kleinbild or PyTorch")
