"""The decisions in a server's data, with what came of them: read there, whether the server runs or not."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from decimal import Decimal

from sqlalchemy.ext.asyncio import AsyncConnection

from kleinbild.core.errors import RequestError
from kleinbild.core.money import ZERO
from kleinbild.gateway.routing.decision import Decision
from kleinbild.gateway.routing.replay import Outcome, Recorded
from kleinbild.gateway.settings import Settings
from kleinbild.storage import decisions
from kleinbild.storage.attempts import QUERY, Entry, entries
from kleinbild.storage.database import open_database
from kleinbild.storage.schema import attempts

PAGE = 500


async def since(settings: Settings, project: str | None, at: float) -> list[Recorded]:
    """Oldest first. Raises RequestError where there are no data."""
    _require_data(settings)
    database = await open_database(settings.database_url)
    try:
        async with database.read() as connection:
            found: list[Recorded] = []
            last: decisions.Decision | None = None
            while page := await decisions.since(connection, project, at, limit=PAGE, after=last):
                found.extend(await _recorded(connection, page))
                last = page[-1]
            return found
    finally:
        await database.close()


async def find(settings: Settings, name: str) -> Decision:
    """By its id, or by its job's. Raises RequestError."""
    _require_data(settings)
    database = await open_database(settings.database_url)
    try:
        async with database.read() as connection:
            kept = await decisions.find(connection, name)
            of_job = [] if kept else await decisions.of_job(connection, name)
    finally:
        await database.close()
    if kept is None and not of_job:
        raise RequestError(
            f"there is no decision {name!r}", "give its id, dec_…, from the header x-kleinbild-decision, or its job's"
        )
    return Decision.from_json((kept or of_job[-1]).body)


def _require_data(settings: Settings) -> None:
    file = settings.database_file
    if file is not None and not file.exists():
        raise RequestError(f"nothing was decided yet in {settings.data}", "--data names another folder")


async def _recorded(connection: AsyncConnection, page: Sequence[decisions.Decision]) -> list[Recorded]:
    wanted = [kept.job_id for kept in page if kept.job_id is not None]
    rows = await connection.execute(QUERY.where(attempts.c.job_id.in_(wanted)))
    by_job: dict[str | None, list[Entry]] = {}
    for entry in entries(rows.mappings()):
        by_job.setdefault(entry.attempt.job_id, []).append(entry)
    return [Recorded(Decision.from_json(kept.body), _outcome(by_job.get(kept.job_id, ()))) for kept in page]


def _outcome(tried: Iterable[Entry]) -> Outcome | None:
    """Of the attempts of a job; None if there are none, or one has yet to end."""
    tried = list(tried)
    if not tried or not all(entry.has_ended for entry in tried):
        return None
    cost: Decimal = sum((entry.cost or ZERO for entry in tried), ZERO)
    done = [entry for entry in tried if entry.state == "done"]
    if not done:
        return Outcome(None, cost)
    maker = max(done, key=lambda entry: entry.attempt.count).attempt
    times = [_seconds(entry) for entry in done if entry.attempt.deployment == maker.deployment]
    return Outcome(maker.deployment, cost, sum(times) if maker.kind == "local" else max(times))


def _seconds(entry: Entry) -> float:
    """As told, else by the clock."""
    if entry.seconds is not None:
        return entry.seconds
    return (entry.ended_at or entry.attempt.created_at) - entry.attempt.created_at
