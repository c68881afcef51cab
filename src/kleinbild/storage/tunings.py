"""Fine-tuning jobs in the database: what was wanted, how they stand, what happened to them. Within the caller's transaction.

The adapters that they gave are elsewhere (`model.adapters.registry`); these rows say whose they are.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from sqlalchemy import Row, func, insert, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from kleinbild.storage.dialects import insert_into
from kleinbild.storage.schema import fine_tuning_checkpoints as checkpoints_table
from kleinbild.storage.schema import fine_tuning_events as events_table
from kleinbild.storage.schema import fine_tuning_jobs as jobs_table

Status = Literal["validating_files", "queued", "running", "paused", "succeeded", "failed", "cancelled"]
FINAL: frozenset[Status] = frozenset({"succeeded", "failed", "cancelled"})
UNFINISHED: tuple[Status, ...] = ("validating_files", "queued", "running", "paused")
Level = Literal["info", "warn", "error"]
Auto = Literal["auto"]


@dataclass(frozen=True, slots=True)
class Hyperparameters:
    """OpenAI's three; "auto" is left to the recipe."""

    n_epochs: int | Auto = "auto"
    batch_size: int | Auto = "auto"
    learning_rate_multiplier: float | Auto = "auto"


@dataclass(frozen=True, slots=True)
class Wanted:
    """What was asked for. `base` is the model that is trained; `recipe` the values that the run begins with, whatever they
    came from."""

    base: str
    training_file: str
    seed: int
    suffix: str = ""
    hyperparameters: Hyperparameters = Hyperparameters()
    recipe: dict[str, Any] = field(default_factory=dict)
    metadata: dict[str, str] = field(default_factory=dict)
    validation_file: str | None = None


@dataclass(frozen=True, slots=True)
class Result:
    """How it ended. `error` has OpenAI's three fields: code, message, param."""

    error: dict[str, str | None] | None = None
    trained_tokens: int | None = None
    result_files: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Tuning:
    """A fine-tuning job. `model` is what the adapter is used with; `heard_until` the time of the worker's last event that is
    kept here; `server` the number of the one that sees to it."""

    id: str
    caller: str
    project: str
    model: str
    adapter: str
    wanted: Wanted
    created_at: float
    status: Status = "validating_files"
    started_at: float | None = None
    finished_at: float | None = None
    estimated_finish: float | None = None
    heard_until: float = 0.0
    result: Result | None = None
    server: int = 0

    @property
    def fine_tuned_model(self) -> str:
        """The name by which requests ask for it."""
        return f"ft:{self.model}:{self.adapter}"


@dataclass(frozen=True, slots=True)
class Happening:
    """An event of a job; `number` counts them from 1, 0 before it is kept."""

    message: str
    created_at: float
    level: Level = "info"
    data: dict[str, Any] | None = None
    number: int = 0

    @property
    def type(self) -> Literal["message", "metrics"]:
        return "metrics" if self.data is not None and "step" in self.data else "message"


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """An adapter of a run that is under way, at `path` in its folder."""

    job_id: str
    step: int
    path: str
    metrics: dict[str, float]
    created_at: float


async def add(connection: AsyncConnection, tuning: Tuning) -> None:
    await connection.execute(insert(jobs_table).values(asdict(tuning)))


async def find(connection: AsyncConnection, job_id: str, project: str | None = None) -> Tuning | None:
    """The job, if it is there and belongs to `project` (None: to whomever)."""
    query = select(jobs_table).where(jobs_table.c.id == job_id)
    if project is not None:
        query = query.where(jobs_table.c.project == project)
    row = (await connection.execute(query)).first()
    return None if row is None else _tuning(row)


async def newest(connection: AsyncConnection, project: str, *, limit: int, after: str | None = None) -> list[Tuning]:
    """Newest first, from the one that follows `after`."""
    query = select(jobs_table).where(jobs_table.c.project == project).order_by(jobs_table.c.id.desc()).limit(limit)
    if after is not None:
        query = query.where(jobs_table.c.id < after)
    return [_tuning(row) for row in await connection.execute(query)]


async def waiting(connection: AsyncConnection, server: int, statuses: Collection[Status]) -> list[Tuning]:
    """That server's jobs of these statuses, those first that have begun, then the oldest."""
    query = select(jobs_table).where(jobs_table.c.server == server, jobs_table.c.status.in_(statuses))
    query = query.order_by(jobs_table.c.started_at.is_(None), jobs_table.c.id)
    return [_tuning(row) for row in await connection.execute(query)]


async def num_unfinished(connection: AsyncConnection, project: str) -> int:
    of_project = (jobs_table.c.project == project) & jobs_table.c.status.not_in(FINAL)
    return int(await connection.scalar(select(func.count()).select_from(jobs_table).where(of_project)) or 0)


async def change(
    connection: AsyncConnection, job_id: str, before: Collection[Status], status: Status, **values: Any
) -> Tuning | None:
    """The job, which has `status` from now on; None if it had none of those `before`."""
    if isinstance(result := values.get("result"), Result):
        values["result"] = asdict(result)
    is_so = (jobs_table.c.id == job_id) & jobs_table.c.status.in_(before)
    changed = await connection.execute(update(jobs_table).where(is_so).values(status=status, **values))
    return await find(connection, job_id) if changed.rowcount else None


async def note(connection: AsyncConnection, job_id: str, **values: float | None) -> None:
    """Facts beside its status."""
    await connection.execute(update(jobs_table).where(jobs_table.c.id == job_id).values(**values))


async def owners(connection: AsyncConnection) -> dict[str, str]:
    """The projects of the adapters that fine-tuning has made or will make; all others are everybody's."""
    rows = await connection.execute(select(jobs_table.c.adapter, jobs_table.c.project))
    return {row.adapter: row.project for row in rows}


async def of_adapter(connection: AsyncConnection, adapter: str) -> Tuning | None:
    row = (await connection.execute(select(jobs_table).where(jobs_table.c.adapter == adapter))).first()
    return None if row is None else _tuning(row)


async def tell(connection: AsyncConnection, job_id: str, happened: Sequence[Happening]) -> None:
    """Adds events, in this order, after those that there are."""
    last = select(func.max(events_table.c.number)).where(events_table.c.job_id == job_id)
    first = (await connection.scalar(last) or 0) + 1
    for number, each in enumerate(happened, first):
        values = {**asdict(each), "number": number, "type": each.type, "job_id": job_id}
        await connection.execute(insert(events_table).values(values))


async def events(
    connection: AsyncConnection, job_id: str, *, limit: int, before: int | None = None, after: int | None = None
) -> list[Happening]:
    """Newest first, from the one below the number `before`; with `after` oldest first, from the one above it."""
    query = select(events_table).where(events_table.c.job_id == job_id).limit(limit)
    number = events_table.c.number
    if after is not None:
        query = query.where(number > after).order_by(number)
    else:
        query = (query if before is None else query.where(number < before)).order_by(number.desc())
    rows = await connection.execute(query)
    return [Happening(row.message, row.created_at, row.level, row.data, row.number) for row in rows]


async def add_checkpoint(connection: AsyncConnection, checkpoint: Checkpoint) -> None:
    """Once: a run that was interrupted may come to the same step again."""
    change = insert_into(connection, checkpoints_table).values(asdict(checkpoint)).on_conflict_do_nothing()
    await connection.execute(change)


async def checkpoints(
    connection: AsyncConnection, job_id: str, *, limit: int, before: int | None = None
) -> list[Checkpoint]:
    """The last first, from the one below the step `before`."""
    step = checkpoints_table.c.step
    query = select(checkpoints_table).where(checkpoints_table.c.job_id == job_id).order_by(step.desc()).limit(limit)
    rows = await connection.execute(query if before is None else query.where(step < before))
    return [Checkpoint(row.job_id, row.step, row.path, row.metrics, row.created_at) for row in rows]


async def find_checkpoint(connection: AsyncConnection, job_id: str, step: int) -> Checkpoint | None:
    found = await checkpoints(connection, job_id, limit=1, before=step + 1)
    return found[0] if found and found[0].step == step else None


def _tuning(row: Row[Any]) -> Tuning:
    values = row._asdict()
    wanted = values["wanted"]
    values["wanted"] = Wanted(**{**wanted, "hyperparameters": Hyperparameters(**wanted["hyperparameters"])})
    if (result := values["result"]) is not None:
        values["result"] = Result(**{**result, "result_files": tuple(result["result_files"])})
    return Tuning(**values)
