"""Masks: which pixels and tokens change, how the seam runs, and what is wrong with a mask."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

from kleinbild.core.errors import PictureError, RequestError, SizeError
from kleinbild.core.sizes import Size
from kleinbild.engine.framing import Frame
from kleinbild.engine.masks import FEATHER, Masked, masked, on_canvas, place_on, seam
from kleinbild.engine.references import MAX_DECODED_PIXELS

OLD, NEW = Image.new("RGB", (40, 24), "red"), Image.new("RGB", (40, 24), "blue")


def with_alpha(alpha: NDArray[np.uint8], mode: str = "RGBA") -> bytes:
    image = Image.new(mode.removesuffix("A"), alpha.shape[::-1])
    image.putalpha(Image.fromarray(alpha))
    return encoded(image)


def encoded(image: Image.Image, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG", **options)
    return buffer.getvalue()


def box(height: int, width: int, edited: tuple[slice, slice]) -> NDArray[np.uint8]:
    alpha = np.full((height, width), 255, np.uint8)
    alpha[edited] = 0
    return alpha


def over(alpha: NDArray[np.uint8], old: Image.Image = OLD, new: Image.Image = NEW) -> NDArray[np.uint8]:
    return np.asarray(Masked(old, alpha).over(new, Frame.plain(Size(*old.size))))


ALPHAS = st.lists(st.sampled_from([0, 1, 100, 254, 255]), min_size=40, max_size=40).map(
    lambda values: np.kron(np.array(values, np.uint8).reshape(5, 8), np.ones((5, 5), np.uint8))[:24]
)


@given(ALPHAS, st.integers(0, 100))
def test_what_is_opaque_is_the_inputs_bit_for_bit(alpha: NDArray[np.uint8], seed: int) -> None:
    old, new = np.random.default_rng(seed).integers(0, 256, (2, 24, 40, 3), dtype=np.uint8)
    made = over(alpha, Image.fromarray(old), Image.fromarray(new))
    assert (made[alpha == 255] == old[alpha == 255]).all()


def test_far_from_what_is_kept_all_is_new_and_the_seam_lies_between() -> None:
    alpha = box(24, 40, (slice(None), slice(20, None)))
    blue = over(alpha)[12, :, 2]
    assert (blue[:20] == 0).all()
    assert (blue[20 + FEATHER :] == 255).all()
    assert (np.diff(blue[19 : 21 + FEATHER].astype(int)) > 20).all()


def test_a_thin_line_is_all_new_in_its_middle() -> None:
    assert (over(box(24, 40, (slice(10, 13), slice(None))))[11, :, 2] == 255).all()
    assert (over(box(24, 40, (slice(10, 11), slice(None))))[10, :, 2] == 255).all()


def test_the_seam_is_as_wide_as_the_picture_was_scaled() -> None:
    alpha = box(24, 40, (slice(None), slice(20, None)))
    frame = Frame(Size(40, 24), Size(80, 48), Size(80, 48))
    blue = np.asarray(Masked(OLD, alpha).over(NEW, frame))[12, :, 2]
    assert (blue[:20] == 0).all()
    assert (blue[20 : 20 + FEATHER // 2 - 1] < 220).all()
    assert (blue[20 + FEATHER // 2 + 2 :] == 255).all()


def test_a_thin_line_in_a_large_picture_is_seen() -> None:
    old, new = (image.resize((800, 480)) for image in (OLD, NEW))
    frame = Frame(Size(800, 480), Size(40, 24), Size(48, 32))
    made = np.asarray(Masked(old, box(480, 800, (slice(243, 253), slice(None)))).over(new, frame))
    assert (made[245:251, :, 2] > 120).all()
    assert (made[:243] == (255, 0, 0)).all()
    assert (made[253:] == (255, 0, 0)).all()


def test_without_anything_to_keep_there_is_no_seam() -> None:
    assert (over(np.zeros((24, 40), np.uint8)) == np.asarray(NEW)).all()


def test_half_transparent_is_half_and_half() -> None:
    made = over(np.full((24, 40), 128, np.uint8))
    assert np.abs(made.astype(int) - (128, 0, 127)).max() <= 1


@given(st.integers(1, 9), ALPHAS)
def test_a_seam_is_a_share_and_nothing_where_nothing_is_edited(width: int, alpha: NDArray[np.uint8]) -> None:
    edited = alpha < 255
    shares = seam(edited, width)
    assert ((shares > 0) == edited).all()
    assert shares.max(initial=0) <= 1


def tokens(alpha: NDArray[np.uint8], frame: Frame) -> list[list[int]]:
    image = Image.new("RGB", alpha.shape[::-1])
    return Masked(image, alpha).edited_tokens(frame, 16).astype(int).tolist()


def test_a_token_is_edited_if_one_of_its_pixels_is() -> None:
    frame = Frame(Size(40, 24), Size(40, 24), Size(48, 32))
    assert tokens(box(24, 40, (slice(15, 16), slice(16, 17))), frame) == [[0, 1, 0], [0, 0, 0]]
    assert tokens(box(24, 40, (slice(15, 17), slice(31, 33))), frame) == [[0, 1, 1], [0, 1, 1]]
    faint = np.full((24, 40), 255, np.uint8)
    faint[23, 39] = 254
    assert tokens(faint, frame) == [[0, 0, 0], [0, 0, 1]]


def test_no_pixel_is_lost_between_tokens_when_the_picture_is_scaled() -> None:
    shrunk = Frame(Size(400, 240), Size(40, 24), Size(48, 32))
    assert tokens(box(240, 400, (slice(158, 161), slice(0, 1))), shrunk) == [[1, 0, 0], [1, 0, 0]]
    enlarged = Frame(Size(2, 1), Size(48, 24), Size(48, 32))
    assert tokens(box(1, 2, (slice(0, 1), slice(0, 1))), enlarged) == [[1, 1, 0], [1, 1, 0]]


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_transparency_is_read_from_any_picture_that_has_it(mode: str) -> None:
    alpha = np.arange(24 * 40, dtype=np.uint8).reshape(24, 40)
    assert (masked(OLD, with_alpha(alpha, mode), "the mask").alpha_HW == alpha).all()


def test_a_transparent_colour_is_transparency() -> None:
    image = Image.new("RGB", (40, 24), "white")
    image.paste("lime", (0, 0, 10, 24))
    alpha = masked(OLD, encoded(image, transparency=(0, 255, 0)), "the mask").alpha_HW
    assert (alpha == box(24, 40, (slice(None), slice(0, 10)))).all()


def test_masks_stand_upright_as_pictures_do() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    image = Image.new("RGB", (24, 40))
    image.putalpha(Image.fromarray(box(40, 24, (slice(0, 10), slice(None)))))
    alpha = masked(OLD, encoded(image, exif=exif), "the mask").alpha_HW
    assert (alpha == box(24, 40, (slice(None), slice(30, None)))).all()


@pytest.mark.parametrize(
    ("mask", "words"),
    [
        (with_alpha(np.zeros((24, 41), np.uint8)), "it is 41x24, the picture that it is for is 40x24"),
        (with_alpha(np.zeros((40, 24), np.uint8)), "it is 24x40, the picture that it is for is 40x24"),
        (with_alpha(np.full((24, 40), 255, np.uint8)), "it is opaque everywhere"),
        (encoded(Image.new("RGB", (40, 24))), r"it has no transparency \(it is RGB\)"),
        (encoded(Image.new("L", (40, 24))), r"it has no transparency \(it is L\)"),
        (b"text", "it is not a picture"),
        (b"", "it is empty"),
    ],
)
def test_a_mask_that_says_nothing_is_told(mask: bytes, words: str) -> None:
    with pytest.raises(PictureError, match=words) as caught:
        masked(OLD, mask, "it")
    assert caught.value.hint


def test_on_a_canvas_all_but_the_picture_is_edited() -> None:
    found = on_canvas(OLD, Size(50, 30), (4, 6))
    assert found.image.size == (50, 30)
    assert (found.alpha_HW == 255).sum() == 40 * 24
    assert (found.alpha_HW[6:30, 4:44] == 255).all()


def test_a_picture_lies_in_the_middle_of_its_canvas_or_where_it_was_put() -> None:
    assert place_on(Size(51, 24), Size(40, 24), None) == (5, 0)
    assert place_on(Size(51, 30), Size(40, 24), (11, 6)) == (11, 6)


@pytest.mark.parametrize(
    ("error", "canvas", "place", "words"),
    [
        (SizeError, Size(39, 100), None, "a canvas of 39x100 is smaller than the picture, which is 40x24"),
        (SizeError, Size(0, -1), None, "a canvas of 0x-1 is smaller"),
        (SizeError, Size(40, 24), None, "as large as the picture, 40x24"),
        (SizeError, Size(10_000, MAX_DECODED_PIXELS // 10_000 + 1), None, "50 megapixels"),
        (RequestError, Size(50, 30), (11, 0), "40x24 at 11,0 does not lie on a canvas of 50x30"),
        (RequestError, Size(50, 30), (0, -1), "at 0,-1 does not lie"),
    ],
)
def test_a_canvas_that_holds_no_picture_is_told(
    error: type[RequestError], canvas: Size, place: tuple[int, int] | None, words: str
) -> None:
    with pytest.raises(error, match=words) as caught:
        place_on(canvas, Size(40, 24), place)
    assert type(caught.value) is error
    assert caught.value.hint
