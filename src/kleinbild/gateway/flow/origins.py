"""Where a request may come from that needs no key: a page of another site must not use what only this user may.

A browser sends a form to any address, this machine's included, and a page whose name was made to point at loopback (DNS
rebinding) reads the answers, too. The first names another origin, the second another host.
"""

from __future__ import annotations

from urllib.parse import urlsplit

from fastapi import Request

from kleinbild.gateway.errors import ApiError
from kleinbild.gateway.settings import Server

SAFE = frozenset({"GET", "HEAD", "OPTIONS"})
"""Methods that change nothing; no other page can read their answers."""
LOOPBACK = frozenset({"localhost", "127.0.0.1", "::1"})


def require_own_origin(request: Request, server: Server) -> None:
    """Raises ApiError, 403, for a host that is not the server's, and for what a page of another site sends."""
    host = request.headers.get("host", "")
    public = server.public_url or ""
    if _name(f"//{host}") not in {*LOOPBACK, server.host.strip("[]").lower(), _name(public)} - {None}:
        raise _refused(f"This server is not {host!r}; without keys it answers to localhost and its public_url.", "host")
    if request.method in SAFE:
        return
    origin = request.headers.get("origin")
    own = origin is None or _place(origin) in {_place(f"{request.url.scheme}://{host}"), _place(public)} - {None}
    if not own or (origin is None and request.headers.get("sec-fetch-site", "none") not in ("none", "same-origin")):
        raise _refused("A page of another site may not use a server that asks for no key; make one.", "origin")


def _name(url: str) -> str | None:
    try:
        return urlsplit(url).hostname
    except ValueError:
        return None


def _place(url: str) -> tuple[str, str | None, int | None] | None:
    """Scheme, host and port; None for what has none, such as the origin `null`."""
    try:
        parts = urlsplit(url)
        port = parts.port or {"http": 80, "https": 443}.get(parts.scheme)
    except ValueError:
        return None
    return (parts.scheme, parts.hostname, port) if parts.hostname else None


def _refused(message: str, what: str) -> ApiError:
    return ApiError(403, message, type="permission_error", code=f"{what}_not_allowed")
