"""What was used and what it cost, summed up from the ledger's attempts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any, Literal, get_args

from sqlalchemy import ColumnElement, Select, Subquery, and_, case, distinct, func, select
from sqlalchemy.ext.asyncio import AsyncConnection

from kleinbild.core.money import of_nanos
from kleinbild.storage.attempts import PIXELS, QUERY, TERMINAL, Entry, entries
from kleinbild.storage.schema import adjustments, attempt_states, attempts

Grouping = Literal["key", "project", "model", "provider", "deployment", "adapters", "day"]
GROUPINGS: tuple[Grouping, ...] = get_args(Grouping)
PAGE = 500
_COLUMNS = {
    "key": attempts.c.caller,
    "project": attempts.c.project,
    "model": attempts.c.model,
    "provider": attempts.c.provider,
    "deployment": attempts.c.deployment,
    "adapters": attempts.c.adapters,
    "day": attempts.c.day,
}


@dataclass(frozen=True, slots=True)
class Usage:
    """Of attempts that began in a time. `groups` are values, in the order of what was grouped by.

    `requests` had an attempt. `images` and `megapixels` are of attempts that were done, `cost` of all that have ended,
    `corrections` what providers' statements have added to it since; `reserved` is set aside for those that have not ended.
    """

    groups: tuple[str, ...]
    requests: int
    attempts: int
    images: int
    megapixels: Decimal
    cost: Decimal
    corrections: Decimal
    reserved: Decimal


@dataclass(frozen=True, slots=True)
class Correction:
    """What a provider's statement has added to the cost of `entry`, less than 0 where it took less."""

    id: str
    at: float
    amount: Decimal
    entry: Entry


async def usage(
    connection: AsyncConnection,
    *,
    start: float,
    end: float,
    group_by: Sequence[Grouping] = (),
    project: str | None = None,
) -> list[Usage]:
    """Of the attempts that began from `start` up to `end`, which is not among them, sorted by groups; without any, one."""
    groups = [_COLUMNS[name] for name in group_by]
    rows = await connection.execute(_sums(groups, _between(start, end, project)))
    return [
        Usage(
            groups=tuple(row[: len(groups)]),
            requests=row.requests,
            attempts=row.attempts,
            images=int(row.images),
            megapixels=Decimal(int(row.pixels)) / PIXELS,
            cost=of_nanos(int(row.cost)),
            corrections=of_nanos(int(row.corrections)),
            reserved=of_nanos(int(row.reserved)),
        )
        for row in rows
    ]


async def ended(
    connection: AsyncConnection, *, start: float, end: float, project: str | None = None, after: Entry | None = None
) -> list[Entry]:
    """Attempts that began in that time and have ended, oldest first: the first of them, or those that follow `after`.

    None are left where fewer than PAGE come.
    """
    page = select(attempts.c.id).where(_between(start, end, project), _has_ended())
    if after is not None:
        last = after.attempt
        same = (attempts.c.created_at == last.created_at) & (attempts.c.id > last.id)
        page = page.where((attempts.c.created_at > last.created_at) | same)
    return await _entries(connection, page.order_by(attempts.c.created_at, attempts.c.id).limit(PAGE).subquery())


async def last_attempts(connection: AsyncConnection, caller: str, *, since: float) -> dict[str, float]:
    """When the caller, whose project has his name, last had one at each deployment, as far as that was since then."""
    latest = (
        select(attempts.c.deployment, func.max(attempts.c.created_at).label("at"))
        .where(attempts.c.project == caller, attempts.c.caller == caller, attempts.c.created_at >= since)
        .group_by(attempts.c.deployment)
    )
    return {row.deployment: row.at for row in await connection.execute(latest)}


async def corrections(
    connection: AsyncConnection,
    *,
    start: float,
    end: float,
    project: str | None = None,
    after: Correction | None = None,
) -> list[Correction]:
    """Corrections that were made in that time, whenever their attempts began; in pages as `ended`."""
    page = select(adjustments).where(adjustments.c.at >= start, adjustments.c.at < end)
    if project is not None:
        page = page.join(attempts, attempts.c.id == adjustments.c.attempt_id).where(attempts.c.project == project)
    if after is not None:
        same = (adjustments.c.at == after.at) & (adjustments.c.id > after.id)
        page = page.where((adjustments.c.at > after.at) | same)
    rows = list(await connection.execute(page.order_by(adjustments.c.at, adjustments.c.id).limit(PAGE)))
    ids = select(attempts.c.id).where(attempts.c.id.in_([row.attempt_id for row in rows])).subquery()
    of = {entry.attempt.id: entry for entry in await _entries(connection, ids)}
    return [Correction(row.id, row.at, of_nanos(row.nanos), of[row.attempt_id]) for row in rows]


async def _entries(connection: AsyncConnection, ids: Subquery) -> list[Entry]:
    return entries((await connection.execute(QUERY.join(ids, ids.c.id == attempts.c.id))).mappings())


def _between(start: float, end: float, project: str | None) -> ColumnElement[bool]:
    time = and_(attempts.c.created_at >= start, attempts.c.created_at < end)
    return time if project is None else and_(time, attempts.c.project == project)


def _has_ended() -> ColumnElement[bool]:
    same = attempt_states.c.attempt_id == attempts.c.id
    return select(1).where(same, attempt_states.c.state.in_(TERMINAL)).exists()


def _sums(groups: Sequence[ColumnElement[str]], which: ColumnElement[bool]) -> Select[Any]:
    last = attempt_states.alias("last")
    is_last = and_(last.c.attempt_id == attempts.c.id, last.c.state.in_(TERMINAL))
    corrected = (
        select(adjustments.c.attempt_id, func.sum(adjustments.c.nanos).label("nanos"))
        .group_by(adjustments.c.attempt_id)
        .subquery()
    )
    is_done = last.c.state == "done"
    columns: list[ColumnElement[Any]] = [
        *groups,
        func.count(distinct(attempts.c.job_id)).label("requests"),
        func.count().label("attempts"),
        _sum(case((is_done, attempts.c.count), else_=0)).label("images"),
        _sum(case((is_done, attempts.c.count * attempts.c.pixels), else_=0)).label("pixels"),
        _sum(last.c.cost_nanos).label("cost"),
        _sum(corrected.c.nanos).label("corrections"),
        _sum(case((last.c.state.is_(None), attempts.c.reserved_nanos), else_=0)).label("reserved"),
    ]
    sums: Select[Any] = (
        select(*columns)
        .select_from(attempts)
        .outerjoin(last, is_last)
        .outerjoin(corrected, corrected.c.attempt_id == attempts.c.id)
        .where(which)
    )
    return sums.group_by(*groups).order_by(*groups) if groups else sums


def _sum(column: ColumnElement[int]) -> ColumnElement[int]:
    return func.coalesce(func.sum(column), 0)
