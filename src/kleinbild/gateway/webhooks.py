"""Events to the endpoints that callers registered: signed, sent once; when to try again is `RETRY_SECONDS`.

Signatures are those of Standard Webhooks (https://www.standardwebhooks.com), by its own package, and beside them, for
BFL's clients, theirs. Secrets are kept sealed with AES-256-GCM, each bound to its endpoint.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import os
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Literal

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from standardwebhooks import Webhook

from kleinbild.core.errors import DestinationError, FetchError, KleinbildError
from kleinbild.safety.fetch import Fetcher
from kleinbild.storage.webhooks import Endpoint

MINUTE, HOUR = 60, 3600
RETRY_SECONDS = (0, 5, 5 * MINUTE, 30 * MINUTE, 2 * HOUR, 5 * HOUR, 10 * HOUR, 14 * HOUR, 20 * HOUR, 24 * HOUR)
"""How long to wait before each attempt, counted from the one before it: Standard Webhooks' schedule. Then give up."""

OVERLAP_SECONDS = 24 * HOUR
"""How long the secret before the last rotation signs beside the new one."""
MAX_PAYLOAD_BYTES = 20_000
BFL_HEADER = "x-bfl-signature"

_PREFIX = "whsec_"
_SECRET_BYTES = 32
_NONCE_BYTES = 12
_GONE = 410


class SealError(KleinbildError):
    """A sealed secret that this server's key does not open."""


@dataclass(frozen=True, slots=True)
class Receiver:
    """Where an event goes, and the secrets that sign it, the newest first; they are in no representation."""

    url: str
    secrets: tuple[str, ...] = field(repr=False)


@dataclass(frozen=True, slots=True)
class WebhookEvent:
    """What happened to the job `subject`. `id` is the same for every attempt; `data` is small, without pictures."""

    id: str
    type: str
    created_at: float
    subject: str
    data: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Attempt:
    """What came of sending once: `gone` asks never to be sent anything again. `status` is None without an answer."""

    outcome: Literal["delivered", "retry", "gone"]
    status: int | None = None


async def deliver_once(receiver: Receiver, event: WebhookEvent, *, client: Fetcher, now: float) -> Attempt:
    """Sends `event` signed as of `now`. No answer, any redirect and any error are `retry`; nothing is raised for them."""
    body = payload(event)
    headers = {"content-type": "application/json", **sign(receiver.secrets, event.id, now, body)}
    return await send_once(receiver.url, body, headers, client=client)


async def send_once(url: str, body: bytes, headers: Mapping[str, str], *, client: Fetcher) -> Attempt:
    """Posts a body that is signed already."""
    try:
        status = await client.post(url, body, headers)
    except (DestinationError, FetchError):
        return Attempt("retry")
    if 200 <= status < 300:
        return Attempt("delivered", status)
    return Attempt("gone" if status == _GONE else "retry", status)


def payload(event: WebhookEvent) -> bytes:
    """The body: Standard Webhooks' three fields and those of OpenAI's events. Data that make it too large are left out
    but for the id to ask for them with."""
    at = datetime.fromtimestamp(event.created_at, UTC)
    fields: dict[str, Any] = {
        "id": event.id,
        "object": "event",
        "type": event.type,
        "created_at": int(event.created_at),
        "timestamp": at.isoformat(timespec="milliseconds").replace("+00:00", "Z"),
        "data": event.data,
    }
    body = _json(fields)
    return body if len(body) < MAX_PAYLOAD_BYTES else _json({**fields, "data": {"id": event.subject}})


def _json(fields: Mapping[str, Any]) -> bytes:
    return json.dumps(fields, ensure_ascii=False, separators=(",", ":")).encode()


def sign(signing: Sequence[str], event_id: str, now: float, body: bytes) -> dict[str, str]:
    """Standard Webhooks' three headers, with a signature by each of the secrets."""
    at = datetime.fromtimestamp(int(now), UTC)
    signatures = [Webhook(secret).sign(event_id, at, body.decode()) for secret in signing]
    return {
        "webhook-id": event_id,
        "webhook-timestamp": str(int(now)),
        "webhook-signature": " ".join(signatures),
    }


def sign_for_bfl(secret: str, body: bytes) -> dict[str, str]:
    """BFL's header: the secret is what the client gave, as it is."""
    return {BFL_HEADER: "sha256=" + hmac.new(secret.encode(), body, hashlib.sha256).hexdigest()}


def new_secret() -> str:
    return _PREFIX + base64.b64encode(secrets.token_bytes(_SECRET_BYTES)).decode()


def seal(secret: str, webhook_id: str, key: bytes) -> str:
    """`secret` as it is stored: of use only with `key` (32 bytes) and for this endpoint."""
    nonce = os.urandom(_NONCE_BYTES)
    return base64.b64encode(nonce + AESGCM(key).encrypt(nonce, secret.encode(), webhook_id.encode())).decode()


def unseal(sealed: str, webhook_id: str, key: bytes) -> str:
    data = base64.b64decode(sealed)
    try:
        return AESGCM(key).decrypt(data[:_NONCE_BYTES], data[_NONCE_BYTES:], webhook_id.encode()).decode()
    except InvalidTag as error:
        raise SealError(
            f"the secret of {webhook_id} was sealed with another key", "bring the server's master secret back"
        ) from error


def receiver_of(endpoint: Endpoint, key: bytes, now: float) -> Receiver:
    """Where to send what is for `endpoint`, with the secrets that sign at `now`."""
    sealed = [endpoint.secret]
    if endpoint.previous_secret is not None and (endpoint.previous_until or 0) > now:
        sealed.append(endpoint.previous_secret)
    return Receiver(endpoint.url, tuple(unseal(secret, endpoint.id, key) for secret in sealed))
