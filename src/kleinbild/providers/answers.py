"""What services say in JSON: their answers, and their errors in words for callers and, unabridged, for the operator.

A service's own words may hold its addresses, the operator's key or the names of his accounts. Callers read them only
where their own request is what is wrong, and without all that; else they read ours.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import httpx2
from pydantic_core import from_json

from kleinbild.core.threads import on_bytes
from kleinbild.providers.delivered import bad_answer
from kleinbild.providers.hosted import Cause, ProviderError
from kleinbild.providers.wire import UNSURE, cause_of, usual_error

MAX_QUOTED = 300
IN_OUR_WORDS: Mapping[Cause, str] = {
    "credentials": "the service does not let this server in",
    "credit": "this server has no credit left at the service",
    "moderated": "the service's safety system refused the request",
    "not_found": "the service has no such model",
    "overloaded": "the service is overloaded or broken",
    "rate_limited": "the service takes no more requests for now",
    "timeout": "the service did not finish in time",
}
_URL = re.compile(r"[a-z][a-z0-9+.-]*://\S+", re.IGNORECASE)
_NAME = re.compile(r"\b(?:sk|pk|rk|org|proj|user)[-_][\w.*-]{4,}")
"""Keys, organisations, projects and users, as OpenAI and others name them."""


@dataclass(frozen=True, slots=True)
class Said:
    """An error as the service tells it. `stage` is what was moderated, "input" or "output", where that is said."""

    message: str = ""
    code: str = ""
    type: str = ""
    stage: str = ""

    def __str__(self) -> str:
        return " ".join(part for part in (self.code or self.type, self.message) if part)


def said(body: object, secret: str | None = None) -> Said:
    """Of `{"error": {"message", "type", "code"}}`, as OpenAI and those who follow it; `{"name", "errors"}` or
    `{"name", "message"}`, Stability's; and `{"detail"}`. Never fails: of anything else nothing was said. `secret` is the
    key, which is left out wherever it stands."""

    def text(value: object) -> str:
        return _without(secret, _text(value))

    if not isinstance(body, dict):
        return Said()
    error = body.get("error", body)
    if not isinstance(error, dict):
        return Said(text(error))
    details = error.get("moderation_details")
    return Said(
        message=text(error.get("message")) or text(error.get("errors")) or text(error.get("detail")),
        code=text(error.get("code")) or text(error.get("name")),
        type=text(error.get("type")),
        stage=text(details.get("moderation_stage")) if isinstance(details, dict) else "",
    )


def error_in(response: httpx2.Response, secret: str | None = None) -> Said:
    """What an answer of 400 or more says; nothing where it holds no JSON."""
    try:
        return said(json.loads(response.content), secret)
    except (ValueError, RecursionError):
        return Said()


def refusal(
    response: httpx2.Response,
    told: Said,
    *,
    cause: Cause | None = None,
    unsure: tuple[int, ...] = UNSURE,
) -> ProviderError:
    """`usual_error` in words that callers may read."""
    if response.status_code < httpx2.codes.BAD_REQUEST:
        return ProviderError(
            "the service sends its callers elsewhere",
            cause="bad_answer",
            acceptance="unknown",
            billed=None,
            status=response.status_code,
            detail="check the provider's base_url",
        )
    cause = cause or cause_of(response.status_code)
    message = IN_OUR_WORDS.get(cause, "the service does not take the request")
    if cause == "invalid" and told.message:
        message = f"{message}: {quoted(told.message, response.request.url.host)}"
    detail = str(told) or f"status {response.status_code}"
    return usual_error(response, message, cause=cause, unsure=unsure, detail=detail)


def quoted(text: str, host: str) -> str:
    """A service's words without its addresses, keys and names of accounts."""
    text = _NAME.sub("…", _URL.sub("…", text))
    domain = ".".join(host.split(".")[-2:]) if re.search(r"[a-z]", host) else host
    if domain:
        text = re.sub(rf"\S*{re.escape(domain)}\S*", "…", text, flags=re.IGNORECASE)
    return " ".join(text.split())[:MAX_QUOTED]


async def parsed(response: httpx2.Response) -> dict[str, Any]:
    """An answer of success, which may hold pictures. Raises ProviderError, "bad_answer"."""
    try:
        # Not the standard library's, which takes five times as long with pictures in it.
        body = await on_bytes(len(response.content), lambda: from_json(response.content))
    except ValueError as error:
        raise bad_answer("the service's answer cannot be read", "it is no JSON") from error
    if not isinstance(body, dict):
        raise bad_answer("the service's answer cannot be read", f"it is a JSON {type(body).__name__}")
    return body


def name_in(told: Mapping[str, Any], field: str) -> str:
    """Of work that was taken on: what it is found by. Raises ProviderError."""
    name = told.get(field)
    if not isinstance(name, str) or not name:
        raise bad_answer("the service took the work on without a name to find it by")
    return name


def inner(told: Mapping[str, Any], field: str) -> dict[str, Any]:
    """The object in an answer; empty if there is none, which tells nothing."""
    value = told.get(field)
    return value if isinstance(value, dict) else {}


def no_handles() -> ProviderError:
    """What `collect` of a service that answers in the request raises: it has nothing to be found again."""
    return ProviderError(
        "the service answers in the request and keeps nothing",
        cause="not_found",
        acceptance="unknown",
        billed=None,
    )


def _without(secret: str | None, text: str) -> str:
    return text.replace(secret, "…") if secret else text


def _text(value: object) -> str:
    if isinstance(value, list):
        return "; ".join(_text(each) for each in value)
    if isinstance(value, dict):
        return _text(value.get("msg"))
    return value if isinstance(value, str) else str(value) if isinstance(value, int) else ""
