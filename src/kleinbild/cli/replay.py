"""`kleinbild generate --from FILE`: the picture in FILE once more, or changed by what else the line says."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from PIL import Image, ImageChops

from kleinbild.cli.inputs import read_mask, read_references
from kleinbild.cli.making import make
from kleinbild.cli.terminal import say, warn
from kleinbild.cli.wishes import Wishes
from kleinbild.core.errors import PictureError
from kleinbild.core.metadata import Record, ReferenceRecord
from kleinbild.core.requests import digest, replay_request
from kleinbild.engine.files import read_file
from kleinbild.engine.picture import read_record


def make_again(source: Path, images: Sequence[str], mask: Path | None, asked: dict[str, Any], wishes: Wishes) -> None:
    """Replays the record in `source` with the references `images`; anything but a model in `asked` makes it another picture."""
    record = read_record(source)
    files = read_references(images)[0] if images else find_references(record, source)
    mask_file = read_mask(mask) if mask else find_mask(record, source)
    request = replace(replay_request(record, files, mask_file), **asked)
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
    give = "give every reference, in order: " + " ".join(f"-i {one.name or 'FILE'}" for one in record.references)
    return tuple(
        find(reference, f"reference {number} of {source}", source, give)
        for number, reference in enumerate(record.references, start=1)
    )


def find_mask(record: Record, source: Path) -> bytes | None:
    """The mask in the same way, if there was one."""
    if record.mask is None:
        return None
    return find(record.mask, f"the mask of {source}", source, f"give it: --mask {record.mask.name or 'FILE'}")


def find(wanted: ReferenceRecord, what: str, source: Path, give: str) -> bytes:
    name = Path(wanted.name).name  # a record may come from anyone: no path leads elsewhere
    for place in (source.parent / name, Path(name)):
        if name and place.is_file() and digest(file := read_file(place)) == wanted.sha256:
            return file
    raise PictureError(
        f"{what} is neither beside it nor here: {name or 'it had no file name'}, sha256 {wanted.sha256[:12]}…", give
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
