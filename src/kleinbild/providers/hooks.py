"""Webhooks of services that work is taken on by: whether one is genuine, and which work it tells of.

They are hints. Whoever gets one polls the work at once; nothing that it says is believed, so that one that is repeated,
late or lost changes nothing. Each function gives the service's id of the work, or raises HookError.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import json
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from kleinbild.core.errors import KleinbildError

TOLERANCE_SECONDS = 300.0
"""How far a webhook's time may be from ours, either way."""


class HookError(KleinbildError):
    """A webhook that is not the service's, or not one that can be read."""


def verify_bfl(body: bytes, headers: Mapping[str, str], secret: str) -> str:
    """`secret` is what was given along as `webhook_secret`. There is no time in the signature."""
    told = _header(headers, "x-bfl-signature").removeprefix("sha256=")
    meant = hmac.new(secret.encode(), body, hashlib.sha256).hexdigest()
    if not hmac.compare_digest(told.encode(), meant.encode()):
        raise HookError("the webhook's signature does not fit")
    return _id(body, "id")


def verify_replicate(body: bytes, headers: Mapping[str, str], secret: str) -> str:
    """By Standard Webhooks. `secret` is the account's, `whsec_…`."""
    from standardwebhooks import Webhook, WebhookVerificationError

    lowered = {name.lower(): value for name, value in headers.items()}
    try:
        Webhook(secret).verify(body, lowered)
    except (WebhookVerificationError, ValueError) as error:
        raise HookError("the webhook's signature does not fit") from error
    return _id(body, "id")


def verify_fal(
    body: bytes, headers: Mapping[str, str], jwks: Mapping[str, Any], *, now: Callable[[], float] = time.time
) -> str:
    """By Ed25519. `jwks` are fal's published keys, any of which may have signed; they may be kept for a day."""
    from cryptography.exceptions import InvalidSignature

    names = ("request-id", "user-id", "timestamp", "signature")
    request_id, user_id, timestamp, signature = (_header(headers, f"x-fal-webhook-{name}") for name in names)
    try:
        signed, age = bytes.fromhex(signature), abs(now() - int(timestamp))
    except (ValueError, OverflowError) as error:
        raise HookError("the webhook's signature cannot be read") from error
    if age > TOLERANCE_SECONDS:
        raise HookError("the webhook is not of this time")
    message = "\n".join((request_id, user_id, timestamp, hashlib.sha256(body).hexdigest())).encode()
    for key in _ed25519(jwks):
        try:
            key.verify(signed, message)
        except InvalidSignature:
            continue
        return _id(body, "request_id")
    raise HookError("the webhook's signature does not fit")


def _ed25519(jwks: Mapping[str, Any]) -> Iterator[Any]:
    """The keys of that kind; others are passed over."""
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

    for key in jwks.get("keys", ()):
        try:
            text = key["x"]
            yield Ed25519PublicKey.from_public_bytes(base64.urlsafe_b64decode(text + "=" * (-len(text) % 4)))
        except (KeyError, TypeError, ValueError, binascii.Error):
            continue


def _header(headers: Mapping[str, str], name: str) -> str:
    for given, value in headers.items():
        if given.lower() == name:
            return value
    raise HookError(f"the webhook has no {name}")


def _id(body: bytes, name: str) -> str:
    try:
        told = json.loads(body)[name]
    except (ValueError, TypeError, KeyError) as error:
        raise HookError(f"the webhook has no {name!r} in it") from error
    if not isinstance(told, str) or not told:
        raise HookError(f"the webhook has no {name!r} in it")
    return told
