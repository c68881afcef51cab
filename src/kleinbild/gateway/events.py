"""What happens to jobs, as it happens and afterwards.

Changes of status are rows of the database, so that a stream can be resumed after a restart. Steps and previews are only
kept for a while in memory: whoever resumes late misses some, and loses nothing that the job's end does not tell.
"""

from __future__ import annotations

import asyncio
import time
from collections import defaultdict, deque
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy.ext.asyncio import AsyncConnection

from kleinbild.core.jobs import Job, JobEvent
from kleinbild.storage import jobs
from kleinbild.storage.database import Database
from kleinbild.storage.servers import NUM_SLOTS

NUM_RECENT = 512  # steps and previews that are kept
RECENT_BYTES = 16 * 10**6  # of previews: a service's may have megabytes each
NUM_WAITING = 1024  # events that a slow listener may be behind before he is left behind
NO_PROGRESS: dict[str, Any] = {"position": None, "image_index": 0, "step": 0, "num_steps": 0}
LAST = frozenset({"job.completed", "job.failed", "job.cancelled"})


class LaggardError(Exception):
    """A listener who is too slow; he may come back with the id of the last event that he has seen."""


@dataclass(slots=True, eq=False)
class Subscription:
    """The events of a project, or of one job, from now on. `following`: it ends when the server is about to stop."""

    following: bool
    _queue: asyncio.Queue[JobEvent | None] = field(default_factory=lambda: asyncio.Queue(NUM_WAITING))
    _lagging: bool = False

    def offer(self, event: JobEvent | None) -> None:
        """None is the end: the server stops."""
        try:
            self._queue.put_nowait(event)
        except asyncio.QueueFull:
            self._lagging = True

    async def next(self) -> JobEvent | None:
        if self._lagging and self._queue.empty():
            raise LaggardError
        return await self._queue.get()


class EventHub:
    """One per process. `new` makes an event, `record` keeps it, `publish` tells everybody who listens.

    `slot` is this server's (`storage.servers`): no two give an event the same id.
    """

    def __init__(self, database: Database, last_id: int = 0, slot: int = 0) -> None:
        self._database = database
        self._last_id, self._slot = last_id, slot
        self._recent: deque[JobEvent] = deque()
        self._recent_bytes = 0
        self._progress: dict[str, dict[str, Any]] = {}
        self._of_jobs: defaultdict[str, set[Subscription]] = defaultdict(set)
        self._of_projects: defaultdict[str, set[Subscription]] = defaultdict(set)
        self._closed = False

    def new(self, job: Job, kind: str, **data: Any) -> JobEvent:
        """Its id is the time in microseconds, or the last and a little, rounded up to one of this server's."""
        now = time.time()
        at = max(self._last_id + 1, int(now * 1e6))
        self._last_id = at + (self._slot - at) % NUM_SLOTS
        return JobEvent(self._last_id, job.id, job.project, kind, data, now)

    async def record(self, connection: AsyncConnection, event: JobEvent) -> JobEvent:
        """In the transaction that makes it true; `publish` it when that is committed."""
        await jobs.add_event(connection, event)
        return event

    def publish(self, event: JobEvent, *, recorded: bool) -> None:
        if not recorded:
            self._remember(event)
        if event.type in LAST:
            self._progress.pop(event.job_id, None)
        elif known := {name: event.data[name] for name in NO_PROGRESS if name in event.data}:
            self._progress[event.job_id] = {**self.progress(event.job_id), "position": None, **known}
        for subscription in (*self._of_jobs.get(event.job_id, ()), *self._of_projects.get(event.project, ())):
            subscription.offer(event)

    def _remember(self, event: JobEvent) -> None:
        self._recent.append(event)
        self._recent_bytes += len(event.data.get("png", b""))
        while len(self._recent) > NUM_RECENT or self._recent_bytes > RECENT_BYTES:
            self._recent_bytes -= len(self._recent.popleft().data.get("png", b""))

    def progress(self, job_id: str) -> dict[str, Any]:
        """How far a job is: its place in the queue until it is made, then the last step of any of its pictures."""
        return self._progress.get(job_id, NO_PROGRESS)

    def forget(self, job_id: str) -> None:
        """How far a job is: it is over."""
        self._progress.pop(job_id, None)

    @property
    def jobs_heard(self) -> frozenset[str]:
        """Those that somebody listens to."""
        return frozenset(self._of_jobs)

    @property
    def projects_heard(self) -> frozenset[str]:
        return frozenset(self._of_projects)

    def close(self) -> None:
        """Ends what `follow`s: those who listen may come back to the next server with the last id that they saw."""
        self._closed = True
        for subscriptions in (*self._of_jobs.values(), *self._of_projects.values()):
            for subscription in subscriptions:
                if subscription.following:
                    subscription.offer(None)

    @contextmanager
    def listen(self, project: str, job_id: str | None = None, *, following: bool = False) -> Iterator[Subscription]:
        subscription = Subscription(following)
        if following and self._closed:
            subscription.offer(None)
        group, name = (self._of_projects, project) if job_id is None else (self._of_jobs, job_id)
        group[name].add(subscription)
        try:
            yield subscription
        finally:
            group[name].discard(subscription)
            if not group[name]:
                del group[name]

    async def follow(self, project: str, job_id: str | None, after: int | None) -> AsyncIterator[JobEvent]:
        """Events with ids above `after`, those of the past first; with None, all of a job or only new ones of a project.

        Ends after a job's last event, which comes whatever `after` is: ids are given before what they tell of is
        kept, so that a step may have a higher one than the end that was told after it. A project's never ends.
        """
        with self.listen(project, job_id, following=True) as live:
            seen: set[int] = set()
            since = 0 if job_id is not None else int(time.time() * 1e6)
            since = since if after is None else after
            for event in await self._past(project, job_id, after):
                seen.add(event.id)
                yield event
                if job_id is not None and event.type in LAST:
                    return
            while True:
                latest = await live.next()
                if latest is None:
                    return
                if latest.id in seen or self._is_old(latest, job_id, since):
                    continue
                yield latest
                if job_id is not None and latest.type in LAST:
                    return

    def _is_old(self, event: JobEvent, job_id: str | None, since: int) -> bool:
        """One of another server's, which comes late, and perhaps to somebody who had it before."""
        others = event.id % NUM_SLOTS != self._slot
        return others and event.id <= since and (job_id is None or event.type not in LAST)

    async def _past(self, project: str, job_id: str | None, after: int | None) -> list[JobEvent]:
        if job_id is None and after is None:
            return []
        since = after or 0
        async with self._database.read() as connection:
            kept = await jobs.events_after(connection, project, since if job_id is None else 0, job_id)
        recent = [
            event
            for event in self._recent
            if event.id > since and event.project == project and job_id in (None, event.job_id)
        ]
        kept = [event for event in kept if event.id > since or event.type in LAST]
        return sorted([*kept, *recent], key=lambda event: (event.type in LAST and job_id is not None, event.id))
