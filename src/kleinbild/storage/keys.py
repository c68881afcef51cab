"""Keys: who may ask for what. The key itself is told once; what is kept is its keyed HMAC, by which it is found.

`within` is the one rule of what a key may at most: what its parent may, and so on up. It is applied when a key is made
or changed, where to want more is an error, and when a key is used, so that it also holds once a parent has been cut.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, Literal

from pydantic import TypeAdapter
from sqlalchemy import Row, exists, insert, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from kleinbild.core.callers import ROLES, Caller, Limits, Role
from kleinbild.core.errors import KleinbildError
from kleinbild.core.ids import new_id
from kleinbild.storage.schema import keys

FORM = re.compile(r"kb_[0-9a-z]{8}_[0-9a-z]{52}")
_ALPHABET = "0123456789abcdefghjkmnpqrstvwxyz"  # 5 bits a character: 52 are 260 bits
MAX_DEPTH = 5
NO_LIMITS = Limits()
State = Literal["good", "expired", "revoked"]
_LIMITS = TypeAdapter(Limits)


class BeyondParentError(KleinbildError):
    """`field` is more than the parent may give."""

    exit_code = 2

    def __init__(self, field: str, wanted: object, allowed: object) -> None:
        super().__init__(f"{field} {_shown(wanted)} is more than the parent key may give", f"it has {_shown(allowed)}")
        self.field = field


class MissingKeyError(KleinbildError):
    exit_code = 2


@dataclass(frozen=True, slots=True)
class Rights:
    """What can be given on. None of `models` and `routes` is all, None of `expires_at` never."""

    project: str
    role: Role = "member"
    models: tuple[str, ...] | None = None
    routes: tuple[str, ...] | None = None
    limits: Limits = NO_LIMITS
    expires_at: float | None = None


@dataclass(frozen=True, slots=True)
class Key:
    """A key without itself. `prefix` is how it starts, to know it by. `policy` is its own; without one it has its parent's.

    `above` and `payers`: see Caller; only `authenticate` tells.
    """

    id: str
    prefix: str
    name: str
    owner: str
    rights: Rights
    parent: str | None
    created_at: float
    revoked_at: float | None = None
    last_used_at: float | None = None
    policy: str | None = None
    above: tuple[tuple[str, Limits], ...] = ()
    payers: tuple[str, ...] = ()

    def caller(self) -> Caller:
        mine = self.rights
        return Caller(
            id=self.id,
            owner=self.owner,
            project=mine.project,
            role=mine.role,
            models=mine.models,
            routes=mine.routes,
            limits=mine.limits,
            above=self.above,
            policy=self.policy,
            payers=self.payers,
        )


def within(wanted: Rights, parent: Rights) -> Rights:
    """What of `wanted` the parent may give. An admin gives in any project; others in their own alone."""
    return Rights(
        project=wanted.project if parent.role == "admin" else parent.project,
        role=min(wanted.role, parent.role, key=ROLES.index),
        models=_both(wanted.models, parent.models, _same),
        routes=_both(wanted.routes, parent.routes, covers),
        limits=Limits(
            **{f.name: _least(getattr(wanted.limits, f.name), getattr(parent.limits, f.name)) for f in fields(Limits)}
        ),
        expires_at=_least(wanted.expires_at, parent.expires_at),
    )


def require_within(wanted: Rights, parent: Rights, only: Iterable[str] | None = None) -> None:
    """Raises BeyondParentError for the first field (of `only`) of which more is wanted than the parent may give."""
    allowed = within(wanted, parent)
    for name in only if only is not None else (f.name for f in fields(Rights)):
        if getattr(allowed, name) != getattr(_canonical(wanted), name):
            raise BeyondParentError(name, getattr(wanted, name), getattr(parent, name))


def changed_fields(before: Rights, after: Rights) -> list[str]:
    return [f.name for f in fields(Rights) if getattr(before, f.name) != getattr(after, f.name)]


def covers(route: str, path: str) -> bool:
    """Whether `path` is at or below `route`: /v1/images covers /v1/images/edits and not /v1/imagesx."""
    return path == route or path.startswith(route.rstrip("/") + "/")


def state(line: Sequence[Key], now: float) -> State:
    """Of the first key of `line`, which its parent follows, and so on up: it is no better than any of them."""
    rights = _effective(line)
    if any(key.revoked_at is not None for key in line) or rights.project != line[0].rights.project:
        return "revoked"
    return "expired" if rights.expires_at is not None and rights.expires_at <= now else "good"


def new_key() -> str:
    return f"kb_{_random(8)}_{_random(52)}"


def digest(secret: bytes, key: str) -> str:
    return hmac.new(secret, key.encode(), hashlib.sha256).hexdigest()


async def create(
    connection: AsyncConnection,
    secret: bytes,
    *,
    name: str,
    owner: str,
    rights: Rights,
    parent: str | None = None,
    policy: str | None = None,
) -> tuple[Key, str]:
    """The new key, and itself, for the only time. Raises BeyondParentError, MissingKeyError (of the parent)."""
    if parent is not None:
        line = await _line(connection, parent)
        if len(line) >= MAX_DEPTH:
            raise BeyondParentError("parent", parent, f"{MAX_DEPTH - 1} keys above it already")
        require_within(rights, _effective(line))
    text = new_key()
    key = Key(new_id("key"), text[:11], name, owner, _canonical(rights), parent, time.time(), policy=policy)
    await connection.execute(insert(keys).values(**_columns(key), digest=digest(secret, text)))
    return key, text


async def authenticate(connection: AsyncConnection, digest: str, now: float) -> Key | None:
    """The key of that digest, cut down to what those above it may; None if it or one of them is good no longer."""
    found = (await connection.execute(select(keys.c.id).where(keys.c.digest == digest))).scalar_one_or_none()
    if found is None:
        return None
    line = await _line(connection, found)
    if state(line, now) != "good":
        return None
    # An admin makes keys for others; what they use is not his. What they spend is of his budgets all the same.
    above = tuple((key.id, key.rights.limits) for key in line[1:] if key.rights.role != "admin")
    payers = tuple(key.id for key in line[1:])
    policy = next((key.policy for key in line if key.policy is not None), None)
    return replace(line[0], rights=_effective(line), above=above, policy=policy, payers=payers)


async def find(connection: AsyncConnection, key_id: str) -> Key:
    """Raises MissingKeyError."""
    row = (await connection.execute(select(keys).where(keys.c.id == key_id))).one_or_none()
    if row is None:
        raise MissingKeyError(f"there is no key {key_id!r}", "`kleinbild keys list` shows them")
    return _key(row)


async def named(connection: AsyncConnection, text: str) -> Key:
    """The key of that id, or of that prefix. Raises MissingKeyError."""
    found = [
        _key(row) for row in await connection.execute(select(keys).where((keys.c.id == text) | (keys.c.prefix == text)))
    ]
    if not found:
        raise MissingKeyError(f"there is no key {text!r}", "`kleinbild keys list` shows them")
    if len(found) > 1:
        raise MissingKeyError(
            f"there are {len(found)} keys that start with {text}",
            f"say which by its id: {', '.join(key.id for key in found)}",
        )
    return found[0]


async def effective(connection: AsyncConnection, key_id: str) -> Rights:
    """What the key may, cut down to what those above it may."""
    return _effective(await _line(connection, key_id))


async def listed(connection: AsyncConnection, *, project: str | None = None, below: str | None = None) -> list[Key]:
    """The keys, oldest first: of all or of one project, all or only `below` and those that descend from it."""
    query = select(keys).order_by(keys.c.id)
    if project is not None:
        query = query.where(keys.c.project == project)
    if below is not None:
        tree = select(keys.c.id).where(keys.c.id == below).cte(recursive=True)
        tree = tree.union(select(keys.c.id).where(keys.c.parent == tree.c.id))
        query = query.where(keys.c.id.in_(select(tree.c.id)))
    return [_key(row) for row in await connection.execute(query)]


async def is_below(connection: AsyncConnection, key_id: str, ancestor: str) -> bool:
    """Whether `key_id` descends from `ancestor`. Raises MissingKeyError."""
    return any(key.id == ancestor for key in (await _line(connection, key_id))[1:])


async def any_exist(connection: AsyncConnection) -> bool:
    """Revoked ones count: whoever once made keys does not want the server open."""
    return bool((await connection.execute(select(exists().select_from(keys)))).scalar())


async def change(
    connection: AsyncConnection, key_id: str, *, name: str | None = None, rights: Rights | None = None
) -> Key:
    """Raises BeyondParentError, MissingKeyError."""
    key = await find(connection, key_id)
    if rights is not None and key.parent is not None:
        require_within(rights, await effective(connection, key.parent), changed_fields(key.rights, rights))
    changed = replace(key, name=name or key.name, rights=_canonical(rights or key.rights))
    await connection.execute(update(keys).where(keys.c.id == key_id).values(**_columns(changed)))
    return changed


async def route_by(connection: AsyncConnection, key_id: str, policy: str | None) -> Key:
    """Gives the key a policy of its own, or takes that away. Raises MissingKeyError."""
    await connection.execute(update(keys).where(keys.c.id == key_id).values(policy=policy))
    return await find(connection, key_id)


async def revoke(connection: AsyncConnection, key_id: str, now: float) -> Key:
    """From now on neither it nor what descends from it is good. Raises MissingKeyError."""
    await find(connection, key_id)
    await connection.execute(
        update(keys).where(keys.c.id == key_id, keys.c.revoked_at.is_(None)).values(revoked_at=now)
    )
    return await find(connection, key_id)


async def rotate(connection: AsyncConnection, secret: bytes, key_id: str) -> tuple[Key, str]:
    """The same key with another text; the one before is good no longer. Raises MissingKeyError."""
    key = await find(connection, key_id)
    if key.revoked_at is not None:
        raise MissingKeyError(f"the key {key_id!r} is revoked", "make a new one")
    text = new_key()
    rotated = replace(key, prefix=text[:11])
    await connection.execute(
        update(keys).where(keys.c.id == key_id).values(prefix=rotated.prefix, digest=digest(secret, text))
    )
    return rotated, text


async def note_use(connection: AsyncConnection, key_id: str, now: float) -> None:
    await connection.execute(update(keys).where(keys.c.id == key_id).values(last_used_at=now))


async def line_of(connection: AsyncConnection, key_id: str) -> tuple[str, ...]:
    """The key's id, its parent's, and so on up; of one that is not in the database, its own alone."""
    try:
        return tuple(key.id for key in await _line(connection, key_id))
    except MissingKeyError:
        return (key_id,)


async def _line(connection: AsyncConnection, key_id: str) -> list[Key]:
    """The key, its parent, and so on up."""
    line = [await find(connection, key_id)]
    while line[-1].parent is not None:
        line.append(await find(connection, line[-1].parent))
    return line


def _effective(line: Sequence[Key]) -> Rights:
    rights = line[-1].rights
    for key in reversed(line[:-1]):
        rights = within(key.rights, rights)
    return rights


def _random(length: int) -> str:
    return "".join(secrets.choice(_ALPHABET) for _ in range(length))


def _same(one: str, other: str) -> bool:
    return one == other


def _both(one: tuple[str, ...] | None, other: tuple[str, ...] | None, covers: Any) -> tuple[str, ...] | None:
    """What both allow; `covers(a, b)` says that b is part of a."""
    if one is None or other is None:
        return _smallest(other if one is None else one, covers)
    parts = [a for a in one if any(covers(b, a) for b in other)] + [b for b in other if any(covers(a, b) for a in one)]
    return _smallest(tuple(parts), covers)


def _smallest(parts: tuple[str, ...] | None, covers: Any) -> tuple[str, ...] | None:
    """The same, sorted, without what another part covers."""
    if parts is None:
        return None
    return tuple(sorted(a for a in set(parts) if not any(b != a and covers(b, a) for b in set(parts))))


def _canonical(rights: Rights) -> Rights:
    return replace(rights, models=_smallest(rights.models, _same), routes=_smallest(rights.routes, covers))


def _least(one: Any, other: Any) -> Any:
    return min((limit for limit in (one, other) if limit is not None), default=None)


def _columns(key: Key) -> dict[str, Any]:
    rights = key.rights
    return {
        "id": key.id,
        "prefix": key.prefix,
        "name": key.name,
        "owner": key.owner,
        "project": rights.project,
        "role": rights.role,
        "parent": key.parent,
        "models": None if rights.models is None else list(rights.models),
        "routes": None if rights.routes is None else list(rights.routes),
        "limits": _LIMITS.dump_python(rights.limits, mode="json"),
        "created_at": key.created_at,
        "expires_at": rights.expires_at,
        "policy": key.policy,
    }


def _key(row: Row[Any]) -> Key:
    rights = Rights(
        row.project,
        row.role,
        None if row.models is None else tuple(row.models),
        None if row.routes is None else tuple(row.routes),
        _LIMITS.validate_python(row.limits),
        row.expires_at,
    )
    return Key(
        row.id,
        row.prefix,
        row.name,
        row.owner,
        rights,
        row.parent,
        row.created_at,
        row.revoked_at,
        row.last_used_at,
        row.policy,
    )


def _shown(value: object) -> str:
    if value is None:
        return "without limit"
    return ", ".join(value) if isinstance(value, tuple) else str(value)
