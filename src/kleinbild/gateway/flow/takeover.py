"""What was left unfinished: by this server's life before, on SQLite; by another that died, on a PostgreSQL of several.

A server is dead once nobody has held its lock for a while (`storage.servers`): one whose session PostgreSQL ended is back
with another sooner.
"""

from __future__ import annotations

import asyncio
import logging
import time
from typing import TYPE_CHECKING

from kleinbild.core.errors import RequestError
from kleinbild.core.jobs import FINAL, ImageWork
from kleinbild.gateway.flow import durable
from kleinbild.gateway.secrets import Secrets, require_same
from kleinbild.storage import jobs, servers
from kleinbild.storage.database import OUTAGE
from kleinbild.storage.servers import Left, Member

if TYPE_CHECKING:
    from kleinbild.gateway.services import Services
    from kleinbild.gateway.settings import Settings

LOOK_SECONDS = 1.0
GRACE_SECONDS = 3.0  # a few times as long as a server takes to notice that it has lost its lock (CHECK_SECONDS)
log = logging.getLogger(__name__)


def require_alike(others: list[Member], secrets: Secrets, settings: Settings) -> None:
    """Raises RequestError where those who use the database would not find each other's pictures, or refuse their keys."""
    require_same(secrets, others, settings.data)
    place = settings.storage.blobs_url
    if others and (place is None or any(each.blobs != place for each in others)):
        theirs = ", ".join(sorted({each.blobs or "a folder of its own" for each in others}))
        raise RequestError(
            f"another server is running on the database, whose pictures are in {theirs}; here they are in "
            f"{place or 'a folder of its own'}",
            "set storage.blobs_url to the same place for all of them",
        )


async def go_on(services: Services) -> None:
    """With what this server's life before has left, be it by workflows that DBOS goes on with itself."""
    async with services.database.write() as connection:
        left = await servers.handed_over(connection, services.server, services.server)
    await _take_up(services, left)


async def look_after_others(services: Services) -> None:
    """For ever: goes on with what those who die have left."""
    since: dict[int, float] = {}  # the lock of each is missing
    while True:
        try:
            since = await _look(services, since)
        except OUTAGE:
            since = {}  # the database is not there: nothing is known of anybody
        except Exception:
            log.exception("what another server left could not be taken over")
        await asyncio.sleep(LOOK_SECONDS)


async def _look(services: Services, before: dict[int, float]) -> dict[int, float]:
    async with services.database.read() as connection:
        missing = await servers.without_lock(connection)
    if services.server in missing or services.draining:
        return {}
    now = time.monotonic()
    since = {number: before.get(number, now) for number in missing}
    for number in [number for number in missing if now - since[number] >= GRACE_SECONDS]:
        del since[number]
        await _take_over(services, number)
    return since


async def _take_over(services: Services, dead: int) -> None:
    await durable.call_off(dead)
    async with services.database.write() as connection:
        left = await servers.take_over(connection, dead, services.server)
    if left != Left():
        log.warning("another server has died: %d jobs of its are made here", len(left.jobs))
    while True:
        try:
            return await _take_up(services, left)
        except OUTAGE:  # it is ours, and nobody else will
            await asyncio.sleep(LOOK_SECONDS)


async def _take_up(services: Services, left: Left) -> None:
    async with services.database.read() as connection:
        for job_id in left.jobs:
            if (job := await jobs.find(connection, job_id)) is not None:
                services.admission.resume(job.caller, job_id, job.work.n)
    services.tunings.wake()
    await durable.take_up(services, left)
    await services.attempts.recover(left.attempts, lambda job_id: _work_of(services, job_id))


async def _work_of(services: Services, job_id: str) -> ImageWork | None:
    """Of a job that has ended or is forgotten; all others see to their attempts themselves."""
    async with services.database.read() as connection:
        job = await jobs.find(connection, job_id)
    if job is None:
        return ImageWork("image.generate", "", "", seed=0)
    return job.work if job.status in FINAL else None
