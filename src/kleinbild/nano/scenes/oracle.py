"""The oracle: does a picture show the scene that was asked for? No network, only comparison with what can be drawn.

A box is right when, of all sprites of the world, the expected one drawn on what is behind it is nearest to its pixels, and
neither faint nor a smear. The background is right when the expected one is nearest outside the boxes, and nothing that does not
belong is there, not even a ghost of what an edit took away. The oracle is still lenient about sharpness, so the PSNR in the
boxes stands beside it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from functools import cache

import numpy as np
from numpy.typing import NDArray

from kleinbild.nano.scenes.lexicon import BACKGROUNDS
from kleinbild.nano.scenes.render import TOKEN, Grid, Pixels, Placed, Scene, background_pixels, render
from kleinbild.nano.scenes.sprites import painted, size_of, sprite, sprites

LIKE_PSNR = 17.0  # dB in a box: below it even the right sprite is a smear
LIKE_OPACITY = 0.7  # of its own: a thing that is fainter is not there
CLEAN_PSNR = 16.0  # dB in the worst tile outside the boxes: half a cat that nobody asked for gives about 8
CLEAN_OPACITY = 0.25  # of what was there before an edit: fainter, it is gone
JUDGED_SHARE = 0.25  # of how much a thing would show: one that the boxes leave less of is not looked for
MIN_TILE_PIXELS = 64  # of 256: tiles that the boxes leave less of are not judged
Look = Callable[[Pixels], Pixels]
"""What is done to a drawn picture (H, W, 3) before it is compared: a style, a frame."""


def as_drawn(pixels: Pixels) -> Pixels:
    """The look of nano's world itself."""
    return pixels


@dataclass(frozen=True, slots=True)
class Verdict:
    """What the oracle saw, compared with the scene `expected`.

    `box_psnr` is the mean in dB over the boxes; without boxes, over the whole picture. `kept_psnr` is that of what an edit
    was not asked to change, None where nothing was edited or all of it.
    """

    expected: Scene
    objects_right: bool
    background_right: bool
    clean: bool
    box_psnr: float
    kept_psnr: float | None = None

    @property
    def all_right(self) -> bool:
        return self.objects_right and self.background_right and self.clean


def judge(picture: Pixels, expected: Scene, look: Look = as_drawn, before: Scene | None = None) -> Verdict:
    """Compares a picture (H, W, 3) uint8 with the scene that it should show, seen through `look`.

    `before` is the scene that was edited: what the edit leaves as it was is measured by itself, and what it takes away must
    be gone. Raises ValueError for a picture of another size than the scene's.
    """
    truth = look(render(expected))
    if picture.shape != truth.shape:
        raise ValueError(f"the scene's picture is {truth.shape} large, this one {picture.shape}")
    outside = np.ones(picture.shape[:2], bool)
    for item in expected.placed:
        outside[box_slices(item)] = False
    ghost = strongest_ghost(picture, expected, before, outside, look) if before else 0.0
    boxes = [psnr(picture[box_slices(item)], truth[box_slices(item)]) for item in expected.placed]
    return Verdict(
        expected=expected,
        objects_right=all(each >= LIKE_PSNR for each in boxes)
        and all(
            nearest_sprite(picture, expected, index, look) == item.code for index, item in enumerate(expected.placed)
        ),
        background_right=nearest_background(picture, expected.grid, outside, look) == expected.background,
        clean=worst_tile_psnr(picture, truth, outside) >= CLEAN_PSNR and ghost <= CLEAN_OPACITY,
        box_psnr=float(np.mean(boxes)) if boxes else psnr(picture, truth),
        kept_psnr=None if before is None else _kept_psnr(picture, truth, expected, before),
    )


def judge_any(picture: Pixels, right: Iterable[Scene], look: Look = as_drawn, before: Scene | None = None) -> Verdict:
    """As `judge`, with that of the scenes which would all be right that the picture is nearest to."""
    return judge(picture, nearest_scene(picture, right, look), look, before)


def _kept_psnr(picture: Pixels, truth: Pixels, expected: Scene, before: Scene) -> float | None:
    """PSNR where the scene stays as it was; None where the background changes, since then everything does."""
    if before.background != expected.background:
        return None
    kept = np.ones(picture.shape[:2], bool)
    for item in set(before.placed).symmetric_difference(expected.placed):
        kept[box_slices(item)] = False
    return psnr(picture[kept], truth[kept]) if kept.any() else None


def nearest_scene(picture: Pixels, scenes: Iterable[Scene], look: Look = as_drawn) -> Scene:
    """Which of the scenes that would all be right the picture is nearest to. Raises ValueError for no scene."""
    first, *others = scenes
    if not others:
        return first
    seen = picture.astype(np.float32)
    return min((first, *others), key=lambda scene: float(np.square(look(render(scene)) - seen).mean()))


def nearest_sprite(picture: Pixels, expected: Scene, index: int, look: Look = as_drawn) -> str | None:
    """The code of the sprite that the box of the scene's thing `index` shows where no other covers it, None for nothing or
    hardly anything."""
    box = box_slices(expected.placed[index])
    seen = picture[box].astype(np.float32).reshape(-1)
    codes, colors, alphas = _sprite_table(size_of(expected.placed[index].code))
    empty = render(Scene(expected.background, expected.placed[:index], expected.grid))
    ground = empty[box].astype(np.float32).reshape(-1)
    drawn = ground + (colors - ground) * alphas
    if look is not as_drawn:  # which would change nothing, at length
        drawn, ground = _looked(drawn, empty, box, look), look(empty)[box].astype(np.float32).reshape(-1)
    free = np.ones(picture.shape, np.float32)
    for item in expected.placed[index + 1 :]:
        free[box_slices(item)] = 0
    uncovered = free[box].reshape(-1)
    distances = np.square(drawn - seen) @ uncovered
    best = int(distances.argmin())
    return codes[best] if opacity(seen, ground, drawn[best], uncovered) >= LIKE_OPACITY else None


def opacity(
    seen: NDArray[np.float32], ground: NDArray[np.float32], drawn: NDArray[np.float32], where: NDArray[np.float32]
) -> float:
    """How much of the difference between `ground` and what is `drawn` on it is seen `where` that is 1, by least squares: 0 is
    nothing, 1 all. Below a half the ground is nearer. Arrays of one shape (N)."""
    difference = (drawn - ground) * where
    return float((seen - ground) @ difference / max(float(difference @ difference), 1e-9))


def strongest_ghost(
    picture: Pixels, expected: Scene, before: Scene, outside: NDArray[np.bool_], look: Look = as_drawn
) -> float:
    """The highest opacity of what was there `before` and should not be now, `outside` the boxes of the scene."""
    empty = Scene(expected.background, grid=expected.grid)
    ground = look(render(empty)).astype(np.float32)
    seen = picture.astype(np.float32).reshape(-1)
    where = np.repeat(outside[..., None], 3, axis=2).astype(np.float32).reshape(-1)
    strongest = 0.0
    for item in set(before.placed).difference(expected.placed):
        drawn = look(render(replace(empty, placed=(item,)))).astype(np.float32)
        shows = np.square(drawn - ground)
        if shows[outside].sum() > JUDGED_SHARE * shows.sum():
            strongest = max(strongest, opacity(seen, ground.reshape(-1), drawn.reshape(-1), where))
    return strongest


def _looked(drawn: NDArray[np.float32], empty: Pixels, box: tuple[slice, slice], look: Look) -> NDArray[np.float32]:
    """Flat boxes, each as `look` shows it within the whole picture."""
    whole = empty.copy()
    boxes = np.empty_like(drawn)
    for flat, out in zip(drawn, boxes, strict=True):
        whole[box] = flat.round().astype(np.uint8).reshape(whole[box].shape)
        out[:] = look(whole)[box].reshape(-1)
    return boxes


def nearest_background(picture: Pixels, grid: Grid, outside: NDArray[np.bool_], look: Look = as_drawn) -> str:
    """The name of the background that is nearest to the picture `outside` the boxes."""
    seen = picture[outside].astype(np.float32)
    distances = []
    for background in BACKGROUNDS:
        drawn = look(background_pixels(background.name, grid))
        distances.append(float(np.square(drawn[outside].astype(np.float32) - seen).mean()))
    return BACKGROUNDS[int(np.argmin(distances))].name


def worst_tile_psnr(picture: Pixels, truth: Pixels, outside: NDArray[np.bool_]) -> float:
    """The lowest PSNR in dB of the token-sized tiles, over their pixels outside the boxes."""
    errors = np.square(picture.astype(np.float32) - truth.astype(np.float32)).mean(axis=2) * outside
    counts, sums = _tile_sums(outside.astype(np.float32)), _tile_sums(errors)
    judged = counts >= MIN_TILE_PIXELS
    worst = float((sums[judged] / counts[judged]).max(initial=0.0))
    return _decibels(worst)


def _tile_sums(values: NDArray[np.float32]) -> NDArray[np.float32]:
    height, width = values.shape
    sums: NDArray[np.float32] = values.reshape(height // TOKEN, TOKEN, width // TOKEN, TOKEN).sum(axis=(1, 3))
    return sums


def psnr(seen: NDArray[np.uint8], truth: NDArray[np.uint8]) -> float:
    """Peak signal to noise in dB, at most 99."""
    return _decibels(float(np.square(seen.astype(np.float32) - truth.astype(np.float32)).mean()))


def _decibels(mse: float) -> float:
    return min(99.0, 10 * float(np.log10(255**2 / max(mse, 1e-9))))


def box_slices(item: Placed) -> tuple[slice, slice]:
    left, top, right, bottom = item.box
    return slice(top, bottom), slice(left, right)


@cache
def _sprite_table(size: str) -> tuple[list[str], NDArray[np.float32], NDArray[np.float32]]:
    """Every sprite's (also every repainted one's) code in this size ("" for the usual one), flat colours and flat alphas."""
    codes = [f"{code}*{size}" if size else code for code in (*sprites(), *painted())]
    tiles = np.stack([sprite(code) for code in codes]).astype(np.float32)
    alphas = np.repeat(tiles[..., 3:] / 255.0, 3, axis=3)
    return codes, tiles[..., :3].reshape(len(tiles), -1), alphas.reshape(len(tiles), -1)
