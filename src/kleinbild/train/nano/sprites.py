"""Builds nano's sprite atlas from a folder of emoji pictures: `python -m kleinbild.train.nano.sprites ASSETS NAMES OUT`.

ASSETS is the `assets` folder of the npm package `@lobehub/fluent-emoji-3d` 1.1.0 (256x256 WebP files named by code
point), NAMES `data-by-emoji.json` of the npm package `unicode-emoji-json` 0.9.0. Nouns and unseen sprites come first,
then unnamed extras (objects, animals, food) that only teach the autoencoder and copying from references.
"""

from __future__ import annotations

import argparse
import json
import random
from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from kleinbild.nano.scenes.lexicon import NOUNS, UNSEEN
from kleinbild.nano.scenes.sprites import ATLAS_COLUMNS, SPRITE_SIDE

GROUPS = ("Animals & Nature", "Food & Drink", "Activities", "Objects", "Travel & Places")
# Near copies of an unseen sprite would make "unseen" untrue; clock faces and moons fill the atlas with one shape.
SKIPPED_WORDS = (
    "tiger", "hedgehog", "dolphin", "snail", "tulip", "pear", "avocado", "fries", "ice cream", "crystal ball", "key",
    "light bulb", "airplane", "sun", "umbrella", "clock", "o’clock", "thirty", "moon", "hole",
)  # fmt: skip


def extra_codes(assets: Path, names: dict[str, dict[str, str]], num_extras: int) -> list[str]:
    """Codes of unnamed sprites, drawn evenly by a fixed seed from the object groups."""
    taken = {noun.code for noun in NOUNS} | set(UNSEEN)
    codes = []
    for emoji, facts in names.items():
        code = "-".join(f"{ord(character):x}" for character in emoji)
        wanted = facts["group"] in GROUPS and not any(word in facts["name"] for word in SKIPPED_WORDS)
        if wanted and code not in taken and (assets / f"{code}.webp").exists():
            codes.append(code)
    random.Random(0).shuffle(codes)
    return codes[:num_extras]


def build_atlas(assets: Path, codes: Sequence[str]) -> Image.Image:
    rows = -(-len(codes) // ATLAS_COLUMNS)
    sheet = Image.new("RGBA", (ATLAS_COLUMNS * SPRITE_SIDE, rows * SPRITE_SIDE))
    for index, code in enumerate(codes):
        row, column = divmod(index, ATLAS_COLUMNS)
        with Image.open(assets / f"{code}.webp") as picture:
            # Premultiplied while resizing, so that the colour of invisible pixels does not bleed into the edge.
            tile = picture.convert("RGBA").convert("RGBa").resize((SPRITE_SIDE, SPRITE_SIDE), Image.Resampling.LANCZOS)
        sheet.paste(tile.convert("RGBA"), (column * SPRITE_SIDE, row * SPRITE_SIDE))
    return sheet


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("assets", type=Path)
    parser.add_argument("names", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--extras", type=int, default=300)
    arguments = parser.parse_args()
    names = json.loads(arguments.names.read_text("utf-8"))
    named = [noun.code for noun in NOUNS]
    codes = [*named, *UNSEEN, *extra_codes(arguments.assets, names, arguments.extras)]
    arguments.out.mkdir(parents=True, exist_ok=True)
    build_atlas(arguments.assets, codes).save(arguments.out / "sprites.webp", lossless=True, quality=100, method=6)
    (arguments.out / "codes.json").write_text(json.dumps(codes), "utf-8")


if __name__ == "__main__":
    main()
