"""Webhooks of services that work is taken on by: whether one is genuine, which work it tells of, and who is woken by it.

They are hints. Whoever gets one polls the work at once; nothing that it says is believed, so that one that is repeated,
late or lost changes nothing. Each `verify_…` gives the service's id of the work, or raises HookError.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import hashlib
import hmac
import json
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from kleinbild.core.errors import KleinbildError
from kleinbild.providers.hosted import Handle

TOLERANCE_SECONDS = 300.0
"""How far a webhook's time may be from ours, either way."""
FAL_KEYS_URL = "https://rest.fal.ai/.well-known/jwks.json"
KEPT_SECONDS = 24 * 3600.0
"""For which keys may be kept: fal says so."""
FRESH_SECONDS = 300.0
"""For which keys are not asked for again although a signature fits none of them."""
MAX_EARLY = 256
"""Works that were told of before anybody waited for them."""


class HookError(KleinbildError):
    """A webhook that is not the service's, or not one that can be read."""


class Bells:
    """Who waits for which work, of all providers, by the service's id of it."""

    def __init__(self) -> None:
        self._waiting: dict[tuple[str, str], set[asyncio.Event]] = {}
        self._early: OrderedDict[tuple[str, str], None] = OrderedDict()

    @contextmanager
    def waiting(self, provider: str, work: str) -> Iterator[asyncio.Event]:
        """Within, the event is set whenever the work is told of; at once if it was already."""
        key, event = (provider, work), asyncio.Event()
        if key in self._early:
            del self._early[key]
            event.set()
        self._waiting.setdefault(key, set()).add(event)
        try:
            yield event
        finally:
            self._waiting[key].discard(event)
            if not self._waiting[key]:
                del self._waiting[key]

    def ring(self, provider: str, work: str) -> bool:
        """Whether anybody waited. That of which nobody knows yet is kept for a while: an answer may be on its way."""
        key = (provider, work)
        for event in self._waiting.get(key, ()):
            event.set()
        if key in self._waiting:
            return True
        self._early[key] = None
        if len(self._early) > MAX_EARLY:
            self._early.popitem(last=False)
        return False


Verify = Callable[[bytes, Mapping[str, str]], Awaitable[str]]
"""From a webhook's body and headers to the service's id of the work. Raises HookError, and what fetching keys raises."""


@dataclass(slots=True, eq=False)
class Hook:
    """Where a service of the name `provider` is to call back. `secret` goes along where a service wants it with each request
    (BFL)."""

    provider: str
    url: str
    verify: Verify
    secret: str | None = None
    bells: Bells = field(default_factory=Bells)


@contextmanager
def woken(hook: Hook | None, handle: Handle) -> Iterator[asyncio.Event | None]:
    """What is set when the work of the handle is told of; None if no webhook will come."""
    if hook is None:
        yield None
        return
    with hook.bells.waiting(hook.provider, str(handle.get("id"))) as event:
        yield event


class FalKeys:
    """fal's published keys, as `fetch` gets them: for a day, and anew, but not often, if none fits a signature."""

    def __init__(self, fetch: Callable[[], Awaitable[bytes]], clock: Callable[[], float] = time.time) -> None:
        self._fetch, self._clock = fetch, clock
        self._keys: Mapping[str, Any] = {}
        self._at: float | None = None
        self._fetching = asyncio.Lock()

    async def verify(self, body: bytes, headers: Mapping[str, str]) -> str:
        """Raises HookError, and what `fetch` raises."""
        keys = await self._kept(KEPT_SECONDS)
        try:
            return verify_fal(body, headers, keys, now=self._clock)
        except HookError:
            newer = await self._kept(FRESH_SECONDS)
            if newer is keys:
                raise
            return verify_fal(body, headers, newer, now=self._clock)

    async def _kept(self, seconds: float) -> Mapping[str, Any]:
        """The keys, no older than these seconds."""
        async with self._fetching:
            if self._at is None or self._clock() - self._at > seconds:
                self._keys, self._at = _keys(await self._fetch()), self._clock()
            return self._keys


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


def _keys(text: bytes) -> Mapping[str, Any]:
    try:
        found = json.loads(text)
    except ValueError as error:
        raise HookError("the service's keys cannot be read") from error
    if not isinstance(found, dict) or not isinstance(found.get("keys"), list):
        raise HookError("the service's keys cannot be read")
    return found


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
