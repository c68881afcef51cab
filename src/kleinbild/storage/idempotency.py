"""Which request a caller's idempotency key was first used for."""

from __future__ import annotations

from dataclasses import dataclass

from sqlalchemy import ColumnElement, delete, select
from sqlalchemy.ext.asyncio import AsyncConnection

from kleinbild.storage.dialects import insert_into
from kleinbild.storage.schema import idempotency

KEPT_SECONDS = 24 * 3600.0
RELEASE = "DELETE FROM idempotency WHERE job_id = :job_id"
"""`release`, for a change (`storage.commits`)."""


@dataclass(frozen=True, slots=True)
class Claim:
    """A key's first use: `fingerprint` is of route and body."""

    caller: str
    key: str
    fingerprint: str
    job_id: str


async def holder(connection: AsyncConnection, caller: str, key: str, now: float) -> Claim | None:
    """The claim that holds `key`, if any does."""
    row = (
        await connection.execute(select(idempotency).where(_same(caller, key), idempotency.c.expires_at > now))
    ).first()
    return None if row is None else Claim(row.caller, row.key, row.fingerprint, row.job_id)


async def take(connection: AsyncConnection, wanted: Claim, now: float) -> bool:
    """Makes `wanted` the claim of its key; its job must be there. False if the key is held, by a transaction that was
    quicker for one: PostgreSQL lets both look for a holder before either is."""
    expired = _same(wanted.caller, wanted.key) & (idempotency.c.expires_at <= now)
    await connection.execute(delete(idempotency).where(expired))
    new = insert_into(connection, idempotency).values(
        caller=wanted.caller,
        key=wanted.key,
        fingerprint=wanted.fingerprint,
        job_id=wanted.job_id,
        expires_at=now + KEPT_SECONDS,
    )
    kept = new.on_conflict_do_nothing().returning(idempotency.c.job_id)
    return (await connection.execute(kept)).first() is not None


async def release(connection: AsyncConnection, job_id: str) -> None:
    """Frees the key of a job that nobody got an answer about: the next request with it is a first one."""
    await connection.execute(delete(idempotency).where(idempotency.c.job_id == job_id))


def _same(caller: str, key: str) -> ColumnElement[bool]:
    return (idempotency.c.caller == caller) & (idempotency.c.key == key)
