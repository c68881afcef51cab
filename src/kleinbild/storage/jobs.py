"""Jobs and their events in the database. Every function works within the caller's transaction."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

from pydantic import TypeAdapter
from pydantic_core import to_json
from sqlalchemy import Row, func, insert, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from kleinbild.core.jobs import FINAL, ImageWork, Job, JobEvent, JobStatus, Outcome
from kleinbild.storage import decisions, idempotency
from kleinbild.storage.commits import Change, Run
from kleinbild.storage.decisions import Decision
from kleinbild.storage.schema import events, jobs
from kleinbild.storage.servers import NUM_SLOTS

ENDS = tuple(f"job.{status}" for status in sorted(FINAL))
_WORK = TypeAdapter(ImageWork)
_OUTCOME = TypeAdapter(Outcome)
_ADD = """
INSERT INTO jobs (id, caller, project, task, model, status, work, warnings, metadata, created_at, started_at, server)
VALUES (:id, :caller, :project, :task, :model, :status, :work, :warnings, :metadata, :created_at, :started_at, :server)
"""
_ADD_EVENT = "INSERT INTO events (id, job_id, project, type, data) VALUES (:id, :job_id, :project, :type, :data)"
_END = """
UPDATE jobs SET status = :status, outcome = :outcome, completed_at = :now
WHERE id = :id AND status NOT IN ('completed', 'failed', 'cancelled')
"""


async def add(connection: AsyncConnection, job: Job) -> None:
    await connection.execute(
        insert(jobs).values(
            id=job.id,
            caller=job.caller,
            project=job.project,
            task=job.work.task,
            model=job.work.model,
            status=job.status,
            work=_WORK.dump_python(job.work, mode="json"),
            warnings=list(job.warnings),
            metadata=job.metadata or {},
            webhook=job.webhook,
            created_at=job.created_at,
            started_at=job.started_at,
            server=job.server,
        )
    )


def added(job: Job, decision: Decision, happened: Sequence[JobEvent]) -> Change[None]:
    """The job, why it goes where it goes, and what has happened to it: one change, for `Commits`."""
    row = {
        "id": job.id,
        "caller": job.caller,
        "project": job.project,
        "task": job.work.task,
        "model": job.work.model,
        "status": job.status,
        "work": _json(_WORK.dump_python(job.work, mode="json")),
        "warnings": _json(list(job.warnings)),
        "metadata": _json(job.metadata or {}),
        "created_at": job.created_at,
        "started_at": job.started_at,
        "server": job.server,
    }

    def change(run: Run) -> None:
        run(_ADD, row)
        run(decisions.ADD, decisions.columns(decision))
        for event in happened:
            run(_ADD_EVENT, _event(event))

    return change


def ended(job_id: str, outcome: Outcome, now: float, event: JobEvent, *, release: bool = False) -> Change[bool]:
    """`finish` and its event as one change. `release` frees its idempotency key, too. False: it had ended before."""
    values = {"id": job_id, "status": outcome.status, "outcome": _json(outcome_json(outcome)), "now": now}

    def change(run: Run) -> bool:
        if run(_END, values).rowcount != 1:
            return False
        run(_ADD_EVENT, _event(event))
        if release:
            run(idempotency.RELEASE, {"job_id": job_id})
        return True

    return change


async def find(connection: AsyncConnection, job_id: str, project: str | None = None) -> Job | None:
    """The job, if it is there and belongs to `project` (None: to whomever)."""
    query = select(jobs).where(jobs.c.id == job_id)
    if project is not None:
        query = query.where(jobs.c.project == project)
    row = (await connection.execute(query)).first()
    return None if row is None else _job(row)


async def newest(
    connection: AsyncConnection, project: str, *, limit: int, after: str | None = None, status: JobStatus | None = None
) -> list[Job]:
    """The jobs of `project`, newest first, from the one that follows `after`."""
    query = select(jobs).where(jobs.c.project == project).order_by(jobs.c.id.desc()).limit(limit)
    if after is not None:
        query = query.where(jobs.c.id < after)
    if status is not None:
        query = query.where(jobs.c.status == status)
    return [_job(row) for row in await connection.execute(query)]


async def unfinished(connection: AsyncConnection) -> list[str]:
    query = select(jobs.c.id).where(jobs.c.status.not_in(FINAL)).order_by(jobs.c.id)
    return list((await connection.execute(query)).scalars())


async def pictures_of_unfinished(connection: AsyncConnection) -> set[str]:
    """SHA-256 of what the jobs that have yet to end were given."""
    query = select(jobs.c.work).where(jobs.c.status.not_in(FINAL))
    works = [_WORK.validate_python(work) for work in (await connection.execute(query)).scalars()]
    return {each.sha256 for work in works for each in (*work.references, *((work.mask,) if work.mask else ()))}


async def start(connection: AsyncConnection, job_id: str, now: float) -> Job | None:
    """The job, running from now on; None if it has ended. One that was interrupted starts again."""
    changed = await connection.execute(
        update(jobs)
        .where(jobs.c.id == job_id, jobs.c.status.not_in(FINAL))
        .values(status="running", started_at=func.coalesce(jobs.c.started_at, now))
    )
    return await find(connection, job_id) if changed.rowcount else None


async def finish(connection: AsyncConnection, job_id: str, outcome: Outcome, now: float) -> Job | None:
    """The job as it has now ended; None if it had ended before, for it does so once."""
    changed = await connection.execute(
        update(jobs)
        .where(jobs.c.id == job_id, jobs.c.status.not_in(FINAL))
        .values(status=outcome.status, outcome=outcome_json(outcome), completed_at=now)
    )
    return await find(connection, job_id) if changed.rowcount else None


async def add_event(connection: AsyncConnection, event: JobEvent) -> None:
    await connection.execute(
        insert(events).values(id=event.id, job_id=event.job_id, project=event.project, type=event.type, data=event.data)
    )


async def events_after(
    connection: AsyncConnection, project: str, after: int, job_id: str | None = None
) -> Sequence[JobEvent]:
    query = select(events).where(events.c.project == project, events.c.id > after).order_by(events.c.id)
    if job_id is not None:
        query = query.where(events.c.job_id == job_id)
    return [_happened(row) for row in await connection.execute(query)]


async def ids_of_others(
    connection: AsyncConnection, slot: int, after: int, job_ids: Collection[str], projects: Collection[str]
) -> set[int]:
    """Of the events that servers of other slots kept (`storage.servers`) of these jobs and projects since; the end of a
    job whenever it was."""
    new = events.c.id > after
    of_jobs = events.c.job_id.in_(job_ids) & (new | events.c.type.in_(ENDS))
    which = of_jobs | (events.c.project.in_(projects) & new)
    query = select(events.c.id).where(events.c.id % NUM_SLOTS != slot, which)
    return set(await connection.scalars(query))


async def events_of_ids(connection: AsyncConnection, ids: Collection[int]) -> list[JobEvent]:
    query = select(events).where(events.c.id.in_(ids)).order_by(events.c.id)
    return [_happened(row) for row in await connection.execute(query)]


async def last_event_id(connection: AsyncConnection) -> int:
    return (await connection.execute(select(func.max(events.c.id)))).scalar() or 0


def _happened(row: Row[Any]) -> JobEvent:
    return JobEvent(row.id, row.job_id, row.project, row.type, row.data, row.id / 1e6)


def _event(event: JobEvent) -> dict[str, Any]:
    return {
        "id": event.id,
        "job_id": event.job_id,
        "project": event.project,
        "type": event.type,
        "data": _json(event.data),
    }


def _json(value: Any) -> str:
    return to_json(value).decode()


def outcome_json(outcome: Outcome) -> dict[str, Any]:
    values: dict[str, Any] = _OUTCOME.dump_python(outcome, mode="json")
    return values


def outcome_of(values: dict[str, Any]) -> Outcome:
    return _OUTCOME.validate_python(values)


def _job(row: Row[Any]) -> Job:
    return Job(
        id=row.id,
        caller=row.caller,
        project=row.project,
        work=_WORK.validate_python(row.work),
        created_at=row.created_at,
        status=row.status,
        started_at=row.started_at,
        completed_at=row.completed_at,
        outcome=None if row.outcome is None else outcome_of(row.outcome),
        warnings=tuple(row.warnings),
        metadata=row.metadata,
        webhook=row.webhook,
        server=row.server,
    )
