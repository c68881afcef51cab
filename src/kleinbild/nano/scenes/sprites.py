"""The sprite atlas: one WebP picture of RGBA tiles and the list of their names, both in the package.

The art is Microsoft's Fluent Emoji (3D), MIT licence: see `NOTICE`. `python -m kleinbild.train.nano.sprites` rebuilds it.
"""

from __future__ import annotations

import json
from functools import cache, lru_cache
from importlib.resources import files

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from kleinbild.nano.scenes.lexicon import COLORS, OWN_COLORS

SPRITE_SIDE = 56
SIDES = {"small": 28, "big": 84}  # of sprites in another size than the atlas has
ATLAS_COLUMNS = 20
VIVID = 0.25  # saturation from which a pixel has a colour to change
SPAN = 42  # degrees of hue around the main one that are repainted
NUM_TURNS = 8  # four quarter turns of a sprite and of its mirror image
PALE = {"pink": 0.6}  # colours that are pale: what is left of the saturation


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


@cache
def painted() -> dict[str, NDArray[np.uint8]]:
    """The repainted sprites by their code, `CODE@COLOR`."""
    return {
        f"{code}@{color}": repaint(sprites()[code], hue, PALE.get(color, 1.0))
        for code, own in OWN_COLORS.items()
        for color, hue in COLORS.items()
        if color != own
    }


def sprite(code: str) -> NDArray[np.uint8]:
    """A sprite of the atlas, or a repainted one (`CODE@COLOR`), or a turned one (`CODE~TURN,HUE`), or one of these in another
    size (`...*SIZE`)."""
    code, _, size = code.partition("*")
    if size:
        return resized(code, size)
    if "~" in code:
        return turned(code)
    return painted()[code] if "@" in code else sprites()[code]


def turned_code(code: str, turn: int, hue: int) -> str:
    """The code of a sprite of the atlas turned as `turned` does."""
    return f"{code}~{turn},{hue}"


def size_of(code: str) -> str:
    """The size that a code asks for, of `SIDES`; "" for the usual one."""
    return code.partition("*")[2]


def side(code: str) -> int:
    """The width and height of a sprite in pixels."""
    return SIDES.get(size_of(code), SPRITE_SIDE)


@lru_cache(maxsize=4096)
def turned(code: str) -> NDArray[np.uint8]:
    """A sprite `CODE~TURN,HUE` as nobody has seen it: TURN of 8 is a quarter turn each, from 4 of its mirror image; all hues are
    turned by HUE degrees. Do not write into the array."""
    name, _, how = code.partition("~")
    turn, hue = map(int, how.split(","))
    tile = sprites()[name]
    hsv = np.asarray(Image.fromarray(tile[..., :3]).convert("HSV")).astype(np.int32)
    hsv[..., 0] = (hsv[..., 0] + round(hue * 256 / 360)) % 256
    colors = np.asarray(Image.fromarray(hsv.astype(np.uint8), "HSV").convert("RGB"))
    tile = np.concatenate((colors, tile[..., 3:]), axis=2)
    tile = np.ascontiguousarray(np.rot90(tile[:, ::-1] if turn >= NUM_TURNS // 2 else tile, turn % 4))
    tile.flags.writeable = False
    return tile


@lru_cache(maxsize=4096)
def resized(code: str, size: str) -> NDArray[np.uint8]:
    """A sprite in a size of `SIDES`. Do not write into the array."""
    picture = Image.fromarray(sprite(code)).convert("RGBa").resize((SIDES[size],) * 2, Image.Resampling.LANCZOS)
    tile = np.asarray(picture.convert("RGBA"))
    tile.flags.writeable = False
    return tile


def repaint(tile: NDArray[np.uint8], hue: int, saturation_left: float = 1.0) -> NDArray[np.uint8]:
    """Turns the hues around the sprite's main one to `hue` (degrees); everything else stays."""
    hsv = np.asarray(Image.fromarray(tile[..., :3]).convert("HSV")).astype(np.float32)
    hues, saturation = hsv[..., 0] * (360 / 255), hsv[..., 1] / 255
    weight = saturation * (tile[..., 3] / 255) * (saturation > VIVID)
    bins = np.bincount((hues.astype(int) // 10 % 36).ravel(), weight.ravel(), minlength=36)
    main = 10 * float(np.argmax(bins + np.roll(bins, 1) + np.roll(bins, -1))) + 5
    away = (hues - main + 180) % 360 - 180
    mask = (np.abs(away) < SPAN) & (saturation > VIVID)
    hsv[..., 0] = np.where(mask, (hue + 0.3 * away) % 360 * (255 / 360), hsv[..., 0])
    hsv[..., 1] = np.where(mask, hsv[..., 1] * saturation_left, hsv[..., 1])
    out = tile.copy()
    out[..., :3] = np.asarray(Image.fromarray(hsv.round().clip(0, 255).astype(np.uint8), "HSV").convert("RGB"))
    out[..., :3][~mask] = tile[..., :3][~mask]
    out.flags.writeable = False
    return out
