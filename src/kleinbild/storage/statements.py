"""A provider's own statement beside the ledger: what it settles, and where the two differ."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal

from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncConnection

from kleinbild.core.ids import new_id
from kleinbild.core.money import nanos, of_nanos
from kleinbild.storage.attempts import State
from kleinbild.storage.commits import Run
from kleinbild.storage.schema import attempt_states, attempts

AT_ONCE = 500


@dataclass(frozen=True, slots=True)
class Difference:
    """The provider took `stated` for an attempt that was booked, with what was corrected before, at `booked`."""

    attempt_id: str
    booked: Decimal
    stated: Decimal


@dataclass(frozen=True, slots=True)
class Reconciliation:
    """Ids of attempts, but for `unmatched`: ids of the statement that no attempt, or more than one, is known by.

    `settled` were unknown and have ended now. `corrected` had ended, at another cost. `under_way` have yet to end.
    """

    settled: tuple[str, ...]
    corrected: tuple[Difference, ...]
    under_way: tuple[str, ...]
    unmatched: tuple[str, ...]


async def matched(
    connection: AsyncConnection, provider: str, lines: Iterable[tuple[str, Decimal]]
) -> tuple[dict[str, Decimal], tuple[str, ...]]:
    """What the statement says of each attempt, all lines of it together; and the ids that lead to none."""
    stated: dict[str, Decimal] = {}
    for given, cost in lines:
        stated[given] = stated.get(given, Decimal(0)) + cost
    known = await _attempts_of(connection, provider, list(stated))
    sums: dict[str, Decimal] = {}
    for given, cost in stated.items():
        if len(found := known.get(given, set())) == 1:
            (attempt_id,) = found
            sums[attempt_id] = sums.get(attempt_id, Decimal(0)) + cost
    return sums, tuple(given for given in stated if len(known.get(given, ())) != 1)


async def _attempts_of(connection: AsyncConnection, provider: str, given: Sequence[str]) -> Mapping[str, set[str]]:
    """By their own ids, and by the provider's of its requests."""
    found: dict[str, set[str]] = {}
    for at in range(0, len(given), AT_ONCE):
        some = given[at : at + AT_ONCE]
        own = select(attempts.c.id, attempts.c.id).where(attempts.c.provider == provider, attempts.c.id.in_(some))
        theirs = (
            select(attempt_states.c.request_id, attempts.c.id)
            .join(attempts, attempts.c.id == attempt_states.c.attempt_id)
            .where(attempts.c.provider == provider, attempt_states.c.request_id.in_(some))
        )
        for query in (own, theirs):
            for name, attempt_id in await connection.execute(query):
                found.setdefault(name, set()).add(attempt_id)
    return found


_LOCK = "SELECT pg_advisory_xact_lock(hashtextextended(:id, 0))"
_LAST = "SELECT state, cost_nanos FROM attempt_states WHERE attempt_id = :id ORDER BY ordinal DESC LIMIT 1"
_CORRECTED = "SELECT COALESCE(SUM(nanos), 0) FROM adjustments WHERE attempt_id = :id"
_ADD = "INSERT INTO adjustments (id, attempt_id, at, nanos, detail) VALUES (:new, :id, :at, :nanos, :detail)"


def last_state(run: Run, dialect: str, attempt_id: str) -> tuple[State, int | None]:
    """State and cost, while no other process compares this attempt with a statement."""
    if dialect == "postgresql":  # SQLite has one writer anyway
        run(_LOCK, {"id": attempt_id})
    state, cost = run(_LAST, {"id": attempt_id}).fetchall()[0]
    return state, cost


def correct(run: Run, attempt_id: str, cost: int, stated: Decimal, now: float) -> Difference | None:
    """Adds the difference, if there is one: the same statement once more adds nothing."""
    booked = cost + int(run(_CORRECTED, {"id": attempt_id}).fetchall()[0][0])
    difference = nanos(stated) - booked
    if not difference:
        return None
    values = {"new": new_id("adj"), "id": attempt_id, "at": now, "nanos": difference}
    run(_ADD, {**values, "detail": "the provider's statement"})
    return Difference(attempt_id, of_nanos(booked), stated)
