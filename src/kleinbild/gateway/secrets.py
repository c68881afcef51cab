"""One master secret, and for each purpose one derived from it: what is learnt of one tells nothing of another."""

from __future__ import annotations

import os
import re
import secrets
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from sqlalchemy.ext.asyncio import AsyncConnection

from kleinbild.core.errors import RequestError
from kleinbild.storage import keys, servers, webhooks
from kleinbild.storage.servers import Member

Purpose = Literal["api keys", "signed urls", "webhook secrets", "comparison"]
NUM_BYTES = 32
FILE = "secret"


@dataclass(frozen=True, slots=True)
class Secrets:
    """`master` is in no representation, so that it gets into no log."""

    master: bytes = field(repr=False)

    def derive(self, purpose: Purpose) -> bytes:
        """32 bytes, the same ones for a purpose as long as the master secret is."""
        return HKDF(SHA256(), NUM_BYTES, salt=None, info=f"kleinbild: {purpose}".encode()).derive(self.master)

    @property
    def digest(self) -> str:
        """By which servers know that they have the same."""
        return self.derive("comparison").hex()


def load_secrets(data: Path, given: str | None = None) -> Secrets:
    """From `given`, 64 hexadecimal digits, else from the file `secret` in the folder `data`, which is made at first."""
    if given is not None:
        return Secrets(_read(given, "the master secret that was set"))
    path = data / FILE
    if not path.exists():
        _create(path)
    _refuse_if_others_may_read(path)
    return Secrets(_read(path.read_text(), str(path)))


async def load_secrets_of(connection: AsyncConnection, data: Path) -> Secrets:
    """As `load_secrets`, of the servers whose database that is. Raises RequestError where theirs is lost or another: all of
    their keys would be refused, no secret of a webhook could be read, and no URL of a picture opened at both."""
    living = await servers.living(connection)
    in_use = living or await keys.any_exist(connection) or await webhooks.any_exist(connection)
    if not (data / FILE).exists() and in_use:
        raise RequestError(
            f"the keys and webhooks in the database are of a server whose secret is not in {data}",
            f"run this where the server's data are, or copy the file {FILE} from there or from a backup",
        )
    found = load_secrets(data)
    require_same(found, living, data)
    return found


def require_same(ours: Secrets, others: Iterable[Member], data: Path) -> None:
    """Raises RequestError where a server that runs has another secret."""
    if any(each.secret != ours.digest for each in others):
        raise RequestError(
            f"another server is running on the database, and its secret is not the one in {data}",
            f"copy the file {FILE} from the other's data folder",
        )


def _create(path: Path) -> None:
    """Whole or not at all, and once: of two processes that start together both take the first one's."""
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    ours = path.with_name(f"{FILE}.{secrets.token_hex(8)}")
    descriptor = os.open(ours, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with os.fdopen(descriptor, "w") as file:
            file.write(secrets.token_hex(NUM_BYTES) + "\n")
            file.flush()
            os.fsync(file.fileno())
        with suppress(FileExistsError):
            os.link(ours, path)
    finally:
        ours.unlink()


def _refuse_if_others_may_read(path: Path) -> None:
    if os.name == "posix" and path.stat().st_mode & 0o077:
        raise RequestError(f"{path} can be read by others; whoever has it can make keys", f"chmod 600 {path}")


def _read(text: str, where: str) -> bytes:
    if not re.fullmatch(r"[0-9a-fA-F]{64}", text.strip()):
        raise RequestError(
            f"{where} is not 64 hexadecimal digits",
            "make one with: python -c 'import secrets; print(secrets.token_hex(32))'",
        )
    return bytes.fromhex(text.strip())
