"""Reference pictures: every kind of file gives the right pixels or an error in words."""

from __future__ import annotations

import io
import struct
import time
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, PngImagePlugin

from kleinbild.core.errors import PictureError
from kleinbild.core.sizes import Size, SizeRange
from kleinbild.engine.files import MAX_FILE_BYTES, read_file
from kleinbild.engine.references import (
    MAX_DECODED_PIXELS,
    MAX_REFERENCE_PIXELS,
    fit,
    open_picture,
    prepare_reference,
)

RED, GREEN, BLUE, GREY, WHITE = (255, 0, 0), (0, 255, 0), (0, 0, 255), (128, 128, 128), (255, 255, 255)
NANO = SizeRange(min_side=64, max_side=256, max_pixels=256 * 256, multiple=16)
KLEIN = SizeRange(min_side=64, max_side=2048, max_pixels=4 * 1024 * 1024, multiple=16)


def quarters(width: int = 64, height: int = 32) -> Image.Image:
    """A colour in each corner, so that every turn and flip shows."""
    image = Image.new("RGB", (width, height), RED)
    image.paste(GREEN, (width // 2, 0, width, height // 2))
    image.paste(BLUE, (0, height // 2, width // 2, height))
    image.paste(GREY, (width // 2, height // 2, width, height))
    return image


def encoded(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def corners(image: Image.Image) -> list[tuple[int, ...]]:
    width, height = image.size
    return [image.getpixel((x, y)) for y in (2, height - 3) for x in (2, width - 3)]


def far_off(image: Image.Image, colours: list[tuple[int, ...]]) -> int:
    """By how much the corners miss the colours at most."""
    return int(np.abs(np.array(corners(image)) - np.array(colours)).max())


def png(width: int, height: int, depth: int, colour_type: int, data: bytes = b"") -> bytes:
    """A PNG file by hand: what Pillow does not write."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", width, height, depth, colour_type, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(data)) + chunk(b"IEND", b"")


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "BMP", "TIFF", "PPM"])
def test_lossless_formats_keep_every_pixel(kind: str) -> None:
    options = {"lossless": True} if kind == "WEBP" else {}
    opened = open_picture(encoded(quarters(), kind, **options))
    assert opened.mode == "RGB"
    assert opened.tobytes() == quarters().tobytes()


@pytest.mark.parametrize("kind", ["JPEG", "AVIF", "GIF"])
def test_lossy_formats_keep_the_picture(kind: str) -> None:
    assert far_off(open_picture(encoded(quarters(), kind)), corners(quarters())) <= 8


def test_what_phones_write_is_its_first_picture() -> None:
    second = Image.new("RGB", (64, 32), BLUE)
    opened = open_picture(encoded(quarters(), "MPO", save_all=True, append_images=[second]))
    assert far_off(opened, corners(quarters())) <= 8


def test_palette_grey_and_two_colours() -> None:
    assert corners(open_picture(encoded(quarters().quantize(4)))) == corners(quarters())
    grey = quarters().convert("L")
    assert open_picture(encoded(grey)).tobytes() == grey.convert("RGB").tobytes()
    two = quarters().convert("1")
    assert open_picture(encoded(two)).tobytes() == two.convert("RGB").tobytes()


def test_cmyk() -> None:
    cmyk = quarters().convert("CMYK")
    assert corners(open_picture(encoded(cmyk, "TIFF"))) == corners(quarters())
    assert far_off(open_picture(encoded(cmyk, "JPEG", quality=95)), corners(quarters())) <= 8


def test_grey_of_16_bits_is_scaled_not_clipped() -> None:
    levels = np.linspace(0, 65_535, 64 * 64).astype(np.uint16).reshape(64, 64)
    expected = np.round(levels / 257).astype(np.uint8)
    as_png = open_picture(encoded(Image.fromarray(levels)))
    as_pgm = open_picture(b"P5 64 64 65535\n" + levels.astype(">u2").tobytes())
    for opened in (as_png, as_pgm):
        assert opened.mode == "RGB"
        assert (np.array(opened) == expected[..., None]).all()


def test_colour_of_16_bits() -> None:
    levels = np.random.default_rng(0).integers(0, 65_536, (16, 16, 3), dtype=np.uint16)
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in levels)
    opened = open_picture(png(16, 16, depth=16, colour_type=2, data=rows))
    assert np.abs(np.array(opened) - levels / 257).max() <= 1


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG", "TIFF"])
def test_an_animation_is_its_first_frame(kind: str) -> None:
    frames = [Image.new("RGB", (32, 32), colour) for colour in (RED, GREEN, BLUE)]
    opened = open_picture(encoded(frames[0], kind, save_all=True, append_images=frames[1:]))
    assert far_off(opened, [RED] * 4) <= 2


def test_transparent_pictures_are_put_on_white() -> None:
    rgba = Image.new("RGBA", (32, 32), (*RED, 0))
    rgba.paste((*RED, 128), (0, 0, 16, 16))
    rgba.paste((*RED, 255), (16, 16, 32, 32))
    for kind in ("PNG", "WEBP", "TIFF"):
        options = {"lossless": True, "exact": True} if kind == "WEBP" else {}
        opened = open_picture(encoded(rgba, kind, **options))
        assert corners(opened) == [(255, 127, 127), WHITE, WHITE, RED]
    grey = Image.new("LA", (32, 32), (0, 51))
    assert corners(open_picture(encoded(grey))) == [(204, 204, 204)] * 4


def test_a_transparent_colour_is_white() -> None:
    on_white = [RED, WHITE, BLUE, GREY]
    assert corners(open_picture(encoded(quarters(), transparency=GREEN))) == on_white
    palette = quarters().quantize(4)
    transparent = palette.getpixel((63, 0))
    for kind in ("PNG", "GIF"):
        assert corners(open_picture(encoded(palette, kind, transparency=transparent))) == on_white


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "TIFF"])
@pytest.mark.parametrize(
    ("orientation", "stored"),
    [
        (1, None),
        (2, Image.Transpose.FLIP_LEFT_RIGHT),
        (3, Image.Transpose.ROTATE_180),
        (4, Image.Transpose.FLIP_TOP_BOTTOM),
        (5, Image.Transpose.TRANSPOSE),
        (6, Image.Transpose.ROTATE_90),
        (7, Image.Transpose.TRANSVERSE),
        (8, Image.Transpose.ROTATE_270),
    ],
)
def test_pictures_stand_upright(kind: str, orientation: int, stored: Image.Transpose | None) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    turned = quarters() if stored is None else quarters().transpose(stored)
    opened = open_picture(encoded(turned, kind, exif=exif))
    assert opened.size == (64, 32)
    assert far_off(opened, corners(quarters())) <= 12


def test_a_picture_of_100_megapixels_is_refused_by_its_header() -> None:
    for width, height in ((10_000, 10_000), (20_000, 20_000)):  # the second is too large for Pillow, too
        with pytest.raises(PictureError) as caught:
            open_picture(png(width, height, depth=8, colour_type=2), "huge.png")
        assert caught.value.message.startswith("huge.png ")
        assert "pixels" in caught.value.message
        assert caught.value.hint == "shrink it to 50 megapixels"
    assert MAX_DECODED_PIXELS == 50_000_000


@pytest.mark.parametrize("size", [(1, 1), (7, 100), (100, 7)])
def test_a_picture_too_small_to_show_anything_is_refused(size: tuple[int, int]) -> None:
    with pytest.raises(PictureError, match=f"{size[0]}x{size[1]}: too small"):
        open_picture(encoded(Image.new("RGB", size)))


@pytest.mark.parametrize(
    "file",
    [
        b"not a picture at all",
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 64 64\n",  # Pillow would run a program for this
        b"<svg xmlns='http://www.w3.org/2000/svg'/>",
        b"\x89PNG\r\n\x1a\n",
    ],
)
def test_what_is_no_picture_is_refused_with_what_would_do(file: bytes) -> None:
    with pytest.raises(PictureError) as caught:
        open_picture(file, "it")
    assert caught.value.message.startswith("it is ")
    assert caught.value.hint


def test_an_empty_file() -> None:
    with pytest.raises(PictureError, match="it is empty"):
        open_picture(b"", "it")


def test_pixels_without_a_known_range_are_refused() -> None:
    with pytest.raises(PictureError, match="floating-point"):
        open_picture(encoded(Image.new("F", (32, 32)), "TIFF"))
    with pytest.raises(PictureError, match="32-bit"):
        open_picture(encoded(Image.new("I", (32, 32), 70_000), "TIFF"))


FILES = {
    kind: encoded(quarters(), kind, **({"lossless": True} if kind == "WEBP" else {}))
    for kind in ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "AVIF")
}


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "GIF", "BMP", "PPM"])
def test_a_file_cut_in_half_is_damaged(kind: str) -> None:
    file = encoded(Image.effect_noise((64, 64), 100).convert("RGB"), kind)
    with pytest.raises(PictureError, match=r"damaged|not a picture") as caught:
        open_picture(file[: len(file) // 2])
    assert caught.value.hint


@given(st.sampled_from(sorted(FILES)), st.data())
def test_damage_is_a_picture_or_a_picture_error_never_a_crash(kind: str, data: st.DataObject) -> None:
    file = bytearray(FILES[kind])
    for _ in range(data.draw(st.integers(1, 4))):
        file[data.draw(st.integers(0, min(len(file), 400) - 1))] = data.draw(st.integers(0, 255))
    cut = data.draw(st.integers(1, len(file)))
    try:
        assert open_picture(bytes(file[:cut])).mode == "RGB"
    except PictureError as error:
        assert error.hint  # noqa: PT017 - either outcome is right


def test_colours_of_an_avif_that_are_damaged() -> None:
    file = FILES["AVIF"]
    at = file.index(b"mdat") + 4
    with pytest.raises(PictureError, match="damaged"):
        open_picture(file[:at] + bytes(len(file) - at))


def test_text_that_unpacks_to_megabytes_is_refused() -> None:
    info = PngImagePlugin.PngInfo()
    info.add_text("Comment", "0" * 10_000_000, zip=True)
    with pytest.raises(PictureError):
        open_picture(encoded(quarters(), pnginfo=info))


def test_files_are_read_or_the_reason_is_told(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"a")
    assert read_file(tmp_path / "a.png") == read_file(str(tmp_path / "a.png")) == b"a"
    with pytest.raises(PictureError, match=r"no such file: .*missing"):
        read_file(tmp_path / "missing.png")
    with pytest.raises(PictureError, match="is a folder"):
        read_file(tmp_path)
    with pytest.raises(PictureError, match="cannot be read"):
        read_file(tmp_path / "a.png" / "b.png")


def test_a_file_of_more_than_256_mib_is_not_read(tmp_path: Path) -> None:
    with (tmp_path / "huge.png").open("wb") as file:
        file.truncate(MAX_FILE_BYTES + 1)  # takes no room on disk
    with pytest.raises(PictureError, match="is larger than 256 MiB"):
        read_file(tmp_path / "huge.png")


@pytest.mark.parametrize(
    ("size", "sizes", "expected"),
    [
        ((128, 96), NANO, (128, 96)),
        ((130, 111), NANO, (128, 96)),
        ((300, 200), NANO, (256, 160)),
        ((1000, 250), NANO, (256, 64)),
        ((4000, 3000), NANO, (256, 192)),
        ((8, 8), NANO, (64, 64)),
        ((20, 50), NANO, (64, 160)),
        ((64, 63), KLEIN, (64, 64)),
        ((4000, 3000), KLEIN, (1168, 880)),
        ((2000, 500), KLEIN, (2000, 496)),
        ((8000, 1000), KLEIN, (2048, 256)),
    ],
)
def test_pictures_get_a_size_that_the_model_takes(
    size: tuple[int, int], sizes: SizeRange, expected: tuple[int, int]
) -> None:
    assert fit(Image.new("RGB", size), "it", sizes).size == expected


@given(st.sampled_from([NANO, KLEIN]), st.integers(8, 3000), st.floats(1, 8), st.booleans())
def test_every_picture_fits_or_is_too_narrow(sizes: SizeRange, shortest: int, aspect: float, upright: bool) -> None:
    longest = min(int(shortest * aspect), 4000)
    image = Image.new("1", (shortest, longest) if upright else (longest, shortest))  # only sizes matter
    try:
        fitted = Size(*fit(image, "it", sizes).size)
    except PictureError as error:
        assert longest / shortest > min(8, sizes.max_side / sizes.min_side)
        assert "more than the model takes" in error.message  # noqa: PT017
    else:
        sizes.check(fitted)
        assert fitted.area <= MAX_REFERENCE_PIXELS


def test_cutting_keeps_the_middle() -> None:
    image = Image.new("RGB", (70, 80), BLUE)
    image.paste(RED, (3, 0, 67, 80))
    assert fit(image, "it", NANO).getcolors() == [(64 * 80, RED)]


def test_errors_name_the_picture() -> None:
    with pytest.raises(PictureError, match=r"^reference 2 \(b\.png\) is 64x640"):
        prepare_reference(encoded(Image.new("RGB", (64, 640))), "reference 2 (b.png)", NANO)


@pytest.mark.alone
def test_a_hundred_megapixels_that_pack_to_nothing_are_not_decoded() -> None:
    file = png(100_000, 1_000, depth=1, colour_type=0, data=bytes(12_501 * 1_000))
    assert len(file) < 100_000
    begun = time.process_time()
    with pytest.raises(PictureError, match="100000x1000, 100 megapixels"):
        open_picture(file)
    assert time.process_time() - begun < 0.1


def test_grey_of_16_bits_stands_upright() -> None:
    levels = np.zeros((32, 64), np.uint16)
    levels[:, 32:] = 65_535
    exif = Image.Exif()
    exif[0x0112] = 6
    opened = open_picture(encoded(Image.fromarray(levels).transpose(Image.Transpose.ROTATE_90), exif=exif))
    assert corners(opened) == [(0, 0, 0), WHITE, (0, 0, 0), WHITE]


def test_transparent_colour_of_16_bits() -> None:
    pixel = np.array([65_535, 0, 0, 128 * 257], ">u2").tobytes()
    opened = open_picture(png(16, 16, depth=16, colour_type=6, data=(b"\0" + pixel * 16) * 16))
    assert far_off(opened, [(255, 127, 127)] * 4) <= 1


def test_an_animation_that_is_transparent_is_its_first_frame_on_white() -> None:
    frames = [Image.new("RGBA", (32, 32), (*colour, 0)) for colour in (RED, GREEN)]
    for frame, colour in zip(frames, (RED, GREEN), strict=True):
        frame.paste((*colour, 255), (0, 0, 16, 32))
    for kind in ("PNG", "WEBP", "GIF"):
        options = {"lossless": True} if kind == "WEBP" else {}
        opened = open_picture(encoded(frames[0], kind, save_all=True, append_images=frames[1:], **options))
        assert far_off(opened, [RED, WHITE, RED, WHITE]) <= 2
