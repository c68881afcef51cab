"""From a header to a caller. Most requests need no query: callers are remembered for a few seconds."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Annotated

from fastapi import Depends, Request

from kleinbild.core.callers import LOCAL, Caller
from kleinbild.gateway.bodies import discard_body
from kleinbild.gateway.errors import ApiError
from kleinbild.gateway.flow.origins import require_own_origin
from kleinbild.gateway.services import services_of
from kleinbild.gateway.settings import Settings
from kleinbild.storage import keys
from kleinbild.storage.database import Database, open_database

REMEMBERED_S = 5.0
MAX_REMEMBERED = 10_000
USE_NOTED_S = 60.0
NOBODY: Mapping[str, Caller] = {}


@dataclass(frozen=True, slots=True)
class _Remembered:
    caller: Caller
    until: float


class Authenticator:
    """Callers by their keys; those of the `configured` ones are known by digest. With `open_to_all` (loopback only), whoever
    asks while there are no keys is LOCAL."""

    def __init__(
        self,
        database: Database,
        secret: bytes,
        *,
        open_to_all: bool = False,
        configured: Mapping[str, Caller] = NOBODY,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._database, self._secret, self._clock = database, secret, clock
        self._configured = configured
        self._open = open_to_all and not configured
        self._open_until = 0.0
        self._remembered: dict[str, _Remembered] = {}

    async def caller(self, key: str | None) -> Caller:
        """Raises ApiError, 401, as OpenAI does for no key and for one that is not good."""
        if self._open and await self._there_are_no_keys():
            return LOCAL
        if key is None:
            raise _refused("You didn't provide an API key. Send it as a header: Authorization: Bearer kb_…")
        if self._configured and (known := self._configured.get(keys.digest(self._secret, key))) is not None:
            return known
        if not keys.FORM.fullmatch(key):
            raise _refused("Incorrect API key provided: it is none of this server's, which start with kb_.")
        digest = keys.digest(self._secret, key)
        remembered = self._remembered.get(digest)
        if remembered is not None and self._clock() < remembered.until:
            return remembered.caller
        return await self._look_up(digest, key[:11])

    def configure(self, callers: Mapping[str, Caller]) -> None:
        """From now on these are the configured ones."""
        self._configured = callers
        self._open = self._open and not callers

    def forget(self) -> None:
        """After a change of keys: it holds at once in this process, in others within `REMEMBERED_S`."""
        self._remembered.clear()
        self._open_until = 0.0

    async def _look_up(self, digest: str, prefix: str) -> Caller:
        now = self._clock()
        self._remembered.pop(digest, None)
        async with self._database.read() as connection:
            key = await keys.authenticate(connection, digest, now)
        if key is None:
            raise _refused(f"Incorrect API key provided: {prefix}… is unknown, expired or revoked.")
        if key.last_used_at is None or key.last_used_at < now - USE_NOTED_S:
            async with self._database.write() as connection:
                await keys.note_use(connection, key.id, now)
        if len(self._remembered) >= MAX_REMEMBERED:
            self._remembered.clear()
        until = min(now + REMEMBERED_S, key.rights.expires_at or float("inf"))
        self._remembered[digest] = _Remembered(key.caller(), until)
        return self._remembered[digest].caller

    async def _there_are_no_keys(self) -> bool:
        now = self._clock()
        if now < self._open_until:
            return True
        async with self._database.read() as connection:
            self._open = not await keys.any_exist(connection)  # once there was a key, it stays closed
        self._open_until = now + REMEMBERED_S
        return self._open


async def caller(request: Request) -> Caller:
    """Who asks, by `Authorization: Bearer`; a route depends on it. Raises ApiError, 401 or 403."""
    scheme, _, key = request.headers.get("authorization", "").partition(" ")
    return await _admitted(request, key.strip() if scheme.lower() == "bearer" and key.strip() else None)


Asking = Annotated[Caller, Depends(caller)]


async def still_admitted(request: Request) -> bool:
    """Whether the key of a request that goes on and on is still good."""
    try:
        await caller(request)
    except ApiError:
        return False
    return True


async def canceller(caller: Asking) -> Caller:
    """Who ends the making of pictures. Raises ApiError, 403, for a viewer."""
    require_member(caller, "cancel jobs")
    return caller


async def maker(request: Request, caller: Asking) -> Caller:
    """Who asks for pictures. Raises ApiError: 403 for a viewer, 429 if there is no room, before the body is read.

    Who has a key of idempotency may ask for what is there already, whether or not there is room.
    """
    require_member(caller, "make pictures")
    if "idempotency-key" not in request.headers:
        try:
            await services_of(request).admission.require_room(caller)
        except ApiError:
            await discard_body(request)
            raise
    return caller


Making = Annotated[Caller, Depends(maker)]
Cancelling = Annotated[Caller, Depends(canceller)]


async def caller_by_x_key(request: Request) -> Caller:
    """Who asks, by `x-key`, as BFL's clients send it; or as all others do."""
    key = request.headers.get("x-key")
    return await caller(request) if key is None else await _admitted(request, key)


async def maker_by_x_key(request: Request) -> Caller:
    """`caller_by_x_key`, who asks for pictures. Raises ApiError as `maker` does."""
    return await maker(request, await caller_by_x_key(request))


def require_member(caller: Caller, to: str) -> None:
    """Raises ApiError, 403, for a viewer, who may look and not `to` do this."""
    if not caller.may("member"):
        raise ApiError(403, f"A viewer may not {to}.", type="permission_error", code="role_not_allowed")


def require_admin(caller: Caller, to: str) -> None:
    """Raises ApiError, 403, for whoever is no admin."""
    if not caller.may("admin"):
        raise ApiError(403, f"Only an admin may {to}.", type="permission_error", code="role_not_allowed")


def require_model(caller: Caller, model: str, asked: str | None = None) -> None:
    """Raises ApiError, 403. Who may use a fine-tuned model may do so by the name that he `asked` for, too."""
    if caller.models is not None and model not in caller.models and asked not in caller.models:
        raise ApiError(
            403,
            f"This key may not use the model {model!r}; it may use {', '.join(caller.models) or 'none'}.",
            type="permission_error",
            code="model_not_allowed",
            param="model",
        )


def require_route(caller: Caller, path: str) -> None:
    """Raises ApiError, 403."""
    if caller.routes is not None and not any(keys.covers(route, path) for route in caller.routes):
        raise ApiError(
            403,
            f"This key may not use {path}; it may use {', '.join(caller.routes) or 'nothing'}.",
            type="permission_error",
            code="route_not_allowed",
        )


async def has_keys(settings: Settings) -> bool:
    """Whether any key was ever made for the server of these settings, or stands in them."""
    if settings.keys:
        return True
    file = settings.database_file
    if file and not file.exists():
        return False
    database = await open_database(settings.database_url)
    try:
        async with database.read() as connection:
            return await keys.any_exist(connection)
    finally:
        await database.close()


async def _admitted(request: Request, key: str | None) -> Caller:
    services = services_of(request)
    found = await services.authenticator.caller(key)
    if found == LOCAL:
        require_own_origin(request, services.settings.server)
    require_route(found, request.scope["path"])
    return found


def _refused(message: str) -> ApiError:
    return ApiError(401, message, code="invalid_api_key", headers={"WWW-Authenticate": "Bearer"})
