"""Where the server is and how it is spoken to: from arguments, else from the environment, read once."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from urllib.parse import urlsplit

from kleinbild import __version__
from kleinbild.core.errors import RequestError

DEFAULT_PORT = 8190
DEFAULT_URL = f"http://127.0.0.1:{DEFAULT_PORT}"
DEFAULT_TIMEOUT = 60.0
CONNECT_TIMEOUT = 5.0
URL_VARIABLE, KEY_VARIABLE = "KLEINBILD_BASE_URL", "KLEINBILD_API_KEY"


@dataclass(frozen=True, slots=True)
class Settings:
    """`timeout`: seconds that the server may be silent during one call. `max_retries` are beyond the first attempt."""

    base_url: str
    api_key: str | None = field(default=None, repr=False)
    timeout: float = DEFAULT_TIMEOUT
    max_retries: int = 2

    def headers(self, *, with_key: bool = True) -> dict[str, str]:
        """What every call has; the key is for the server alone."""
        about = {"User-Agent": f"kleinbild/{__version__}", "Accept": "application/json"}
        return {**about, "Authorization": f"Bearer {self.api_key}"} if with_key and self.api_key else about

    def is_ours(self, url: str) -> bool:
        """Whether `url` is the server's own, so that the key may go there."""
        return _origin(url) == _origin(self.base_url)


def settle(
    base_url: str | None,
    api_key: str | None,
    timeout: float,
    max_retries: int,
    environment: Mapping[str, str] = os.environ,
) -> Settings:
    """The settings, what is None from the environment. Raises RequestError for what cannot be meant."""
    url = base_url or environment.get(URL_VARIABLE) or DEFAULT_URL
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise RequestError(f"{url!r} is not a server's address", f"for example {DEFAULT_URL}")
    if not timeout > 0:
        raise RequestError(f"timeout is {timeout!r}", "give seconds, more than 0")
    if max_retries < 0:
        raise RequestError(f"max_retries is {max_retries!r}", "give 0 or more")
    # OpenAI's clients want the /v1 in the address; whoever brings that one means the same server.
    return Settings(
        url.rstrip("/").removesuffix("/v1"), api_key or environment.get(KEY_VARIABLE) or None, timeout, max_retries
    )


def _origin(url: str) -> tuple[str, str | None, int | None]:
    parts = urlsplit(url)
    return parts.scheme, parts.hostname, parts.port or {"http": 80, "https": 443}.get(parts.scheme)
