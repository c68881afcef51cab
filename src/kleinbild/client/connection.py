"""The seam to the HTTP library: its arguments from our values, and its failures in our words."""

from __future__ import annotations

from collections.abc import Mapping
from ipaddress import ip_address
from typing import Any
from urllib.parse import urlsplit

import httpx2

from kleinbild.client.calls import Call, Reply
from kleinbild.client.errors import UnreachableError
from kleinbild.client.settings import CONNECT_TIMEOUT, Settings


def client_arguments(settings: Settings) -> dict[str, Any]:
    """For the library's client. A proxy from the environment is none for this very machine."""
    return {
        "base_url": settings.base_url,
        "timeout": httpx2.Timeout(settings.timeout, connect=min(CONNECT_TIMEOUT, settings.timeout)),
        "trust_env": not is_loopback(settings.base_url),
    }


def call_arguments(call: Call, settings: Settings) -> dict[str, Any]:
    """For one request."""
    headers = {**settings.headers(with_key=call.with_key), **call.headers}
    arguments: dict[str, Any] = {"method": call.method, "url": call.path, "headers": headers}
    if call.json is not None:
        arguments["json"] = call.json
    if call.params:  # an empty value would take the query of a signed URL away
        arguments["params"] = dict(call.params)
    if call.timeout is not None:
        arguments["timeout"] = call.timeout
    if call.file is not None:
        arguments["files"] = {"file": call.file}
        arguments["data"] = dict(call.form)
    return arguments


def reply_of(status: int, headers: Mapping[str, str], body: bytes) -> Reply:
    return Reply(status, {name.lower(): value for name, value in headers.items()}, body)


def unreachable(error: httpx2.HTTPError, settings: Settings) -> UnreachableError:
    """`error` in words."""
    if isinstance(error, httpx2.ConnectError | httpx2.ConnectTimeout):
        return UnreachableError(
            f"no server answers at {settings.base_url} ({error})",
            "start one with `kleinbild serve`, or give the address of another",
        )
    if isinstance(error, httpx2.TimeoutException):
        return UnreachableError(
            f"the server at {settings.base_url} was silent for {settings.timeout:g} s", "try again, or raise timeout"
        )
    return UnreachableError(
        f"the connection to {settings.base_url} broke ({type(error).__name__}: {error})", "try again"
    )


def is_loopback(url: str) -> bool:
    host = urlsplit(url).hostname or ""
    try:
        return host == "localhost" or ip_address(host).is_loopback
    except ValueError:
        return False
