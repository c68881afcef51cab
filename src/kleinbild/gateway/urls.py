"""How clients reach this server."""

from __future__ import annotations

from fastapi import Request

from kleinbild.gateway.services import services_of


def base_url(request: Request) -> str:
    """Without a slash at its end: as configured, else as this request came."""
    configured = services_of(request).settings.server.public_url
    return (configured or str(request.base_url)).rstrip("/")
