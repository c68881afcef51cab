"""The sprite atlas: one WebP picture of RGBA tiles and the list of their names, both in the package.

The art is Microsoft's Fluent Emoji (3D), MIT licence: see `NOTICE`. `python -m kleinbild.train.nano.sprites` rebuilds it.
"""

from __future__ import annotations

import json
from functools import cache
from importlib.resources import files

import numpy as np
from numpy.typing import NDArray
from PIL import Image

SPRITE_SIDE = 56
ATLAS_COLUMNS = 20


@cache
def sprites() -> dict[str, NDArray[np.uint8]]:
    """Every sprite by its code, as (56, 56, 4) RGBA, alpha not multiplied in. Do not write into the arrays."""
    folder = files("kleinbild.nano.scenes") / "atlas"
    codes: list[str] = json.loads((folder / "codes.json").read_text("utf-8"))
    with (folder / "sprites.webp").open("rb") as stream, Image.open(stream) as picture:
        sheet = np.asarray(picture.convert("RGBA"))
    tiles = {}
    for index, code in enumerate(codes):
        row, column = divmod(index, ATLAS_COLUMNS)
        top, left = row * SPRITE_SIDE, column * SPRITE_SIDE
        tile = sheet[top : top + SPRITE_SIDE, left : left + SPRITE_SIDE]
        tile.flags.writeable = False
        tiles[code] = tile
    return tiles
