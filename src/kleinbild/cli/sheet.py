"""One picture of many: what `kleinbild nano eval --sheet` writes. Each row a task, references above what came of them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from PIL import Image, ImageDraw, ImageFont

from kleinbild.cli.outputs import require_writable
from kleinbild.core.errors import OutputError
from kleinbild.engine.picture import SUFFIXES

if TYPE_CHECKING:
    from kleinbild.nano.evaluate import Goal, Trial

TILE, REFERENCE, FRAME, LABEL = 128, 60, 4, 20  # pixels
PER_ROW = 10
LEAST_WIDTH = 320  # of the sheet: a label must fit
RIGHT, WRONG = "#2e9e5b", "#d64545"


class Sheet:
    """Collects the first pictures of each row. Made before the evaluation, so that a wrong path is told at once."""

    def __init__(self, path: Path) -> None:
        if path.suffix.lower() not in SUFFIXES:
            raise OutputError(
                f"--sheet {path}: the suffix names no picture format", f"use one of {', '.join(SUFFIXES)}"
            )
        require_writable(path.parent)
        self.path = path
        self.rows: dict[str, list[Image.Image]] = {}

    def add(self, goal: Goal, trial: Trial) -> None:
        tiles = self.rows.setdefault(goal.label, [])
        if len(tiles) < PER_ROW:
            tiles.append(tile(trial))

    def save(self) -> Path:
        row_height = LABEL + REFERENCE + TILE + 3 * FRAME
        width = (TILE + 3 * FRAME) * max(map(len, self.rows.values()))
        sheet = Image.new("RGB", (max(width, LEAST_WIDTH), row_height * len(self.rows)), "white")
        draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(size=14)
        for row, (label, tiles) in enumerate(self.rows.items()):
            draw.text((FRAME, row * row_height), label, "black", font)
            for column, one in enumerate(tiles):
                sheet.paste(one, (column * (TILE + 3 * FRAME), row * row_height + LABEL))
        sheet.save(self.path)
        return self.path


def tile(trial: Trial) -> Image.Image:
    """One trial: its references, small, above the picture in a frame of the verdict's colour."""
    from kleinbild.nano.scenes.render import render

    image = Image.new("RGB", (TILE + 2 * FRAME, REFERENCE + TILE + 3 * FRAME), "white")
    for index, scene in enumerate(trial.sample.references):
        reference = Image.fromarray(render(scene)).resize((REFERENCE, REFERENCE))
        image.paste(reference, (FRAME + index * (REFERENCE + FRAME), 0))
    frame = Image.new("RGB", (TILE + 2 * FRAME, TILE + 2 * FRAME), RIGHT if trial.verdict.all_right else WRONG)
    frame.paste(trial.picture.resize((TILE, TILE)), (FRAME, FRAME))
    image.paste(frame, (0, REFERENCE + FRAME))
    return image
