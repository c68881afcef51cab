"""Files that a project has uploaded: rows here, bytes in the blob store, which keeps them as long as there is a row."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Literal

from sqlalchemy import delete, func, insert, or_, select
from sqlalchemy.ext.asyncio import AsyncConnection

from kleinbild.storage.schema import files

Order = Literal["asc", "desc"]


@dataclass(frozen=True, slots=True)
class File:
    id: str
    project: str
    filename: str
    purpose: str
    sha256: str
    bytes: int
    created_at: float
    expires_at: float | None = None


async def add(connection: AsyncConnection, file: File) -> None:
    await connection.execute(insert(files).values(**asdict(file)))


async def find(connection: AsyncConnection, file_id: str, project: str, now: float | None = None) -> File | None:
    """The file, if it is there, belongs to `project`, and has not expired by `now`."""
    query = select(files).where(files.c.id == file_id, files.c.project == project)
    if now is not None:
        query = query.where(or_(files.c.expires_at.is_(None), files.c.expires_at > now))
    row = (await connection.execute(query)).one_or_none()
    return None if row is None else File(*row)


async def listed(
    connection: AsyncConnection,
    project: str,
    now: float,
    *,
    limit: int,
    order: Order = "desc",
    purpose: str | None = None,
    after: str | None = None,
) -> list[File]:
    """The files of `project` by their ids, which is by their time, from the one that follows `after`."""
    query = select(files).where(files.c.project == project, or_(files.c.expires_at.is_(None), files.c.expires_at > now))
    query = query.order_by(files.c.id.asc() if order == "asc" else files.c.id.desc())
    if purpose is not None:
        query = query.where(files.c.purpose == purpose)
    if after is not None:
        query = query.where(files.c.id > after if order == "asc" else files.c.id < after)
    return [File(*row) for row in await connection.execute(query.limit(limit))]


async def remove(connection: AsyncConnection, file_id: str, project: str) -> bool:
    """Whether it was there."""
    query = delete(files).where(files.c.id == file_id, files.c.project == project)
    return (await connection.execute(query)).rowcount > 0


async def num_bytes(connection: AsyncConnection, project: str) -> int:
    """Of all files of `project`."""
    total = select(func.coalesce(func.sum(files.c.bytes), 0)).where(files.c.project == project)
    return int((await connection.execute(total)).scalar_one())
