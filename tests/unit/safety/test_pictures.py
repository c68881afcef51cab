import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image, ImageCms, PngImagePlugin

from kleinbild.core.errors import PictureError
from kleinbild.core.sizes import Size
from kleinbild.safety.pictures import PictureLimits, clean, measure, size_of, sniff

SECRET = b"geheim-47.37N-8.54E"


def picture(mode="RGB", size=(48, 32)):
    rows = np.random.default_rng(7).integers(0, 256, (size[1], size[0], 4), np.uint8)
    rows[: size[1] // 2] //= 4  # so that up and down differ
    return Image.fromarray(rows, "RGBA").convert(mode)


def encoded(image, format_, **options):
    out = io.BytesIO()
    image.save(out, format_, **options)
    return out.getvalue()


def opened(file):
    image = Image.open(io.BytesIO(file))
    image.load()
    return image


def pixels(file, mode="RGBA"):
    return np.asarray(opened(file).convert(mode))


def exif_with(orientation=None):
    exif = Image.Exif()
    exif[0x010E] = SECRET.decode()
    exif.get_ifd(0x8825)[1] = "N"
    if orientation:
        exif[0x0112] = orientation
    return exif


def text_of(value):
    text = PngImagePlugin.PngInfo()
    text.add_text("Comment", value.decode(), zip=False)
    text.add_itxt("XML:com.adobe.xmp", f"<x>{value.decode()}</x>")
    return text


@pytest.mark.parametrize("format_", ["PNG", "JPEG", "WEBP", "GIF"])
def test_formats_are_told_by_their_first_bytes(format_):
    assert sniff(encoded(picture(), format_)) == format_


@pytest.mark.parametrize(
    "file",
    [
        b"",
        b"<svg xmlns='http://www.w3.org/2000/svg'><script/></svg>",
        b"<?xml version='1.0'?><svg/>",
        b"<!doctype html><img src=x>",
        b" \x89PNG\r\n\x1a\n",
        b"%PDF-1.7",
        b"%!PS-Adobe-3.0 EPSF-3.0",
        b"PK\x03\x04",
        b"BM" + bytes(60),
        b"II*\0" + bytes(60),
        b"RIFF\0\0\0\0WAVEfmt ",
        b"\0\0\0\x1cftypavif",
        b"P6 1 1 255 abc",
        b"#!/bin/sh\n",
        b"GIF88a",
    ],
)
def test_anything_else_is_refused_in_words(file):
    with pytest.raises(PictureError, match=r"the picture is (empty|no picture)") as caught:
        clean(file)
    assert "PNG, JPEG, WebP or GIF" in caught.value.hint


SECRETIVE = {
    "png": encoded(picture(), "PNG", pnginfo=text_of(SECRET), exif=exif_with()),
    "jpeg": encoded(picture(), "JPEG", exif=exif_with(), comment=SECRET, xmp=SECRET),
    "progressive": encoded(picture(size=(200, 100)), "JPEG", progressive=True, exif=exif_with(), comment=SECRET),
    "webp": encoded(picture(), "WEBP", exif=exif_with(), xmp=SECRET),
    "gif": encoded(picture(), "GIF", comment=SECRET),
}


@pytest.mark.parametrize("name", SECRETIVE)
def test_metadata_is_gone_and_the_pixels_are_the_same(name):
    file = SECRETIVE[name]
    assert SECRET in file
    cleaned = clean(file)
    assert SECRET not in cleaned
    assert not opened(cleaned).getexif()
    assert set(opened(cleaned).info) <= {
        "jfif",
        "jfif_version",
        "jfif_unit",
        "jfif_density",
        "progression",
        "progressive",
        "dpi",
    }
    assert np.array_equal(pixels(cleaned), pixels(file))


@pytest.mark.parametrize("name", SECRETIVE)
def test_what_is_hidden_behind_a_picture_is_gone(name):
    """Polyglots: a page or an archive after the picture's end."""
    file = SECRETIVE[name] + b"PK\x03\x04<script>alert(1)</script>" + SECRET
    cleaned = clean(file)
    assert b"<script>" not in cleaned
    assert SECRET not in cleaned
    assert np.array_equal(pixels(cleaned), pixels(file))


@pytest.mark.parametrize("name", SECRETIVE)
def test_cleaning_twice_changes_nothing(name):
    once = clean(SECRETIVE[name])
    assert clean(once) == once


def test_segments_that_a_jpeg_needs_hold_nothing_else():
    """A JFIF thumbnail, and an Adobe segment that is longer than it is."""
    file = encoded(picture(), "JPEG")
    for marker, content in ((0xE0, b"JFIF\0\1\1\0\0\1\0\1\6\1" + SECRET), (0xEE, b"Adobe\0\x64\0\0\0\0\1" + SECRET)):
        segment = struct.pack(">BBH", 0xFF, marker, len(content) + 2) + content
        cleaned = clean(file[:2] + segment + file[2:])
        assert SECRET not in cleaned
        assert np.array_equal(pixels(cleaned), pixels(file))


def test_a_jpeg_in_cmyk_keeps_its_colours():
    file = encoded(picture("CMYK"), "JPEG", comment=SECRET)
    assert np.array_equal(pixels(clean(file), "RGB"), pixels(file, "RGB"))


@pytest.mark.parametrize("format_", ["PNG", "JPEG", "WEBP"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_pictures_are_set_upright(format_, orientation):
    options = {"PNG": {}, "JPEG": {"quality": 100, "subsampling": 0}, "WEBP": {"lossless": True}}[format_]
    file = encoded(picture(), format_, exif=exif_with(orientation), **options)
    stored = Image.fromarray(pixels(file, "RGB"))
    turns = {
        2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180, 4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE, 6: Image.Transpose.ROTATE_270, 7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_90,
    }  # fmt: skip
    upright = stored.transpose(turns[orientation]) if orientation > 1 else stored
    cleaned = clean(file)
    assert np.array_equal(pixels(cleaned, "RGB"), np.asarray(upright))
    assert not opened(cleaned).getexif()


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "I;16"])
def test_png_modes_and_transparency_stay(mode):
    image = Image.fromarray(np.arange(1024, dtype=np.uint16).reshape(32, 32) * 64) if mode == "I;16" else picture(mode)
    cleaned = opened(clean(encoded(image, "PNG")))
    assert cleaned.mode == mode
    assert np.array_equal(np.asarray(cleaned), np.asarray(image))


@pytest.mark.parametrize("transparency", [3, bytes(range(256))])
def test_a_palettes_transparency_stays(transparency):
    file = encoded(picture("P"), "PNG", transparency=transparency)
    assert np.array_equal(pixels(clean(file)), pixels(file))


def test_a_masks_colours_under_its_transparency_stay():
    mask = picture("RGBA")
    mask.putalpha(Image.new("L", mask.size, 0))
    for format_, options in (("PNG", {}), ("WEBP", {"lossless": True, "exact": True})):
        assert np.array_equal(pixels(clean(encoded(mask, format_, **options))), np.asarray(mask))


@pytest.mark.parametrize("format_", ["GIF", "WEBP", "PNG"])
def test_of_an_animation_the_first_picture_is_taken(format_):
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
    options = {"lossless": True} if format_ == "WEBP" else {}
    cleaned = opened(clean(encoded(frames[0], format_, save_all=True, append_images=frames[1:], **options)))
    assert getattr(cleaned, "n_frames", 1) == 1
    assert cleaned.convert("RGB").getpixel((0, 0)) == (255, 0, 0)


def test_colours_of_another_profile_become_srgb():
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB"))
    plain = encoded(picture(), "PNG", icc_profile=profile.tobytes())
    assert np.array_equal(pixels(clean(plain)), pixels(plain))
    assert "icc_profile" not in opened(clean(plain)).info
    # Swap the profile's red and green primaries: red pixels then mean green.
    swapped = profile.tobytes().replace(b"rXYZ", b"tmp!").replace(b"gXYZ", b"rXYZ").replace(b"tmp!", b"gXYZ")
    swapped = swapped.replace("sRGB".encode("utf-16-be"), "xRGB".encode("utf-16-be")).replace(b"sRGB", b"xRGB")
    for mode, format_ in (("RGB", "PNG"), ("RGBA", "PNG"), ("RGB", "JPEG")):
        red = encoded(
            Image.new(mode, (16, 16), (255, 0, 0) if mode == "RGB" else (255, 0, 0, 77)), format_, icc_profile=swapped
        )
        cleaned = opened(clean(red))
        assert "icc_profile" not in cleaned.info
        assert cleaned.getpixel((8, 8))[1] > 200
        assert cleaned.getpixel((8, 8))[0] < 60
        assert mode != "RGBA" or cleaned.getpixel((8, 8))[3] == 77


def test_a_damaged_profile_is_dropped():
    file = encoded(picture(), "PNG", icc_profile=b"nonsense")
    assert np.array_equal(pixels(clean(file)), pixels(file))


def bomb(width, height):
    """A PNG of a few bytes whose header says it is huge."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(bytes(100))) + chunk(b"IEND", b"")


@pytest.mark.parametrize("size", [(10_000, 5_001), (10_000, 10_000), (60_000, 60_000), (2**31 - 1, 1)])
def test_too_many_pixels_are_refused_before_any_is_decoded(size):
    with pytest.raises(PictureError, match="more than 50 megapixels"):
        clean(bomb(*size))


def test_limits_are_the_callers():
    file = encoded(picture(), "PNG")
    with pytest.raises(PictureError, match=r"image 2 has more than 0.001 megapixels"):
        clean(file, "image 2", PictureLimits(max_pixels=1000))
    with pytest.raises(PictureError, match="MB"):
        clean(file, limits=PictureLimits(max_bytes=len(file) - 1))


@pytest.mark.parametrize("name", SECRETIVE)
def test_damaged_files_are_refused_in_words(name):
    """Cut and with bytes changed: an error in words or a picture, never anything else."""
    file = SECRETIVE[name]
    random = np.random.default_rng(3)
    for _ in range(500):
        damaged = bytearray(file[: random.integers(len(file) // 2, len(file) + 1)])
        for place in random.integers(0, len(damaged), random.integers(1, 6)):
            damaged[place] = random.integers(256)
        try:
            cleaned = clean(bytes(damaged))
        except PictureError:
            continue
        opened(cleaned)


@pytest.mark.parametrize("format_", ["PNG", "JPEG", "WEBP", "GIF"])
def test_a_picture_is_measured_and_one_cut_short_is_not(format_):
    file = encoded(picture(), format_)
    assert measure(file) == Size(48, 32)
    with pytest.raises(PictureError, match="damaged or cut short"):
        measure(file[: len(file) // 2])


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "I;16"])
def test_a_png_is_measured_whatever_its_colours(mode):
    file = encoded(Image.new(mode, (48, 32)), "PNG")
    assert measure(file) == size_of(file) == Size(48, 32)


def test_no_byte_of_a_png_changes_unnoticed():
    """Its picture's data have checksums, and so have its names; a cut is one anywhere."""
    file = encoded(picture(), "PNG")
    for place in range(8, len(file)):
        with pytest.raises(PictureError, match="damaged or cut short"):
            measure(file[:place] + bytes([file[place] ^ 0x40]) + file[place + 1 :])
        with pytest.raises(PictureError, match="damaged or cut short"):
            measure(file[:place])


@pytest.mark.parametrize("header", [(48, 32, 3, 2), (48, 32, 8, 1), (0, 32, 8, 2), (48, 0, 8, 2)])
def test_a_png_of_a_kind_that_there_is_not_is_refused(header):
    chunks = ((b"IHDR", struct.pack(">IIBBBBB", *header, 0, 0, 0)), (b"IDAT", b""), (b"IEND", b""))
    file = b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in chunks
    )
    with pytest.raises(PictureError, match="damaged or cut short"):
        measure(file)


def test_the_limits_hold_for_what_is_only_measured():
    file = encoded(picture(), "PNG")
    with pytest.raises(PictureError, match="megapixels"):
        measure(file, limits=PictureLimits(max_pixels=1000))
    with pytest.raises(PictureError, match="MB"):
        measure(file, limits=PictureLimits(max_bytes=len(file) - 1))


def chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def plain(rows, *, header=(48, 32, 8, 2, 0, 0, 0), more=b"", after=b""):
    """A PNG of those rows, of zeros unless told otherwise, as some other program writes it."""
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", *header))
    return b"\x89PNG\r\n\x1a\n" + head + more + chunk(b"IDAT", zlib.compress(rows) + after) + chunk(b"IEND", b"")


ROWS = bytes(32 * (1 + 48 * 3))


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "I;16"])
def test_a_plain_png_keeps_its_compressed_pixels(mode):
    image = picture().convert(mode) if mode != "I;16" else Image.new(mode, (48, 32), 300)
    file = encoded(image, "PNG")
    cleaned = clean(file)
    assert zlib_data(cleaned) == zlib_data(file)
    assert np.array_equal(np.asarray(opened(cleaned)), np.asarray(opened(file)))
    assert clean(cleaned) == cleaned


def zlib_data(file):
    found, position = [], 8
    while position < len(file):
        length, kind = struct.unpack_from(">I4s", file, position)
        found += [file[position + 8 : position + 8 + length]] if kind == b"IDAT" else []
        position += 12 + length
    return b"".join(found)


def test_a_palette_and_its_transparency_are_kept():
    image = picture().convert("P")
    file = encoded(image, "PNG", transparency=3)
    assert np.array_equal(pixels(clean(file)), pixels(file))


@pytest.mark.parametrize(
    "file",
    [
        plain(ROWS, more=chunk(b"gAMA", struct.pack(">I", 45455)) + chunk(b"tIME", bytes(7))),
        plain(ROWS, more=chunk(b"seCr", SECRET)),
        plain(ROWS, more=chunk(b"tEXt", b"Comment\0" + SECRET)),
        plain(ROWS, after=SECRET),
        plain(ROWS + SECRET),
        plain(ROWS, more=chunk(b"PLTE", bytes(768)) + chunk(b"tRNS", SECRET * 20)),
    ],
    ids=["colours", "private", "text", "after the pixels", "more rows", "too long"],
)
def test_nothing_but_pixels_is_left_of_a_png_wherever_else_something_stood(file):
    try:
        cleaned = clean(file)
    except PictureError:
        return
    assert SECRET not in cleaned
    assert SECRET not in zlib.decompress(zlib_data(cleaned))
    assert {b"gAMA", b"tIME", b"seCr", b"tEXt"}.isdisjoint(cleaned[place : place + 4] for place in range(len(cleaned)))
    assert np.array_equal(pixels(cleaned, "RGB"), np.zeros((32, 48, 3), np.uint8))


@pytest.mark.parametrize(
    "file",
    [
        plain(ROWS[:-200]),
        plain(b"\x07" + ROWS[1:]),
        plain(ROWS)[:-40],
        plain(ROWS, header=(48, 32, 8, 3, 0, 0, 0)),
        plain(ROWS, header=(48, 32, 8, 2, 0, 0, 1)),
    ],
    ids=["rows missing", "no such filter", "cut short", "no palette", "interlaced"],
)
def test_what_is_not_a_whole_png_is_not_taken_for_one(file):
    try:
        cleaned = clean(file)
    except PictureError:
        return
    opened(cleaned)  # what Pillow makes of it, written anew
    assert zlib_data(cleaned) != zlib_data(file)


@pytest.mark.parametrize("options", [{"exif": exif_with(6)}, {"save_all": True, "append_images": [picture()]}])
def test_a_png_that_is_not_plain_is_written_anew(options):
    file = encoded(picture(), "PNG", **options)
    cleaned = clean(file)
    assert b"acTL" not in cleaned
    assert not opened(cleaned).getexif()
    assert opened(cleaned).size == ((32, 48) if "exif" in options else (48, 32))
