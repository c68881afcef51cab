"""Pictures that come with a request, into the blob store: checked, cleaned of what they tell about people."""

from __future__ import annotations

import asyncio
import binascii
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING
from urllib.parse import unquote

import pybase64
from starlette.datastructures import UploadFile

from kleinbild.core.callers import Caller
from kleinbild.core.errors import KleinbildError, PictureError
from kleinbild.core.formats import MEDIA_TYPES
from kleinbild.core.jobs import PictureRef
from kleinbild.gateway.errors import ApiError, not_found
from kleinbild.gateway.wanted import MAX_REFERENCES, PictureSource
from kleinbild.safety.pictures import PictureLimits, clean, sniff
from kleinbild.storage import files
from kleinbild.storage.blobs import measured

if TYPE_CHECKING:
    from kleinbild.gateway.services import Services

HOUR = 3600.0
PIECE = 256 * 1024  # characters; a multiple of four
MAX_NAME = 255  # characters that are kept, from the end: a data URL can hold a name of megabytes


async def take_file(services: Services, upload: UploadFile, field: str) -> PictureRef:
    """Raises ApiError that names the `field`, for what is no picture."""
    with _about(field):
        return await _keep(services, await upload.read(), upload.filename or "")


async def take_sources(
    services: Services, caller: Caller, fields: Mapping[str, Sequence[PictureSource]]
) -> list[PictureRef]:
    """The pictures of all `fields`, in their order. Raises ApiError as `take_source` does, and for too many."""
    named = [(f"{field}.{i}", source) for field, sources in fields.items() for i, source in enumerate(sources)]
    require_few(len(named), next(iter(fields)))
    return [await take_source(services, caller, source, field) for field, source in named]


async def take_source(services: Services, caller: Caller, source: PictureSource, field: str) -> PictureRef:
    """Raises ApiError that names the `field`: for what is no picture or cannot be fetched, 404 for a file that is not the
    caller's."""
    with _about(field):
        return await _take(services, caller, source)


def require_few(num_pictures: int, field: str) -> None:
    """Raises ApiError that names the `field`."""
    if num_pictures > MAX_REFERENCES:
        message = f"{num_pictures} pictures were given; give at most {MAX_REFERENCES}, and a mask"
        raise ApiError(400, message, code="invalid_value", param=field)


@contextmanager
def _about(field: str) -> Iterator[None]:
    try:
        yield
    except KleinbildError as error:
        raise ApiError.of(error).about(field) from error
    except ApiError as error:
        raise error.about(field) from error


async def _take(services: Services, caller: Caller, source: PictureSource) -> PictureRef:
    if source.file_id is not None:
        async with services.database.read() as connection:
            file = await files.find(connection, source.file_id, caller.project, time.time())
        if file is None:
            raise not_found("file", source.file_id)
        return await _keep(services, await services.blobs.get(file.sha256), file.filename)
    url = source.image_url or ""
    if url.startswith("data:"):
        return await _keep(services, *await asyncio.to_thread(_data_of, url))
    async with await services.fetcher.fetch(url) as fetched:
        return await _keep(services, await fetched.read(), "")


async def _keep(services: Services, file: bytes, name: str) -> PictureRef:
    settings = services.settings
    limits = PictureLimits(int(settings.limits.max_image_mb * 1e6), int(settings.limits.max_image_megapixels * 1e6))
    cleaned = await asyncio.to_thread(clean, file, name or "the picture", limits)
    media_type = MEDIA_TYPES["jpeg" if sniff(cleaned) == "JPEG" else "png"]
    expires_at = time.time() + settings.storage.upload_hours * HOUR
    sha256 = await services.blobs.put(cleaned, media_type, expires_at)
    original = sha256 if cleaned is file else (await asyncio.to_thread(measured, file))[0]
    return PictureRef(sha256, name[-MAX_NAME:], original)


def _data_of(url: str) -> tuple[bytes, str]:
    """The file in a data URL, and the name that a parameter `name` gives it."""
    comma = url.find(",")
    _, *parameters = url[: max(comma, 0)].split(";")
    if not parameters or parameters[-1] != "base64":
        raise PictureError("a data URL must be base64", "write data:image/png;base64,…")
    name = next((unquote(each[5:]) for each in parameters if each.startswith("name=")), "")
    try:
        return decoded(url, comma + 1), name
    except (binascii.Error, ValueError) as error:
        raise PictureError(f"a data URL is not base64: {error}", "encode the file again") from error


def decoded(text: str, start: int = 0) -> bytes:
    """Of base64, from `start` on. A piece at a time, and joined once: whatever takes the whole of a large file in one go
    keeps the interpreter to itself for as long, and holds up all others."""
    files: list[bytes] = []
    for begin in range(start, len(text), PIECE):
        if files and len(files[-1]) != PIECE // 4 * 3:
            raise ValueError("padding within the text")
        files.append(pybase64.b64decode(text[begin : begin + PIECE], validate=True))
    return b"".join(files)
