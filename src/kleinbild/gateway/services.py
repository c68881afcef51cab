"""What the routes work with: made once when the server starts, closed when it stops."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from fastapi import Request

from kleinbild.gateway.webhooks import RETRY_SECONDS
from kleinbild.storage.servers import ALONE

if TYPE_CHECKING:
    from kleinbild.core.jobs import Job
    from kleinbild.gateway.api.media import Media
    from kleinbild.gateway.events import EventHub
    from kleinbild.gateway.fleet import Fleet
    from kleinbild.gateway.flow.admit import Admission
    from kleinbild.gateway.flow.attempt import Attempts
    from kleinbild.gateway.flow.authenticate import Authenticator
    from kleinbild.gateway.flow.make import Plan
    from kleinbild.gateway.flow.tune import Tunings
    from kleinbild.gateway.health import HealthChecks
    from kleinbild.gateway.limits.counters import Counters
    from kleinbild.gateway.pulse import Pulse
    from kleinbild.gateway.refresh import Known
    from kleinbild.gateway.secrets import Secrets
    from kleinbild.gateway.settings import Settings
    from kleinbild.providers.base import Provider
    from kleinbild.safety.fetch import Fetcher
    from kleinbild.storage.blobs import Blobs
    from kleinbild.storage.budgets import Budgets
    from kleinbild.storage.commits import Commits
    from kleinbild.storage.database import Database
    from kleinbild.storage.ledger import Ledger


MAX_FINISHED = 512


class Finished:
    """The last jobs that ended here, so that who waited for one need not read it again."""

    def __init__(self) -> None:
        self._jobs: OrderedDict[str, Job] = OrderedDict()

    def keep(self, job: Job) -> None:
        self._jobs[job.id] = job
        if len(self._jobs) > MAX_FINISHED:
            self._jobs.popitem(last=False)

    def take(self, job_id: str) -> Job | None:
        return self._jobs.pop(job_id, None)


@dataclass(slots=True, eq=False)
class Services:
    """`running` are the tasks that make pictures, by job; `plans` say where, of jobs that have not begun. `direct` are those
    of jobs that are no workflows, and `finished` what came of the last of these. `draining`: no new work, what is under way may end; when the
    server is `stopping`, what has not ended by then is left for the next start.

    `server` is the number of this one among those that use the database (`storage.servers`).

    `outbox` holds the ids of deliveries that are to be sent; the tasks in `delivering` send them, or wait to try again
    as `retry_seconds` say.
    """

    settings: Settings
    database: Database
    blobs: Blobs
    secrets: Secrets
    media: Media
    authenticator: Authenticator
    hub: EventHub
    admission: Admission
    provider: Provider
    fleet: Fleet
    commits: Commits
    ledger: Ledger
    budgets: Budgets
    counters: Counters
    attempts: Attempts
    checks: HealthChecks
    fetcher: Fetcher
    pulse: Pulse
    known: Known
    tunings: Tunings = field(init=False)
    server: int = ALONE
    retry_seconds: tuple[float, ...] = RETRY_SECONDS
    running: dict[str, asyncio.Task[Any]] = field(default_factory=dict)
    plans: dict[str, Plan] = field(default_factory=dict)
    direct: set[asyncio.Task[None]] = field(default_factory=set)
    finished: Finished = field(default_factory=Finished)
    outbox: asyncio.Queue[str] = field(default_factory=asyncio.Queue)
    delivering: set[asyncio.Task[Any]] = field(default_factory=set)
    draining: bool = False
    stopping: bool = False


def services_of(request: Request) -> Services:
    found: Services = request.app.state.services
    return found
