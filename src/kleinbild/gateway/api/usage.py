"""`/v1/usage`: what was used, and what it cost, as sums or charge by charge."""

from __future__ import annotations

import csv
import io
import time
from collections.abc import AsyncIterator, Iterable, Sequence
from datetime import UTC, datetime
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query, Request
from fastapi.responses import JSONResponse, Response, StreamingResponse
from pydantic import BaseModel, WithJsonSchema

from kleinbild.core.callers import Caller
from kleinbild.core.money import written
from kleinbild.gateway import focus
from kleinbild.gateway.described import ERRORS
from kleinbild.gateway.errors import ApiError
from kleinbild.gateway.flow.authenticate import Asking
from kleinbild.gateway.services import services_of
from kleinbild.storage import usage as used
from kleinbild.storage.attempts import Entry
from kleinbild.storage.database import Database
from kleinbild.storage.usage import Correction, Grouping, Usage

router = APIRouter(prefix="/v1", tags=["usage"])
DEFAULT_SECONDS = 30 * 24 * 3600.0
CSV = "text/csv; charset=utf-8"
SUMS = ("requests", "attempts", "images", "megapixels", "cost", "corrections", "reserved")
Money = str
"""US dollars, such as "0.014": a number could not hold all of them."""


class UsageRow(BaseModel):
    """Of `key` to `day`, those that were grouped by."""

    key: str | None = None
    project: str | None = None
    model: str | None = None
    provider: str | None = None
    deployment: str | None = None
    adapters: str | None = None
    day: str | None = None
    requests: int
    attempts: int
    images: int
    megapixels: float
    cost: Money
    corrections: Money
    reserved: Money


class UsageList(BaseModel):
    object: Literal["list"]
    currency: Literal["USD"]
    start: int
    end: int
    data: list[UsageRow]


Moment = Annotated[
    datetime,
    WithJsonSchema(
        {
            "anyOf": [
                {"type": "string", "format": "date-time"},
                {"type": "string", "format": "date"},
                {"type": "number", "description": "seconds since 1970"},
            ]
        }
    ),
]


@router.get(
    "/usage",
    responses={200: {"model": UsageList, "content": {"text/csv": {}}, "description": "sums, or charges"}, **ERRORS},
)
async def usage(
    request: Request,
    caller: Asking,
    start: Moment | None = None,
    end: Moment | None = None,
    group_by: Annotated[list[Grouping] | None, Query()] = None,
    project: str | None = None,
    format: Literal["json", "csv", "focus"] = "json",  # noqa: A002  # as it is called in the URL
) -> Response:
    """What was used from `start` (else: in the 30 days before `end`) up to `end` (else: now), grouped as wanted.

    Times are dates, times (in UTC, if they do not say) or seconds since 1970. `focus` is a CSV of charges as FOCUS 1.2
    has them, and of the corrections made in that time. An admin sees all projects or the one asked for, others their own.
    """
    last = time.time() if end is None else _seconds(end)
    first = last - DEFAULT_SECONDS if start is None else _seconds(start)
    if first >= last:
        raise ApiError(400, "start must be before end", param="start")
    database, whose = services_of(request).database, _project(caller, project)
    if format == "focus":
        return _file(_charges(database, first, last, whose), "focus.csv")
    groups = list(dict.fromkeys(group_by or ()))
    async with database.read() as connection:
        found = await used.usage(connection, start=first, end=last, group_by=groups, project=whose)
    if format == "csv":
        return _file(_sums(groups, found), "usage.csv")
    data = [{**dict(zip(groups, row.groups, strict=True)), **_values(row)} for row in found]
    return JSONResponse({"object": "list", "currency": "USD", "start": int(first), "end": int(last), "data": data})


def _project(caller: Caller, wanted: str | None) -> str | None:
    """Raises ApiError, 403."""
    if caller.may("admin"):
        return wanted
    if wanted not in (None, caller.project):
        raise ApiError(
            403,
            f"This key may see the usage of its own project, {caller.project!r}, alone.",
            type="permission_error",
            code="project_not_allowed",
            param="project",
        )
    return caller.project


def _seconds(at: datetime) -> float:
    return (at.replace(tzinfo=UTC) if at.tzinfo is None else at).timestamp()


def _values(row: Usage) -> dict[str, Any]:
    return {
        "requests": row.requests,
        "attempts": row.attempts,
        "images": row.images,
        "megapixels": float(row.megapixels),
        "cost": written(row.cost),
        "corrections": written(row.corrections),
        "reserved": written(row.reserved),
    }


async def _sums(groups: Sequence[str], rows: Iterable[Usage]) -> AsyncIterator[str]:
    lines = [(*row.groups, *_values(row).values()) for row in rows]
    yield _lines([(*groups, *SUMS), *lines])


async def _charges(database: Database, start: float, end: float, project: str | None) -> AsyncIterator[str]:
    """Page by page: whoever reads slowly holds no connection of the database meanwhile."""
    yield _lines([focus.COLUMNS])
    entry: Entry | None = None
    while True:
        async with database.read() as connection:
            entries = await used.ended(connection, start=start, end=end, project=project, after=entry)
        yield _focus_lines(focus.usage_row(entry) for entry in entries if focus.is_charge(entry))
        if len(entries) < used.PAGE:
            break
        entry = entries[-1]
    correction: Correction | None = None
    while True:
        async with database.read() as connection:
            corrections = await used.corrections(connection, start=start, end=end, project=project, after=correction)
        yield _focus_lines(map(focus.correction_row, corrections))
        if len(corrections) < used.PAGE:
            break
        correction = corrections[-1]


def _focus_lines(rows: Iterable[focus.Row]) -> str:
    return _lines([row[column] for column in focus.COLUMNS] for row in rows)


def _lines(rows: Iterable[Sequence[Any]]) -> str:
    text = io.StringIO()
    csv.writer(text).writerows(rows)
    return text.getvalue()


def _file(chunks: AsyncIterator[str], name: str) -> Response:
    headers = {"Content-Disposition": f'attachment; filename="{name}"', "Cache-Control": "no-store"}
    return StreamingResponse(chunks, media_type=CSV, headers=headers)
