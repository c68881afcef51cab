"""How clients reach this server."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fastapi import Request

from kleinbild.gateway.services import services_of

if TYPE_CHECKING:
    from kleinbild.gateway.services import Services


def base_url(request: Request) -> str:
    """Without a slash at its end: as configured, else as this request came."""
    return public_url(services_of(request)) or str(request.base_url).rstrip("/")


def public_url(services: Services) -> str | None:
    """Without a slash at its end, if it is configured: where there is no request to tell it by."""
    configured = services.settings.server.public_url
    return configured and configured.rstrip("/")
