"""Contact sheets: what `kleinbild nano eval --sheets` writes, one for each row, references above what came of them."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

from PIL import Image, ImageOps

from kleinbild.cli.outputs import require_writable
from kleinbild.core.errors import OutputError

if TYPE_CHECKING:
    from kleinbild.nano.evaluate import Goal, Trial

TILE, REFERENCE, FRAME = 128, 60, 4  # pixels
PER_ROW, MOST = 10, 40  # pictures
RIGHT, WRONG = "#2e9e5b", "#d64545"


class Sheets:
    """Collects the first pictures of each row. Made before the evaluation, so that a wrong path is told at once."""

    def __init__(self, folder: Path) -> None:
        require_writable(folder.parent)
        if folder.exists() and not folder.is_dir():
            raise OutputError(
                f"--sheets {folder} is a file, not a folder", "name a folder; it is made if it is not there"
            )
        self.folder = folder
        self.rows: dict[str, list[Image.Image]] = {}

    def add(self, goal: Goal, trial: Trial) -> None:
        tiles = self.rows.setdefault(goal.label, [])
        if len(tiles) < MOST:
            tiles.append(tile(trial))

    def save(self) -> Path:
        """Writes a PNG for each row, named after it. Returns the folder."""
        self.folder.mkdir(exist_ok=True)
        for label, tiles in self.rows.items():
            name = "-".join(re.findall(r"[a-z0-9]+", label.lower()))
            _joined(tiles).save(self.folder / f"{name}.png")
        return self.folder


def _joined(tiles: list[Image.Image]) -> Image.Image:
    width, height = tiles[0].width + FRAME, tiles[0].height + FRAME
    sheet = Image.new("RGB", (width * min(len(tiles), PER_ROW), height * -(-len(tiles) // PER_ROW)), "white")
    for index, one in enumerate(tiles):
        row, column = divmod(index, PER_ROW)
        sheet.paste(one, (column * width, row * height))
    return sheet


def tile(trial: Trial) -> Image.Image:
    """One trial: its references, small, above the picture in a frame of the verdict's colour."""
    from kleinbild.nano.scenes.render import render

    above = REFERENCE + FRAME if trial.sample.references else 0
    image = Image.new("RGB", (TILE + 2 * FRAME, above + TILE + 2 * FRAME), "white")
    for index, scene in enumerate(trial.sample.references):
        reference = ImageOps.pad(Image.fromarray(render(scene)), (REFERENCE, REFERENCE), color="white")
        image.paste(reference, (FRAME + index * (REFERENCE + FRAME), 0))
    colour = RIGHT if trial.verdict.all_right else WRONG
    frame = ImageOps.pad(ImageOps.expand(trial.picture, FRAME, colour), (TILE + 2 * FRAME,) * 2, color="white")
    image.paste(frame, (0, above))
    return image
