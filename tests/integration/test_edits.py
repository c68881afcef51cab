"""Edits by nano: what nobody asked to change stays where it is, and with a mask what it is."""

from __future__ import annotations

import io

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from kleinbild.core.requests import PictureRequest
from kleinbild.core.sizes import Size
from kleinbild.engine.decode import to_image
from kleinbild.engine.encode import encode_picture
from kleinbild.engine.framing import Frame, frame_for
from kleinbild.engine.picture import Picture
from kleinbild.engine.runtime import Engine
from tests.shift import shift

SAME = "change the background to mint"  # what it is already
SIZES = [(128, 128), (121, 117), (130, 97), (97, 130), (255, 90), (301, 299), (601, 431), (47, 40)]
OTHER_SHAPES = [(200, 133), (97, 150), (300, 260), (257, 129)]


@pytest.fixture(scope="module")
def nano() -> Engine:
    return Engine("nano")


@pytest.fixture(scope="module")
def fox(nano: Engine) -> Image.Image:
    return nano.generate(PictureRequest("a fox on a mint background", seed=1)).pil


def encoded(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def edit(nano: Engine, image: Image.Image, prompt: str = SAME, steps: int | None = None, **fields: object) -> Picture:
    return nano.generate(PictureRequest(prompt, seed=2, steps=steps, references=(encoded(image),), **fields))  # type: ignore[arg-type]


def framed(nano: Engine, size: tuple[int, int]) -> Frame:
    return frame_for(Size(*size), "it", nano.sizes, nano.model.settings.default_size**2)


@pytest.mark.parametrize("size", SIZES + OTHER_SHAPES)
def test_a_picture_through_frame_and_autoencoder_is_where_it_was(
    nano: Engine, fox: Image.Image, size: tuple[int, int]
) -> None:
    """An edit that changes nothing at all: in pixels of what was made, a tenth at most."""
    image = fox.resize(size, Image.Resampling.LANCZOS)
    frame = framed(nano, size)
    latent = encode_picture(nano.model, frame.into(image))
    back = frame.out_of(to_image(nano.model.autoencoder.decode(latent)))
    assert back.size == size
    assert shift(image, back) * frame.content.width / size[0] <= 0.1


@pytest.mark.parametrize("size", [(128, 128), (121, 117), (127, 113), (128, 115)])
def test_an_edit_to_what_it_is_already_shifts_nothing(nano: Engine, fox: Image.Image, size: tuple[int, int]) -> None:
    """Sizes for which nano, trained at 128x128 alone, paints as well as it does there: once framed, they are that."""
    image = fox.crop((0, 0, *size))
    made = edit(nano, image).pil
    assert made.size == size
    assert shift(image, made) <= 0.5


@pytest.mark.parametrize("size", OTHER_SHAPES)
def test_an_edit_of_another_shape_shifts_nothing(nano: Engine, fox: Image.Image, size: tuple[int, int]) -> None:
    """With the fox where nano would paint it, and as large, in what the model makes."""
    content = framed(nano, size).content
    ground = Image.new("RGB", (content.width, content.height), fox.getpixel((0, 0)))
    ground.paste(fox, (0, 0))
    image = ground.resize(size, Image.Resampling.LANCZOS)
    assert shift(image, edit(nano, image).pil) <= 0.5


@pytest.mark.parametrize("size", OTHER_SHAPES)
def test_an_edit_of_things_elsewhere_shifts_them_by_less_than_half_a_pixel_of_what_was_made(
    nano: Engine, fox: Image.Image, size: tuple[int, int]
) -> None:
    """Those that are not where nano would paint them, or not as large; a result that is enlarged enlarges that, too."""
    image = fox.resize(size, Image.Resampling.LANCZOS)
    assert shift(image, edit(nano, image).pil) * framed(nano, size).content.width / size[0] <= 0.5


def test_an_edit_of_a_large_picture_shifts_nothing(nano: Engine, fox: Image.Image) -> None:
    image = fox.resize((384, 384), Image.Resampling.LANCZOS)
    made = edit(nano, image)
    assert made.pil.size == image.size
    assert shift(image, made.pil) <= 0.5
    assert made.notes == ("reference 1 is 384x384: the model made 128x128, and that was enlarged",)


def test_cached_references_make_nearly_the_same_picture(nano: Engine, fox: Image.Image) -> None:
    exact, cached = (
        np.asarray(edit(nano, fox, "change the background to the night sky", cache_references=cache).pil).astype(float)
        for cache in (False, True)
    )
    assert 40 < 10 * np.log10(255**2 / ((exact - cached) ** 2).mean()) < 60  # dB


BOXES = st.tuples(st.integers(0, 129), st.integers(0, 96), st.integers(1, 130), st.integers(1, 97))


@settings(max_examples=8, deadline=None)
@given(st.lists(st.tuples(BOXES, st.integers(0, 254)), min_size=1, max_size=4), st.integers(1, 2))
def test_outside_a_mask_every_pixel_is_the_inputs(
    nano: Engine, fox: Image.Image, boxes: list[tuple[tuple[int, int, int, int], int]], steps: int
) -> None:
    image = fox.resize((130, 97))
    alpha = np.full((97, 130), 255, np.uint8)
    for (left, top, width, height), level in boxes:
        alpha[top : top + height, left : left + width] = level
    mask = Image.new("L", image.size)
    mask.putalpha(Image.fromarray(alpha))
    made = np.asarray(edit(nano, image, "change the background to purple", steps, mask=encoded(mask)).pil)
    kept = alpha == 255
    assert (made[kept] == np.asarray(image)[kept]).all()


def test_inside_a_mask_the_picture_is_made_anew(nano: Engine, fox: Image.Image) -> None:
    mask = Image.new("RGBA", fox.size, "black")
    mask.paste((0, 0, 0, 0), (24, 24, 104, 104))
    made = np.asarray(edit(nano, fox, "change the background to purple", mask=encoded(mask)).pil).astype(int)
    red, green, blue = made[40, 36]
    assert blue > green < red  # purple, where mint was


def test_a_canvas_keeps_the_picture_and_goes_on_with_it(nano: Engine, fox: Image.Image) -> None:
    inner = fox.crop((16, 8, 112, 104))
    made = edit(nano, inner, canvas=Size(128, 128), place=(16, 8)).pil
    assert made.crop((16, 8, 112, 104)).tobytes() == inner.tobytes()
    difference = np.abs(np.asarray(made).astype(int) - np.asarray(fox)).mean()
    assert difference < 6  # mint all around
