"""Draws a scene: the background, then each sprite in its cell. Pictures are (H, W, 3) uint8 arrays.

The lattice is the tokens': a picture is 8x8 tokens of 16 px (or as its `Grid` says), a sprite's cell 4x4 tokens, and a cell
starts on a token. So a sprite always meets the token grid the same way, and a small model can know it by heart. Small and
big sprites have the middle of their cell for theirs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray
from PIL import ImageColor

from kleinbild.nano.scenes.lexicon import BACKGROUND_BY_NAME
from kleinbild.nano.scenes.sprites import side, sprite

SIDE = 128
TOKEN = 16
CELL = 4 * TOKEN

Pixels = NDArray[np.uint8]
Grid = tuple[int, int]
"""A picture's size as rows and columns of tokens."""

NATIVE: Grid = (SIDE // TOKEN, SIDE // TOKEN)


@dataclass(frozen=True, slots=True)
class Placed:
    """A sprite in the cell whose upper left corner is token (`row`, `column`)."""

    code: str
    row: int
    column: int

    @property
    def box(self) -> tuple[int, int, int, int]:
        """The sprite's pixels as (left, top, right, bottom)."""
        across = side(self.code)
        margin = (CELL - across) // 2
        left, top = self.column * TOKEN + margin, self.row * TOKEN + margin
        return left, top, left + across, top + across


@dataclass(frozen=True, slots=True)
class Scene:
    """What a picture shows, from back to front."""

    background: str
    placed: tuple[Placed, ...] = ()
    grid: Grid = NATIVE


def render(scene: Scene) -> Pixels:
    """The picture of a scene."""
    picture = background_pixels(scene.background, scene.grid).astype(np.float32)
    for item in scene.placed:
        left, top, _, _ = item.box
        composite(picture, sprite(item.code), left, top)
    return picture.round().astype(np.uint8)


def composite(picture: NDArray[np.float32], sprite: Pixels, left: int, top: int) -> None:
    """Draws `sprite` (RGBA) over `picture` in place; parts outside the picture are cut off."""
    height, width = sprite.shape[:2]
    rows = slice(max(top, 0), min(top + height, picture.shape[0]))
    columns = slice(max(left, 0), min(left + width, picture.shape[1]))
    tile = sprite[rows.start - top : rows.stop - top, columns.start - left : columns.stop - left].astype(np.float32)
    alpha = tile[..., 3:] / 255.0
    picture[rows, columns] += (tile[..., :3] - picture[rows, columns]) * alpha


@cache
def background_pixels(name: str, grid: Grid = NATIVE) -> Pixels:
    """The bare background of any of its names. Do not write into the array."""
    background = BACKGROUND_BY_NAME[name]
    height, width = (tokens * TOKEN for tokens in grid)
    picture = np.empty((height, width, 3), np.float32)
    if paint := PAINTERS.get(background.kind):
        paint(picture)
    else:
        _gradient(picture, *background.colors)
    pixels: Pixels = picture.round().clip(0, 255).astype(np.uint8)
    pixels.flags.writeable = False
    return pixels


def _rgb(color: str) -> NDArray[np.float32]:
    return np.array(ImageColor.getrgb(color), np.float32)


def _gradient(picture: NDArray[np.float32], *colors: str) -> None:
    """Fills the picture from the first colour at the top to the last at the bottom."""
    stops = np.stack([_rgb(color) for color in colors])
    at = np.linspace(0, 1, len(picture))
    of_stops = np.linspace(0, 1, len(stops)) if len(stops) > 1 else np.zeros(1)
    column = np.stack([np.interp(at, of_stops, stops[:, channel]) for channel in range(3)], axis=1)
    picture[:] = column[:, None, :]


def _hills(picture: NDArray[np.float32], horizon: float, swing: float, phase: float, crest: str, floor: str) -> None:
    """Ground below a soft wave line, shaded from one colour at the crest to another at the bottom.

    `horizon` and `swing` in pixels of a picture 128 high, as which it looks at every size.
    """
    height, width = picture.shape[:2]
    y, x = np.mgrid[:height, :width].astype(np.float32)
    scale = height / SIDE
    line = scale * horizon + scale * swing * np.sin(x / width * 2 * np.pi + phase)
    top, bottom = _rgb(crest), _rgb(floor)
    depth = ((y - line) / (height - line)).clip(0, 1)[..., None]
    cover = (y - line + 0.5).clip(0, 1)[..., None]
    picture += (top + (bottom - top) * depth - picture) * cover


def _meadow(picture: NDArray[np.float32]) -> None:
    _gradient(picture, "#8fd3ff", "#d8f1ff")
    _hills(picture, 74, 6, 0.6, "#9bd46a", "#7fc457")
    _hills(picture, 90, 4, 3.4, "#6fbf4b", "#4c9a3c")


def _snow(picture: NDArray[np.float32]) -> None:
    _gradient(picture, "#a9c4e6", "#dbe9f7")
    _hills(picture, 76, 5, 2.2, "#e8f0fa", "#dfe9f6")
    _hills(picture, 94, 4, 5.2, "#ffffff", "#eaf2fb")


def _beach(picture: NDArray[np.float32]) -> None:
    _gradient(picture, "#5fc3f5", "#bfe8fb")
    _hills(picture, 64, 0, 0.0, "#2a9bc4", "#3fb6cf")
    _hills(picture, 92, 3, 1.0, "#f7e3b0", "#e9c98a")


def _night(picture: NDArray[np.float32]) -> None:
    _gradient(picture, "#0d0f33", "#1b1f57", "#37306e")
    height, width = picture.shape[:2]
    generator = np.random.RandomState(7)  # a frozen stream: the stars are part of the world
    for _ in range(46):
        y, x = generator.randint(2, SIDE - 3, 2) * (height, width) // SIDE
        picture[y, x] = 235
        if generator.rand() < 0.35:
            picture[y : y + 2, x : x + 2] = 245


def _desert(picture: NDArray[np.float32]) -> None:
    _gradient(picture, "#f6c177", "#fbe6c2")
    _hills(picture, 70, 9, 4.0, "#e0a25e", "#cf8a49")
    _hills(picture, 92, 6, 1.2, "#d98f4a", "#b96e33")


def _forest(picture: NDArray[np.float32]) -> None:
    """Trunks before a green dusk, ground below."""
    _gradient(picture, "#a8d5b0", "#4f8f68", "#2f6049")
    width = picture.shape[1]
    for left, right in ((6, 15), (31, 37), (52, 62), (80, 87), (103, 114)):
        picture[:, left * width // SIDE : right * width // SIDE] = _rgb("#4a3327")
    _hills(picture, 98, 4, 2.6, "#3c7a3d", "#235427")


def _seabed(picture: NDArray[np.float32]) -> None:
    _gradient(picture, "#2aa5c9", "#14679c", "#0c3f72")
    _hills(picture, 100, 5, 0.3, "#d9c38a", "#a98f59")


PAINTERS: Mapping[str, Callable[[NDArray[np.float32]], None]] = {
    "meadow": _meadow, "night": _night, "beach": _beach, "snow": _snow,
    "desert": _desert, "forest": _forest, "seabed": _seabed,
}  # fmt: skip
