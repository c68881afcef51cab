"""Previews: fixed prompts at fixed seeds, on the base model and on the distilled one, as one sheet."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont, ImageOps

from kleinbild.train.studio import Ask

LARGEST_TILE, REFERENCE_SHARE, GAP = 384, 0.45, 8  # pixels, and of a tile's side
INK, PALE, PAPER = "#1d2129", "#6b7280", "#ffffff"


def sheet(asks: Sequence[Ask], columns: Mapping[str, Sequence[Image.Image]], title: str) -> Image.Image:
    """A row for each ask, its references first, then a column for each of `columns`: title to pictures, in the asks' order."""
    tile = min(LARGEST_TILE, max(max(image.size) for images in columns.values() for image in images))
    small, line = int(tile * REFERENCE_SHARE), max(14, tile // 14)
    font = ImageFont.load_default(size=line * 0.8)
    most_references = max(len(ask.references) for ask in asks)
    left = GAP + most_references * (small + GAP)
    row_height = line + tile + 2 * GAP
    width = left + len(columns) * (tile + GAP)
    page = Image.new("RGB", (width, 2 * line + 2 * GAP + len(asks) * row_height), PAPER)
    draw = ImageDraw.Draw(page)
    draw.text((GAP, GAP // 2), _cut(title, draw, font, width - 2 * GAP), INK, font)
    for number, name in enumerate(columns):
        at = left + number * (tile + GAP)
        draw.text((at, line + GAP // 2), _cut(name, draw, font, tile), PALE, font)
    for row, ask in enumerate(asks):
        top = 2 * line + 2 * GAP + row * row_height
        draw.text((GAP, top), _cut(f"{ask.prompt}  (seed {ask.seed})", draw, font, width - 2 * GAP), INK, font)
        for number, path in enumerate(ask.references):
            page.paste(_fitted(Image.open(path), small), (GAP + number * (small + GAP), top + line + GAP // 2))
        for number, images in enumerate(columns.values()):
            page.paste(_fitted(images[row], tile), (left + number * (tile + GAP), top + line + GAP // 2))
    return page


def save_sheet(page: Image.Image, folder: Path, step: int) -> Path:
    path = folder / f"step-{step:06}.png"
    folder.mkdir(parents=True, exist_ok=True)
    page.save(path, optimize=True)
    return path


def _fitted(image: Image.Image, side: int) -> Image.Image:
    """Whole, in the middle of a square."""
    return ImageOps.pad(image.convert("RGB"), (side, side), color=PAPER)


def _cut(text: str, draw: ImageDraw.ImageDraw, font: ImageFont.ImageFont | ImageFont.FreeTypeFont, width: int) -> str:
    """As much of the text as fits."""
    if draw.textlength(text, font) <= width:
        return text
    while text and draw.textlength(f"{text}…", font) > width:
        text = text[:-1]
    return f"{text.rstrip()}…"
