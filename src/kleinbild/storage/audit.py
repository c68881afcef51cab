"""What was administered, by whom: rows are added and never changed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from sqlalchemy import insert, select
from sqlalchemy.ext.asyncio import AsyncConnection

from kleinbild.storage.schema import audit


@dataclass(frozen=True, slots=True)
class Entry:
    """`actor` did `action` to `target`, both ids; `id` is 0 before it is kept."""

    at: float
    actor: str
    action: str
    target: str
    details: dict[str, Any]
    request_id: str = ""
    id: int = 0


async def append(connection: AsyncConnection, entry: Entry) -> None:
    """In the transaction of what it tells of: neither is there without the other."""
    await connection.execute(
        insert(audit).values(
            at=entry.at,
            actor=entry.actor,
            action=entry.action,
            target=entry.target,
            details=entry.details,
            request_id=entry.request_id,
        )
    )


async def newest(connection: AsyncConnection, *, limit: int, after: int | None = None) -> list[Entry]:
    """Newest first, from the one that follows `after`."""
    query = select(audit).order_by(audit.c.id.desc()).limit(limit)
    if after is not None:
        query = query.where(audit.c.id < after)
    rows = await connection.execute(query)
    return [Entry(row.at, row.actor, row.action, row.target, row.details, row.request_id, row.id) for row in rows]
