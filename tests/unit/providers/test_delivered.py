import asyncio

import pytest

from kleinbild.core.sizes import Size
from kleinbild.providers.delivered import checked, from_base64, preview, size_notes
from kleinbild.providers.hosted import Fetched, ProviderError
from tests.unit.providers.pictures import in_base64, noise, picture


def refused(files, count=None):
    with pytest.raises(ProviderError) as caught:
        asyncio.run(checked(files, count))
    assert (caught.value.cause, caught.value.acceptance, caught.value.billed) == ("bad_answer", "accepted", None)
    return caught.value


@pytest.mark.parametrize("format_", ["PNG", "JPEG", "WEBP", "GIF"])
def test_a_picture_of_each_kind_is_taken_as_it_is(format_):
    file = picture(format_)
    assert asyncio.run(checked([file], 1)) == (Fetched(file, None),)


def test_seeds_go_with_their_pictures_as_far_as_they_are_known():
    files = [picture(colour=colour) for colour in ("red", "green", "blue")]
    pictures = asyncio.run(checked(files, 3, [7, None]))
    assert [(each.file, each.seed) for each in pictures] == [(files[0], 7), (files[1], None), (files[2], None)]


@pytest.mark.parametrize("count", [1, 2, 4])
def test_another_number_than_asked_for_is_a_bad_answer(count):
    refused([picture()] * 3, count)


def test_no_picture_is_a_bad_answer():
    refused([])


@pytest.mark.parametrize("format_", ["PNG", "JPEG", "WEBP", "GIF"])
def test_half_a_picture_is_a_bad_answer(format_):
    whole = noise(format_)
    refused([whole[: len(whole) // 2]])


@pytest.mark.parametrize(
    "file", [b"", b"<svg xmlns='http://www.w3.org/2000/svg'/>", b"<html>", b"%PDF-1.7", b"BM" * 99]
)
def test_what_is_no_raster_picture_is_a_bad_answer(file):
    refused([picture(), file])


def test_a_size_made_instead_is_told_once():
    pictures = [Fetched(picture(size=size)) for size in ((32, 24), (32, 24), (64, 48))]
    assert size_notes(pictures, Size(64, 48)) == ("the service made 32x24, not 64x48",)
    assert size_notes(pictures, None) == ()


@pytest.mark.parametrize("format_", ["PNG", "JPEG", "WEBP"])
def test_a_preview_is_a_png(format_):
    made = asyncio.run(preview(picture(format_)))
    assert made is not None
    assert made.startswith(b"\x89PNG")


def test_a_preview_keeps_its_transparency():
    made = asyncio.run(preview(picture("WEBP", mode="RGBA", colour="#ff000000")))
    assert made is not None
    assert made[25] == 6  # the colour type of RGB with alpha


def test_a_broken_preview_is_none():
    assert asyncio.run(preview(b"broken")) is None


@pytest.mark.parametrize("before", ["", "data:image/png;base64,"])
def test_base64_is_read_with_and_without_a_data_url(before):
    assert from_base64(before + in_base64(b"picture")) == b"picture"


@pytest.mark.parametrize("text", ["", None, 7, {}, "!", "YQ", "data:image/png;base64,YQ"])
def test_damaged_base64_is_a_bad_answer(text):
    with pytest.raises(ProviderError) as caught:
        from_base64(text)
    assert caught.value.cause == "bad_answer"
