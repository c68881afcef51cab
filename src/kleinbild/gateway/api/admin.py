"""`/v1/admin`: keys and the audit log. What a role may see and change is written here, in one place each."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Annotated, Any, Literal, TypeVar

from fastapi import APIRouter, Query, Request
from fastapi.responses import JSONResponse, Response
from pydantic import BaseModel, ValidationError
from sqlalchemy.ext.asyncio import AsyncConnection

from kleinbild.core.callers import LOCAL, Caller, Role
from kleinbild.gateway import administer, allowances
from kleinbild.gateway.administer import (
    Action,
    ChangedKey,
    KeyObject,
    WantedKey,
    acting,
    audit_object,
    key_told,
    keys_told,
    rights_of,
    with_changes,
)
from kleinbild.gateway.bodies import read_json
from kleinbild.gateway.described import ERRORS, documented
from kleinbild.gateway.errors import ApiError, not_found, of_validation
from kleinbild.gateway.flow.authenticate import Asking, require_admin
from kleinbild.gateway.flow.make import payers_of
from kleinbild.gateway.opened import CONFIGURED
from kleinbild.gateway.services import Services, services_of
from kleinbild.gateway.tracing import request_id_of
from kleinbild.storage import audit, budgets, keys
from kleinbild.storage.keys import BeyondParentError, Key, MissingKeyError, Rights

router = APIRouter(prefix="/v1/admin", tags=["admin"])

CHANGEABLE: dict[Role, frozenset[str]] = {
    "viewer": frozenset(),
    "member": frozenset({"name", "role", "models", "routes", "limits", "expires_at", "policy"}),
    "admin": frozenset({"name", "role", "models", "routes", "limits", "expires_at", "policy", "budget"}),
}
"""What a caller of that role may change of other keys that he may change at all; of his own key only the name."""
CREATABLE: dict[Role, frozenset[str]] = {
    "viewer": frozenset(),
    "member": CHANGEABLE["member"] | {"project"},  # his own alone, as `keys.within` sees to
    "admin": CHANGEABLE["admin"] | {"project", "owner"},
}


class KeyList(BaseModel):
    object: Literal["list"]
    data: list[KeyObject]


class AuditObject(BaseModel):
    id: int
    object: Literal["audit_entry"]
    at: int
    actor: str
    action: str
    target: str
    details: dict[str, Any]
    request_id: str


class AuditList(BaseModel):
    object: Literal["list"]
    data: list[AuditObject]
    has_more: bool


@router.post("/keys", **documented(WantedKey, KeyObject, form=False, status=201, stream=False))
async def create(request: Request, caller: Asking) -> Response:
    """A key below the one that asks. It is told in this answer alone."""
    wanted = _read(WantedKey, await read_json(request))
    _require_allowed(wanted, CREATABLE[caller.role])
    services = services_of(request)
    async with _administering(services, request, caller, "key.create") as action:
        key, text = await _create(action, services.secrets.derive("api keys"), wanted, caller)
        told = await key_told(action.connection, key)
    return JSONResponse({**told, "key": text}, 201)


@router.get("/keys", responses={200: {"model": KeyList}, **ERRORS})
async def listing(request: Request, caller: Asking, project: str | None = None) -> Response:
    """The keys. An admin sees all keys, a member his own and those below it, a viewer his own."""
    async with services_of(request).database.read() as connection:
        below = None if caller.may("admin") else caller.id
        found = await keys.listed(connection, project=project, below=below)
        seen = [key for key in found if caller.may("member") or key.id == caller.id]
        return JSONResponse({"object": "list", "data": await keys_told(connection, seen)})


@router.get("/keys/{key_id}", responses={200: {"model": KeyObject}, **ERRORS})
async def one(request: Request, key_id: str, caller: Asking) -> Response:
    """A key, without itself."""
    with _in_words():
        async with services_of(request).database.read() as connection:
            return JSONResponse(await key_told(connection, await _seen(connection, caller, key_id)))


@router.patch("/keys/{key_id}", **documented(ChangedKey, KeyObject, form=False, stream=False))
async def change(request: Request, key_id: str, caller: Asking) -> Response:
    """Changes a key. Nobody changes what he himself may do or spend, or gives more than he has."""
    wanted = _read(ChangedKey, await read_json(request))
    async with _administering(services_of(request), request, caller, "key.change") as action:
        key = await _seen(action.connection, caller, key_id)
        allowed = CHANGEABLE[caller.role]
        _require_allowed(wanted, allowed & {"name"} if key.id == caller.id else allowed)
        rights = with_changes(key.rights, wanted)
        if caller != LOCAL:
            mine = await _rights(action.connection, caller)
            keys.require_within(rights, mine, keys.changed_fields(key.rights, rights))
        changed = await keys.change(action.connection, key.id, name=wanted.name, rights=rights)
        if "policy" in wanted.model_fields_set:
            changed = await keys.route_by(action.connection, key.id, wanted.policy)
        if "budget" in wanted.model_fields_set:
            await _require_within_his_budgets(action.connection, caller, key.id)
            await allowances.give(action.connection, key.id, wanted.budget)
        action.tell(key.id, wanted.model_dump(mode="json", exclude_unset=True))
        told = await key_told(action.connection, changed)
    return JSONResponse(told)


@router.delete("/keys/{key_id}", responses={200: {"model": KeyObject}, **ERRORS})
async def revoke(request: Request, key_id: str, caller: Asking) -> Response:
    """Revokes a key. It and all below it are good no longer. It stays in the list."""
    async with _administering(services_of(request), request, caller, "key.revoke") as action:
        key = await _seen(action.connection, caller, key_id)
        revoked = await keys.revoke(action.connection, key.id, time.time())
        action.tell(key.id, {})
        return JSONResponse(await key_told(action.connection, revoked))


@router.post("/keys/{key_id}/rotate", responses={200: {"model": KeyObject}, **ERRORS})
async def rotate(request: Request, key_id: str, caller: Asking) -> Response:
    """Another text for the same key; the one before is good no longer. Whoever rotates a key can use it, so nobody does
    with a key that may more than his own."""
    services = services_of(request)
    async with _administering(services, request, caller, "key.rotate") as action:
        key = await _seen(action.connection, caller, key_id)
        if caller != LOCAL and key.id != caller.id:
            await _require_within_his_budgets(action.connection, caller, key.id)
            mine = await _rights(action.connection, caller)
            keys.require_within(await keys.effective(action.connection, key.id), mine)
        rotated, text = await keys.rotate(action.connection, services.secrets.derive("api keys"), key.id)
        action.tell(key.id, {})
        told = await key_told(action.connection, rotated)
    return JSONResponse({**told, "key": text})


@router.get("/audit", responses={200: {"model": AuditList}, **ERRORS})
async def audited(
    request: Request,
    caller: Asking,
    limit: Annotated[int, Query(ge=1, le=1000)] = 100,
    after: Annotated[int | None, Query(ge=0, le=2**62)] = None,
) -> Response:
    """What was administered, newest first. For admins."""
    require_admin(caller, "read the audit log")
    async with services_of(request).database.read() as connection:
        found = await audit.newest(connection, limit=limit + 1, after=after)
    data = [audit_object(entry) for entry in found[:limit]]
    return JSONResponse({"object": "list", "data": data, "has_more": len(found) > limit})


async def _create(action: Action, secret: bytes, wanted: WantedKey, caller: Caller) -> tuple[Key, str]:
    if caller == LOCAL:
        return await administer.create(action, secret, wanted, None)
    if not _is_configured(caller):
        return await administer.create(action, secret, wanted, caller.id)
    if not caller.may("admin"):  # what it makes would outlive it, and count against nothing of it
        raise _forbidden("A key of the configuration makes keys only as an admin's.")
    key, text = await administer.create(action, secret, wanted, None, maker=caller)
    await _require_within_his_budgets(action.connection, caller, key.id)
    return key, text


async def _rights(connection: AsyncConnection, caller: Caller) -> Rights:
    """What he may give at most."""
    return rights_of(caller) if _is_configured(caller) else await keys.effective(connection, caller.id)


def _is_configured(caller: Caller) -> bool:
    """Then his key is in no database."""
    return caller.id.startswith(CONFIGURED)


@asynccontextmanager
async def _administering(services: Services, request: Request, caller: Caller, what: str) -> AsyncIterator[Action]:
    if not caller.may("member"):
        raise _forbidden("A viewer may look at his own key and change nothing.")
    with _in_words():
        async with acting(services.database, caller.id, what, request_id_of(request)) as action:
            yield action
    services.authenticator.forget()
    services.budgets.forget()


@contextmanager
def _in_words() -> Iterator[None]:
    try:
        yield
    except BeyondParentError as error:
        message = f"{error.message}; {error.hint}"
        raise ApiError(403, message, type="permission_error", code="beyond_parent", param=error.field) from error
    except MissingKeyError as error:
        raise ApiError(404, error.message, code="not_found") from error


async def _seen(connection: AsyncConnection, caller: Caller, key_id: str) -> Key:
    """Raises ApiError, 404, for a key that the caller may not know of, as for one that there is not."""
    key = await keys.find(connection, key_id)
    own = key.id == caller.id
    if own or caller.may("admin"):
        return key
    if caller.may("member") and await keys.is_below(connection, key_id, caller.id):
        return key
    raise not_found("key", key_id)


async def _require_within_his_budgets(connection: AsyncConnection, caller: Caller, key_id: str) -> None:
    """Whoever has a budget gets nothing beside it: neither from keys above his own, nor from those of others.

    What keys below his own spend, his budgets count anyway. Raises ApiError, 403.
    """
    if await keys.is_below(connection, key_id, caller.id):
        return
    payers = payers_of(caller)
    if any(budget.key in payers for budget in await budgets.listed(connection)):
        raise ApiError(
            403,
            "Your key has a budget: you may do this with keys below it alone.",
            type="permission_error",
            code="beyond_budget",
            param="budget",
        )


def _require_allowed(wanted: ChangedKey, allowed: frozenset[str]) -> None:
    for name in sorted(wanted.model_fields_set - allowed):
        raise ApiError(
            403,
            f"You may not set {name!r} here; you may set {', '.join(sorted(allowed)) or 'nothing'}.",
            type="permission_error",
            code="field_not_allowed",
            param=name,
        )


Body = TypeVar("Body", bound=BaseModel)


def _read(model: type[Body], values: Any) -> Body:
    try:
        return model.model_validate(values)
    except ValidationError as error:
        raise of_validation(error.errors()) from error


def _forbidden(message: str) -> ApiError:
    return ApiError(403, message, type="permission_error", code="role_not_allowed")
