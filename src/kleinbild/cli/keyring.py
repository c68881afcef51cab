"""The keys in a server's data: read and changed there, whether the server runs or not."""

from __future__ import annotations

import os
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from sqlalchemy.ext.asyncio import AsyncConnection

from kleinbild.core.callers import Limits
from kleinbild.core.errors import OutputError, RequestError
from kleinbild.gateway import administer, allowances
from kleinbild.gateway.administer import WantedKey, acting
from kleinbild.gateway.secrets import load_secrets_of
from kleinbild.gateway.settings import Settings
from kleinbild.storage import audit, keys
from kleinbild.storage.audit import Entry
from kleinbild.storage.budgets import Standing
from kleinbild.storage.database import Database, open_database
from kleinbild.storage.keys import Key

MAX_ACTOR = 64  # letters that the audit log takes


@dataclass(frozen=True, slots=True)
class Held:
    """A key with its own budget as it stands now, and its text where it has just been made."""

    key: Key
    standing: Standing | None
    text: str | None = None

    def as_object(self) -> dict[str, Any]:
        """For programs, as the API has it."""
        told = administer.key_object(self.key, self.standing)
        return told if self.text is None else {**told, "key": self.text}


@dataclass(frozen=True, slots=True)
class Keyring:
    """Keys are named by their ids or their prefixes. Every change is in the audit log, by `actor`."""

    database: Database
    data: Path
    actor: str

    async def create(self, given: dict[str, Any], limits: Limits, parent: str | None) -> Held:
        """The new key. What is not `given` is as the parent's."""
        async with acting(self.database, self.actor, "key.create") as action:
            secret = await self._secret(action.connection)
            above = None if parent is None else (await keys.named(action.connection, parent)).id
            inherited, _ = await administer.inherited(action.connection, above)
            kept = asdict(inherited.limits) | {
                name: value for name, value in asdict(limits).items() if value is not None
            }
            key, text = await administer.create(action, secret, _wanted({**given, "limits": kept}), above)
            return await _held(action.connection, key, text)

    async def listed(self) -> list[Held]:
        async with self.database.read() as connection:
            standings = await allowances.standings(connection, time.time())
            return [Held(key, standings.get(key.id)) for key in await keys.listed(connection)]

    async def find(self, name: str) -> Held:
        async with self.database.read() as connection:
            return await _held(connection, await keys.named(connection, name))

    async def revoke(self, name: str) -> Held:
        async with acting(self.database, self.actor, "key.revoke") as action:
            key = await keys.named(action.connection, name)
            action.tell(key.id, {})
            return await _held(action.connection, await keys.revoke(action.connection, key.id, time.time()))

    async def rotate(self, name: str) -> Held:
        async with acting(self.database, self.actor, "key.rotate") as action:
            key = await keys.named(action.connection, name)
            action.tell(key.id, {})
            secret = await self._secret(action.connection)
            return await _held(action.connection, *await keys.rotate(action.connection, secret, key.id))

    async def entries(self, limit: int) -> list[Entry]:
        async with self.database.read() as connection:
            return await audit.newest(connection, limit=limit)

    async def _secret(self, connection: AsyncConnection) -> bytes:
        """The server's, made with the first key. With another one, keys would be made that the server does not know."""
        return (await load_secrets_of(connection, self.data)).derive("api keys")


@asynccontextmanager
async def open_keyring(settings: Settings, *, make: bool = False) -> AsyncIterator[Keyring]:
    """Raises RequestError where there are no data yet, unless they are to be made."""
    file = settings.database_file
    if not make and file is not None and not file.exists():
        raise RequestError(
            f"no key was ever made in {settings.data}",
            "`kleinbild keys create` makes the first; --data names another folder",
        )
    try:
        settings.data.mkdir(parents=True, exist_ok=True, mode=0o700)
    except OSError as error:
        raise OutputError(f"{settings.data} cannot be used: {error.strerror}", "choose another with --data") from error
    database = await open_database(settings.database_url)
    try:
        yield Keyring(database, settings.data, _actor())
    finally:
        await database.close()


async def _held(connection: AsyncConnection, key: Key, text: str | None = None) -> Held:
    return Held(key, await allowances.standing_of(connection, key.id, time.time()), text)


def _wanted(given: dict[str, Any]) -> WantedKey:
    try:
        return WantedKey.model_validate(given)
    except ValidationError as error:
        first = error.errors()[0]
        place = "--" + str(first["loc"][0]).rstrip("s").replace("_", "-")
        raise RequestError(f"{place} {first['input']!r}: {first['msg']}", "see kleinbild keys create --help") from error


def _actor() -> str:
    """Whoever runs this process, by the system's word rather than the environment's."""
    try:
        import pwd

        name = pwd.getpwuid(os.getuid()).pw_name
    except (ImportError, AttributeError):  # no POSIX
        name = os.environ.get("USERNAME", "unknown")
    except KeyError:  # a user without an entry, as in containers
        name = str(os.getuid())
    return f"cli:{name}"[:MAX_ACTOR]
