"""Pictures by signed URLs that expire: `/v1/media/{sha256}.{format}?exp=…&sig=…`. Whoever has the URL needs no key."""

from __future__ import annotations

import base64
import hashlib
import hmac
import re
import time
from collections.abc import Callable
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import Response, StreamingResponse

from kleinbild.core.formats import MEDIA_TYPES, PictureFormat
from kleinbild.gateway.described import ERRORS
from kleinbild.gateway.errors import ApiError, not_found
from kleinbild.gateway.services import services_of
from kleinbild.storage.blobs import Blobs, MissingBlobError

_PICTURE = {known: {"schema": {"type": "string", "format": "binary"}} for known in MEDIA_TYPES.values()}
ANSWERS: dict[int | str, dict[str, Any]] = {
    200: {"description": "the picture", "content": _PICTURE},
    206: {"description": "the part of it that was asked for", "content": _PICTURE},
    304: {"description": "the client has it already"},
    416: {"description": "it is not that long"},
    **ERRORS,
}
router = APIRouter(tags=["media"])


class Media:
    """The signature is over path and expiry, not over the host: a proxy may put the server where it likes.

    `seconds` is how long a URL is good.
    """

    def __init__(self, secret: bytes, seconds: float, clock: Callable[[], float] = time.time) -> None:
        self._secret, self.seconds, self._clock = secret, seconds, clock

    def url(self, sha256: str, output_format: PictureFormat, base_url: str) -> str:
        """Absolute, under the URL by which clients reach this server."""
        path = f"/v1/media/{sha256}.{output_format}"
        expires = int(self._clock() + self.seconds)
        return f"{base_url}{path}?exp={expires}&sig={self._sign(path, expires)}"

    def seconds_left(self, path: str, expires: str, signature: str) -> int:
        """Raises ApiError, 403, for a URL that is not one of ours or no longer good."""
        known = re.fullmatch(r"[0-9]{1,12}", expires, re.ASCII)
        if not known or not hmac.compare_digest(self._sign(path, int(expires)).encode(), signature.encode()):
            raise _refused("This URL's signature is wrong; use it exactly as it was given.", "invalid_signature")
        left = int(expires) - int(self._clock())
        if left <= 0:
            raise _refused("This URL has expired; ask for the job again to get a new one.", "url_expired")
        return left

    def _sign(self, path: str, expires: int) -> str:
        mac = hmac.new(self._secret, f"{path}\n{expires}".encode(), hashlib.sha256).digest()
        return base64.urlsafe_b64encode(mac).rstrip(b"=").decode()


@router.get("/v1/media/{sha256}.{extension}", responses=ANSWERS, response_class=Response)
@router.head("/v1/media/{sha256}.{extension}", include_in_schema=False)
async def media(request: Request, sha256: str, extension: str, exp: str = "", sig: str = "") -> Response:
    """A picture. One range of bytes may be asked for."""
    services = services_of(request)
    left = services.media.seconds_left(f"/v1/media/{sha256}.{extension}", exp, sig)
    media_type = next((known for name, known in MEDIA_TYPES.items() if name == extension), None)
    if media_type is None:
        raise not_found("picture", f"{sha256}.{extension}")
    headers = _headers(sha256, extension, left)
    if headers["ETag"] in request.headers.get("if-none-match", ""):
        return Response(status_code=304, headers=headers)
    return await _served(request, services.blobs, sha256, media_type, headers)


async def _served(
    request: Request, blobs: Blobs, sha256: str, media_type: str, headers: dict[str, str]
) -> StreamingResponse | Response:
    try:
        whole = await blobs.stream(sha256)
        part = _range(request.headers.get("range", ""), whole.num_bytes)
        if part is None:
            headers |= {"Content-Length": str(whole.num_bytes)}
            return _answer(request, StreamingResponse(whole.chunks, 200, headers, media_type))
        start, end = part
        if start >= end:
            return Response(status_code=416, headers={"Content-Range": f"bytes */{whole.num_bytes}"})
        headers |= {"Content-Length": str(end - start), "Content-Range": f"bytes {start}-{end - 1}/{whole.num_bytes}"}
        chunks = (await blobs.stream(sha256, start, end)).chunks
        return _answer(request, StreamingResponse(chunks, 206, headers, media_type))
    except MissingBlobError as error:
        raise not_found("picture any more, or there never was:", sha256) from error


def _answer(request: Request, answer: StreamingResponse) -> Response:
    """Without the body if only the head was asked for."""
    if request.method == "HEAD":
        return Response(status_code=answer.status_code, headers=dict(answer.headers))
    return answer


def _headers(sha256: str, extension: str, seconds_left: int) -> dict[str, str]:
    return {
        "ETag": f'"{sha256}"',
        "Cache-Control": f"private, max-age={seconds_left}, immutable",
        "Content-Disposition": f'inline; filename="{sha256[:16]}.{extension}"',
        "X-Content-Type-Options": "nosniff",
        "Accept-Ranges": "bytes",
    }


def _range(header: str, num_bytes: int) -> tuple[int, int] | None:
    """First byte and the one after the last; None for no range, or for several, which may be answered with the whole."""
    match = re.fullmatch(r"bytes=([0-9]{0,18})-([0-9]{0,18})", header.strip(), re.ASCII)
    if match is None or match.group() == "bytes=-":
        return None
    first, last = match[1], match[2]
    if not first:
        return max(0, num_bytes - int(last)), num_bytes
    return int(first), min(num_bytes, int(last) + 1) if last else num_bytes


def _refused(message: str, code: str) -> ApiError:
    return ApiError(403, message, type="permission_error", code=code)
