"""`POST /hooks/{provider}`: a service tells that work of ours is done. It has no key of ours, but signs what it sends.

Whoever waits for that work asks the service at once how it is; nothing that is told here is believed (`providers.hooks`).
"""

from __future__ import annotations

import logging

from fastapi import APIRouter, Request
from fastapi.responses import Response

from kleinbild.core.errors import DestinationError, FetchError
from kleinbild.gateway.described import ERRORS
from kleinbild.gateway.errors import ApiError, not_found
from kleinbild.gateway.services import services_of
from kleinbild.providers.hooks import HookError

MAX_BYTES = 4_000_000
"""A service sends the request back, too, with the small ones of its pictures in it."""
router = APIRouter(tags=["hooks"])
log = logging.getLogger(__name__)


@router.post(
    "/hooks/{provider}",
    status_code=204,
    response_class=Response,
    responses=ERRORS,
    openapi_extra={"requestBody": {"content": {"application/json": {"schema": {"type": "object"}}}}},
)
async def told(provider: str, request: Request) -> Response:
    """A service tells that work is done. Work that nobody waits for, any more or yet, changes nothing."""
    fleet = services_of(request).fleet
    hook = fleet.hooks.get(provider)
    if hook is None:
        raise not_found("provider", provider)
    body = await _body(request)
    try:
        work = await hook.verify(body, request.headers)
    except HookError as error:
        log.warning("a webhook for %s was refused: %s", provider, error.message)
        raise ApiError(401, f"{error.message}.", code="invalid_signature") from error
    except (DestinationError, FetchError) as error:
        log.warning("the keys of webhooks of %s cannot be fetched: %s", provider, error.message)
        raise ApiError(
            503, "What signs this cannot be checked just now.", type="server_error", headers={"Retry-After": "60"}
        ) from error
    fleet.bells.ring(provider, work)
    return Response(status_code=204)


async def _body(request: Request) -> bytes:
    """Raises ApiError, 413."""
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > MAX_BYTES:
            raise ApiError(413, f"The body is larger than {MAX_BYTES:,} bytes.", code="body_too_large")
    return bytes(body)
