"""Makes docs/images/nano.png, the picture at the head of the README: `python examples/sheet.py [FILE]`."""

from __future__ import annotations

import sys
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

import kleinbild

SCALE, GAP, CAPTION = 2, 16, 40
INK, PAPER = "#222222", "#ffffff"


def pictures() -> list[tuple[str, kleinbild.Picture]]:
    """Captions and pictures, in reading order."""
    made = [
        (prompt, kleinbild.generate(prompt, seed=seed))
        for prompt, seed in (
            ("a fox on a mint background", 1),
            ("a penguin to the left of a snowman in the snow", 2),
            ("three strawberries on a peach gradient", 3),
            ("a rocket under the night sky", 9),
            ("an owl above a pumpkin, lavender background", 5),
            ("a lion, a bus and a castle on turquoise", 6),
        )
    ]
    fox, owl = made[0][1], made[4][1]
    replace = "replace the pumpkin with a cake"
    put = "put the object of image 1 on the background of image 2"
    rocket = made[3][1]
    return [
        *made,
        (f"{replace} (image: 5)", kleinbild.edit(replace, owl, seed=7)),
        (f"{put} (images: 1, 4)", kleinbild.edit(put, [fox, rocket], seed=8)),
    ]


def sheet(tiles: list[tuple[str, kleinbild.Picture]], columns: int = 4) -> Image.Image:
    side = tiles[0][1].pil.width * SCALE
    rows = -(-len(tiles) // columns)
    page = Image.new("RGB", (GAP + columns * (side + GAP), GAP + rows * (side + CAPTION + GAP)), PAPER)
    draw, font = ImageDraw.Draw(page), ImageFont.load_default(size=13)
    for index, (caption, picture) in enumerate(tiles):
        row, column = divmod(index, columns)
        left, top = GAP + column * (side + GAP), GAP + row * (side + CAPTION + GAP)
        page.paste(picture.pil.resize((side, side), Image.Resampling.LANCZOS), (left, top))
        draw.multiline_text((left, top + side + 5), wrapped(caption, font, side), fill=INK, font=font, spacing=2)
    return page


def wrapped(text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, width: int) -> str:
    lines: list[str] = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        if font.getlength(longer) > width:
            lines.append(word)
        else:
            lines[-1] = longer
    return "\n".join(lines)


def main() -> None:
    path = Path(sys.argv[1] if len(sys.argv) > 1 else "docs/images/nano.png")
    path.parent.mkdir(parents=True, exist_ok=True)
    sheet(pictures()).save(path, optimize=True)
    print(path)


if __name__ == "__main__":
    main()
