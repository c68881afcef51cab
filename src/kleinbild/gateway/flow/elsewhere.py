"""What other servers on the same PostgreSQL keep of jobs that somebody listens to here, or that are made here.

Their rows are looked for, a few times a second. PostgreSQL could tell of each (NOTIFY), but takes a lock of the whole
database for every commit that tells something; and what came while the connection was lost would have to be looked for
all the same. Steps and previews are no rows: they are told where the job is made.
"""

from __future__ import annotations

import asyncio
import logging
import time
from typing import TYPE_CHECKING

from kleinbild.core.jobs import JobEvent
from kleinbild.gateway.events import LAST
from kleinbild.storage import jobs
from kleinbild.storage.database import OUTAGE
from kleinbild.storage.servers import NUM_SLOTS

if TYPE_CHECKING:
    from kleinbild.gateway.services import Services

POLL_SECONDS = 0.25
LATE_SECONDS = 10.0  # by which a commit, or another server's clock, may be behind; a job's end may be by more
MICROSECONDS = 1_000_000
log = logging.getLogger(__name__)


async def hear(services: Services) -> None:
    """For ever: publishes what others keep, and ends what is made here of a job that was cancelled there."""
    hearing = _Hearing(services)
    while True:
        await asyncio.sleep(POLL_SECONDS)
        try:
            await hearing.look()
        except OUTAGE:
            pass  # the database is not there; what is kept meanwhile is found when it is
        except Exception:
            log.exception("what other servers tell could not be read")


class _Hearing:
    def __init__(self, services: Services) -> None:
        self._services = services
        self._seen: set[int] = set()  # ids of the events that the last look found
        self._before: frozenset[str] = frozenset()
        self._last = time.time()

    async def look(self) -> None:
        """Most jobs are made, here and in less time than there is between two looks: of these there is nothing to hear."""
        services, hub = self._services, self._services.hub
        asked = hub.jobs_heard | services.running.keys()
        long_asked, self._before = asked & self._before, asked
        now, projects = time.time(), hub.projects_heard
        found, new = set[int](), list[JobEvent]()
        if long_asked or projects:
            slot, since = services.server % NUM_SLOTS, int((self._last - LATE_SECONDS) * MICROSECONDS)
            async with services.database.read() as connection:
                found = await jobs.ids_of_others(connection, slot, since, long_asked, projects)
                if unseen := found - self._seen:
                    new = await jobs.events_of_ids(connection, unseen)
        self._seen, self._last = found, now
        for event in new:
            hub.publish(event, recorded=True)
            if event.type in LAST and (task := services.running.get(event.job_id)) is not None:
                task.cancel()
