"""Where requests were sent, and why: kept to be explained, and to be decided again by other rules."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from pydantic_core import to_json
from sqlalchemy import Row, insert, select
from sqlalchemy.ext.asyncio import AsyncConnection

from kleinbild.storage.schema import decisions


@dataclass(frozen=True, slots=True)
class Decision:
    """`body` is what was known and what came of it: JSON, without pictures. `job_id` is None where nothing was made."""

    id: str
    job_id: str | None
    caller: str
    project: str
    at: float
    body: dict[str, Any]


ADD = """
INSERT INTO decisions (id, job_id, caller, project, at, body) VALUES (:id, :job_id, :caller, :project, :at, :body)
"""


def columns(decision: Decision) -> dict[str, Any]:
    return {
        "id": decision.id,
        "job_id": decision.job_id,
        "caller": decision.caller,
        "project": decision.project,
        "at": decision.at,
        "body": to_json(decision.body).decode(),
    }


async def add(connection: AsyncConnection, decision: Decision) -> None:
    await connection.execute(
        insert(decisions).values(
            id=decision.id,
            job_id=decision.job_id,
            caller=decision.caller,
            project=decision.project,
            at=decision.at,
            body=decision.body,
        )
    )


async def find(connection: AsyncConnection, decision_id: str, project: str | None = None) -> Decision | None:
    """The decision, if it is there and belongs to `project` (None: to whomever)."""
    query = select(decisions).where(decisions.c.id == decision_id)
    if project is not None:
        query = query.where(decisions.c.project == project)
    row = (await connection.execute(query)).first()
    return None if row is None else _decision(row)


async def of_job(connection: AsyncConnection, job_id: str) -> list[Decision]:
    """Oldest first."""
    query = select(decisions).where(decisions.c.job_id == job_id).order_by(decisions.c.at, decisions.c.id)
    return [_decision(row) for row in await connection.execute(query)]


async def since(
    connection: AsyncConnection,
    project: str | None,
    at: float,
    *,
    limit: int = 1000,
    after: Decision | None = None,
) -> Sequence[Decision]:
    """Those of `project` (None: of all) from `at` on, oldest first, or, of these, from the one that follows `after`."""
    query = select(decisions).where(decisions.c.at >= at).order_by(decisions.c.at, decisions.c.id).limit(limit)
    if project is not None:
        query = query.where(decisions.c.project == project)
    if after is not None:
        same = (decisions.c.at == after.at) & (decisions.c.id > after.id)
        query = query.where((decisions.c.at > after.at) | same)
    return [_decision(row) for row in await connection.execute(query)]


def _decision(row: Row[Any]) -> Decision:
    return Decision(row.id, row.job_id, row.caller, row.project, row.at, row.body)
