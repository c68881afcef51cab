"""Pictures of which a part is made anew: masks, and canvases larger than their picture. No torch here.

Alpha says what happens to a pixel, as in OpenAI's API: 0 is made anew, 255 is kept, between the two in proportion. What
is kept is kept twice. While the picture is made, tokens without a pixel to edit follow the input's own latent
(`kleinbild.engine.latents.Known`), so that the new part grows out of the old one. At the end the input itself is laid
over the result, so that a pixel of alpha 255 is the input's, bit for bit. The seam lies on the edited side.

Shape suffixes: H W pixels, C channels, r c rows and columns of tokens.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from kleinbild.core.errors import MaskError, PictureError, RequestError, SizeError
from kleinbild.core.sizes import Size
from kleinbild.engine.framing import Frame, extend
from kleinbild.engine.references import MAX_DECODED_PIXELS, open_alpha

FEATHER = 4
"""Width of the seam in pixels of what the model makes: a wider one shows more of what shall go, a narrower one itself."""
KEPT = 255


@dataclass(frozen=True, slots=True, eq=False)
class Masked:
    """An upright RGB picture and its mask, alpha from 0 (made anew) to 255 (kept)."""

    image: Image.Image
    alpha_HW: NDArray[np.uint8]

    def edited_tokens(self, frame: Frame, pixels_per_token: int) -> NDArray[np.bool_]:
        """Which tokens (r, c) of what the model makes hold a pixel to edit."""
        height, width = self.alpha_HW.shape
        rows = _overlaps(frame.made.height // pixels_per_token, pixels_per_token, frame.content.height, height)
        columns = _overlaps(frame.made.width // pixels_per_token, pixels_per_token, frame.content.width, width)
        edited_HW = (self.alpha_HW < KEPT).astype(np.float32)
        edited_rc: NDArray[np.bool_] = rows @ edited_HW @ columns.T > 0
        return edited_rc

    def over(self, made: Image.Image, frame: Frame) -> Image.Image:
        """`made`, once it is out of its frame, with what is kept laid over it."""
        edited_HW = self.edited_tokens(frame, 1)[: frame.content.height, : frame.content.width]  # a pixel as a token
        shares = Image.fromarray(np.rint(seam(edited_HW) * 255).astype(np.uint8))
        shares_HW = np.asarray(shares.resize(made.size, Image.Resampling.BILINEAR)).astype(np.float32)
        shows_HW = np.rint(shares_HW * (KEPT - self.alpha_HW) / KEPT)
        return Image.composite(made, self.image, Image.fromarray(shows_HW.astype(np.uint8)))


def masked(image: Image.Image, mask: bytes, name: str) -> Masked:
    """`image` with its encoded `mask`, which errors call `name`. Raises MaskError for a mask that says nothing."""
    try:
        alpha = open_alpha(mask, name)
    except PictureError as error:
        raise MaskError(error.message, error.hint) from error
    if alpha.size != image.size:
        raise MaskError(
            f"{name} is {Size(*alpha.size)}, the picture that it is for is {Size(*image.size)}",
            f"make the mask {Size(*image.size)}, too",
        )
    alpha_HW = np.asarray(alpha)
    if alpha_HW.min() == KEPT:
        raise MaskError(f"{name} is opaque everywhere: nothing would change", "make transparent what shall change")
    return Masked(image, alpha_HW)


def on_canvas(image: Image.Image, canvas: Size, place: tuple[int, int]) -> Masked:
    """`image` with its left top corner at `place` on `canvas`; what is around it is made anew. Checked before."""
    left, top = place
    alpha_HW = np.zeros((canvas.height, canvas.width), np.uint8)
    alpha_HW[top : top + image.height, left : left + image.width] = KEPT
    return Masked(extend(image, canvas, left, top), alpha_HW)


def place_on(canvas: Size, size: Size, place: tuple[int, int] | None) -> tuple[int, int]:
    """Where a picture of `size` goes on `canvas`: at `place` or into the middle. Raises SizeError where it does not fit."""
    if canvas.width < size.width or canvas.height < size.height:
        raise SizeError(
            f"a canvas of {canvas} is smaller than the picture, which is {size}", f"give a canvas of more than {size}"
        )
    if canvas == size:
        raise SizeError(f"the canvas is as large as the picture, {size}: nothing would change", "give a larger one")
    if canvas.area > MAX_DECODED_PIXELS:
        raise SizeError(
            f"a canvas of {canvas} has {canvas.area / 1e6:.0f} megapixels",
            f"give one of at most {MAX_DECODED_PIXELS / 1e6:.0f}",
        )
    right, bottom = canvas.width - size.width, canvas.height - size.height
    left, top = place if place is not None else (right // 2, bottom // 2)
    if not (0 <= left <= right and 0 <= top <= bottom):
        raise RequestError(
            f"a picture of {size} at {left},{top} does not lie on a canvas of {canvas}",
            f"place it from 0,0 to {right},{bottom}",
        )
    return left, top


def seam(edited_HW: NDArray[np.bool_], width: int = FEATHER) -> NDArray[np.float32]:
    """How much of what is made anew shows: 0 where nothing is edited, rising to 1 over `width` pixels from there.

    It rises faster where the edited part is too narrow for that, so that the middle of a thin line is all new.
    """
    inside_HW = edited_HW.astype(np.uint8)
    depth_HW = np.zeros_like(inside_HW)
    for _ in range(width + 1):
        depth_HW += inside_HW
        inside_HW = _of_neighbours(np.minimum, inside_HW)
    deepest_HW = depth_HW
    for _ in range(width):
        deepest_HW = _of_neighbours(np.maximum, deepest_HW)
    shares_HW: NDArray[np.float32] = np.divide(depth_HW, np.maximum(deepest_HW, 1), dtype=np.float32)
    return shares_HW


def _of_neighbours(extreme: np.ufunc, values_HW: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """The extreme of each pixel and the eight around it. What lies beyond the picture's border is like the border."""
    for _ in ("rows", "columns"):
        padded = np.pad(values_HW, ((1, 1), (0, 0)), mode="edge")
        values_HW = extreme(extreme(padded[:-2], padded[1:-1]), padded[2:]).T
    return values_HW


def _overlaps(num_tokens: int, pixels_per_token: int, content: int, size: int) -> NDArray[np.float32]:
    """Which of a side's `size` pixels, `content` once scaled, each token holds a part of: 1 or 0, (tokens, pixels)."""
    token, pixel = np.arange(num_tokens)[:, None], np.arange(size)[None]
    begins = pixel * content < (token + 1) * pixels_per_token * size
    ends = (pixel + 1) * content > token * pixels_per_token * size
    return (begins & ends).astype(np.float32)
