"""Keys made, shown and audited: what the admin API and the command line have in common.

Who may do what is not decided here: over HTTP it is the caller's role (`api.admin`), at the command line whoever may
write into the server's data.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass, fields, replace
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field
from sqlalchemy.ext.asyncio import AsyncConnection

from kleinbild.core.callers import LOCAL, ROLES, Caller, Limits, Role
from kleinbild.gateway import allowances
from kleinbild.gateway.allowances import StandingObject, WantedBudget, standing_object
from kleinbild.gateway.configured import Policy
from kleinbild.storage import audit, keys
from kleinbild.storage.audit import Entry
from kleinbild.storage.budgets import Standing
from kleinbild.storage.database import Database
from kleinbild.storage.keys import Key, Rights

Name = Annotated[str, Field(min_length=1, max_length=128)]
Route = Annotated[str, Field(pattern=r"^/[A-Za-z0-9/._-]*$", max_length=256)]
Whole = Annotated[int | None, Field(ge=1, le=10**9, strict=True)]
Time = Annotated[int | None, Field(ge=0, le=10**11, strict=True)]


class LimitsObject(BaseModel):
    model_config = ConfigDict(extra="forbid")

    requests_per_minute: Whole = None
    images_per_minute: Whole = None
    concurrent_jobs: Whole = None
    megapixels_per_minute: Whole = None


class ChangedKey(BaseModel):
    """null is no limit, no budget, and the policy of the key above; what is left out stays as it is."""

    model_config = ConfigDict(extra="forbid")

    name: Name = ""
    role: Role = "member"
    models: list[Name] | None = None
    routes: list[Route] | None = None
    limits: LimitsObject = LimitsObject()
    expires_at: Time = None
    policy: Policy | None = None
    budget: WantedBudget | None = None


class WantedKey(ChangedKey):
    """What is left out is as the key's that asks."""

    name: Name
    owner: Name = ""
    project: Name = ""


class KeyObject(BaseModel):
    """`key` is told when it is made, and never again. `policy` and `budget` are its own, not those of keys above it."""

    id: str
    object: Literal["key"]
    key: str | None = None
    prefix: str
    name: str
    owner: str
    project: str
    role: Role
    models: list[str] | None
    routes: list[str] | None
    limits: LimitsObject
    policy: str | None
    budget: StandingObject | None
    parent: str | None
    created_at: int
    expires_at: int | None
    revoked_at: int | None
    last_used_at: int | None


@dataclass(slots=True)
class Action:
    """What is being done, in one transaction with its entry in the audit log."""

    connection: AsyncConnection
    entry: Entry

    def tell(self, target: str, details: dict[str, Any]) -> None:
        self.entry = replace(self.entry, target=target, details=details)


@asynccontextmanager
async def acting(database: Database, actor: str, what: str, request_id: str = "") -> AsyncIterator[Action]:
    """Keeps all of it, with its entry in the audit log, or, if anything is raised, nothing."""
    async with database.write() as connection:
        action = Action(connection, Entry(time.time(), actor, what, "", {}, request_id))
        yield action
        await audit.append(connection, action.entry)


async def inherited(connection: AsyncConnection, parent: str | None) -> tuple[Rights, str]:
    """What a key below `parent` (None: below none) may if nothing is said, and its owner. Raises MissingKeyError."""
    if parent is None:
        return Rights(LOCAL.project), LOCAL.owner
    rights = await keys.effective(connection, parent)
    role = min("member", rights.role, key=ROLES.index)
    return replace(rights, role=role), (await keys.find(connection, parent)).owner


async def create(
    action: Action, secret: bytes, wanted: WantedKey, parent: str | None, *, maker: Caller | None = None
) -> tuple[Key, str]:
    """The new key, and itself, for the only time. `maker` stands for a parent that is in no database.

    Raises BeyondParentError, MissingKeyError (of the parent).
    """
    if maker is None:
        rights, owner = await inherited(action.connection, parent)
    else:
        rights, owner = replace(rights_of(maker), role=min("member", maker.role, key=ROLES.index)), maker.owner
    key, text = await keys.create(
        action.connection,
        secret,
        name=wanted.name,
        owner=wanted.owner or owner,
        rights=replace(with_changes(rights, wanted), project=wanted.project or rights.project),
        parent=parent,
        policy=wanted.policy,
    )
    if maker is not None:
        keys.require_within(key.rights, rights_of(maker))
    if wanted.budget is not None:
        await allowances.give(action.connection, key.id, wanted.budget)
    action.tell(key.id, {**key_object(key), "budget": wanted.budget and wanted.budget.model_dump()})
    return key, text


def rights_of(caller: Caller) -> Rights:
    return Rights(caller.project, caller.role, caller.models, caller.routes, caller.limits)


def with_changes(rights: Rights, wanted: ChangedKey) -> Rights:
    """`rights` with what was given in place of what was."""
    values: dict[str, Any] = {
        "role": wanted.role,
        "models": None if wanted.models is None else tuple(wanted.models),
        "routes": None if wanted.routes is None else tuple(wanted.routes),
        "limits": Limits(**wanted.limits.model_dump()),
        "expires_at": wanted.expires_at,
    }
    return replace(rights, **{name: value for name, value in values.items() if name in wanted.model_fields_set})


async def keys_told(connection: AsyncConnection, found: Sequence[Key]) -> list[dict[str, Any]]:
    """The keys, each with its budget as it stands now."""
    standings = await allowances.standings(connection, time.time())
    return [key_object(key, standings.get(key.id)) for key in found]


async def key_told(connection: AsyncConnection, key: Key) -> dict[str, Any]:
    return key_object(key, await allowances.standing_of(connection, key.id, time.time()))


def key_object(key: Key, standing: Standing | None = None) -> dict[str, Any]:
    rights = key.rights
    return {
        "id": key.id,
        "object": "key",
        "prefix": key.prefix,
        "name": key.name,
        "owner": key.owner,
        "project": rights.project,
        "role": rights.role,
        "models": None if rights.models is None else list(rights.models),
        "routes": None if rights.routes is None else list(rights.routes),
        "limits": {f.name: getattr(rights.limits, f.name) for f in fields(Limits)},
        "policy": key.policy,
        "budget": None if standing is None else standing_object(standing),
        "parent": key.parent,
        "created_at": int(key.created_at),
        "expires_at": _whole(rights.expires_at),
        "revoked_at": _whole(key.revoked_at),
        "last_used_at": _whole(key.last_used_at),
    }


def audit_object(entry: Entry) -> dict[str, Any]:
    return {**asdict(entry), "at": int(entry.at), "object": "audit_entry"}


def _whole(seconds: float | None) -> int | None:
    return None if seconds is None else int(seconds)
