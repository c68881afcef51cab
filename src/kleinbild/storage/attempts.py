"""Attempts to have pictures made for money, as they stand: facts that never change, and the states they went through."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any, Literal

from sqlalchemy import RowMapping, Select, select

from kleinbild.core.jobs import Task
from kleinbild.core.money import nanos, of_nanos
from kleinbild.storage.schema import attempt_states, attempts

State = Literal["sending", "accepted", "unknown", "done", "failed_unbilled", "failed_billed"]
Ended = Literal["done", "failed_unbilled", "failed_billed"]
TERMINAL: frozenset[State] = frozenset({"done", "failed_unbilled", "failed_billed"})
PIXELS = Decimal(1_000_000)
QUERY: Select[Any] = (
    select(attempts, attempt_states)
    .join(attempt_states, attempt_states.c.attempt_id == attempts.c.id)
    .order_by(attempts.c.created_at, attempts.c.id, attempt_states.c.ordinal)
)


@dataclass(frozen=True, slots=True)
class Attempt:
    """What is known before it starts, and never changes.

    `count` pictures from the one with index `first`, of `megapixels` each, as part `part` of the job, in its `number`th
    attempt, with `adapters`, whose names have commas between. `reserved` is the most that it may cost, `quoted` what it
    should, None where no price is known.
    """

    id: str
    job_id: str
    part: int
    number: int
    deployment: str
    provider: str
    kind: str
    model: str
    provider_model: str
    task: Task
    caller: str
    project: str
    first: int
    count: int
    reserved: Decimal
    quoted: Decimal | None
    price_version: str
    hedged: bool
    megapixels: Decimal
    created_at: float
    adapters: str = ""


@dataclass(frozen=True, slots=True)
class Entry:
    """An attempt as it stands. `cost` is None until it has ended; `reported` is what the provider said that it costs.
    `handle` finds it at the provider; `result` is what it ended with."""

    attempt: Attempt
    state: State
    handle: dict[str, Any] | None = None
    cost: Decimal | None = None
    reported: Decimal | None = None
    detail: str = ""
    request_id: str | None = None
    seconds: float | None = None
    ended_at: float | None = None
    result: dict[str, Any] | None = None

    @property
    def has_ended(self) -> bool:
        return self.state in TERMINAL


def entries(rows: Iterable[RowMapping]) -> list[Entry]:
    """Of what QUERY gives, in its order."""
    found: dict[str, Entry] = {}
    for row in rows:
        found[row["id"]] = _advanced(found.get(row["id"]) or Entry(_attempt(row), "sending"), row)
    return list(found.values())


def columns(attempt: Attempt) -> dict[str, Any]:
    return {
        "id": attempt.id,
        "job_id": attempt.job_id,
        "part": attempt.part,
        "number": attempt.number,
        "deployment": attempt.deployment,
        "provider": attempt.provider,
        "kind": attempt.kind,
        "model": attempt.model,
        "provider_model": attempt.provider_model,
        "task": attempt.task,
        "caller": attempt.caller,
        "project": attempt.project,
        "first": attempt.first,
        "count": attempt.count,
        "reserved_nanos": nanos(attempt.reserved, up=True),
        "quoted_nanos": None if attempt.quoted is None else nanos(attempt.quoted),
        "price_version": attempt.price_version,
        "hedged": attempt.hedged,
        "pixels": int(attempt.megapixels * PIXELS),
        "day": datetime.fromtimestamp(attempt.created_at, UTC).date().isoformat(),
        "created_at": attempt.created_at,
        "adapters": attempt.adapters,
    }


def _attempt(row: RowMapping) -> Attempt:
    return Attempt(
        id=row["id"],
        job_id=row["job_id"],
        part=row["part"],
        number=row["number"],
        deployment=row["deployment"],
        provider=row["provider"],
        kind=row["kind"],
        model=row["model"],
        provider_model=row["provider_model"],
        task=row["task"],
        caller=row["caller"],
        project=row["project"],
        first=row["first"],
        count=row["count"],
        reserved=of_nanos(row["reserved_nanos"]),
        quoted=None if row["quoted_nanos"] is None else of_nanos(row["quoted_nanos"]),
        price_version=row["price_version"],
        hedged=row["hedged"],
        megapixels=row["pixels"] / PIXELS,
        created_at=row["created_at"],
        adapters=row["adapters"],
    )


def _advanced(entry: Entry, row: RowMapping) -> Entry:
    """The entry once the state of `row` was added: what a state does not say stays as it was."""
    ended = row["state"] in TERMINAL
    return replace(
        entry,
        state=row["state"],
        handle=entry.handle if row["handle"] is None or ended else row["handle"],
        result=row["handle"] if ended else None,
        cost=None if row["cost_nanos"] is None else of_nanos(row["cost_nanos"]),
        reported=entry.reported if row["reported_nanos"] is None else of_nanos(row["reported_nanos"]),
        detail=row["detail"] or entry.detail,
        request_id=row["request_id"] or entry.request_id,
        seconds=row["seconds"],
        ended_at=row["at"] if ended else None,
    )
