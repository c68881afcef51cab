"""The server's life: opened from its settings before the first request, closed after the last."""

from __future__ import annotations

import asyncio
import fcntl
import logging
import os
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager, suppress
from pathlib import Path

from kleinbild.core.errors import OutputError
from kleinbild.core.heap import give_back_holes
from kleinbild.engine.remote import RemoteEngine
from kleinbild.gateway import canary, experience, refresh
from kleinbild.gateway.api.media import Media
from kleinbild.gateway.catalog import usable
from kleinbild.gateway.events import EventHub
from kleinbild.gateway.flow import durable, elsewhere, takeover
from kleinbild.gateway.flow.admit import Admission
from kleinbild.gateway.flow.attempt import Attempts
from kleinbild.gateway.flow.authenticate import Authenticator
from kleinbild.gateway.flow.tune import Tunings
from kleinbild.gateway.health import HealthChecks
from kleinbild.gateway.limits.counters import Counters
from kleinbild.gateway.limits.memory import MemoryCounters
from kleinbild.gateway.opened import configured_callers, open_fleet, settle_budgets
from kleinbild.gateway.pulse import Pulse
from kleinbild.gateway.secrets import load_secrets_of
from kleinbild.gateway.services import Services
from kleinbild.gateway.settings import EngineSettings, LimitSettings, Settings
from kleinbild.providers.local import LocalProvider
from kleinbild.providers.training import Trainer
from kleinbild.safety.fetch import Fetcher, FetchLimits, Reach
from kleinbild.storage import jobs, servers
from kleinbild.storage.blobs import Blobs, open_blobs
from kleinbild.storage.budgets import Budgets
from kleinbild.storage.commits import Commits
from kleinbild.storage.database import open_database
from kleinbild.storage.ledger import Ledger
from kleinbild.storage.retention import sweep

SWEEP_SECONDS = 600.0
TRIM_SECONDS = 4.0
WORKFLOWS_KEPT_SECONDS = 3600.0  # for a look into what went wrong; the jobs themselves say what became of them
HOUR = 3600.0
DAY = 24 * HOUR
NICE = 5  # of the engine's process: on few cores the server must answer while pictures are made
log = logging.getLogger(__name__)


@asynccontextmanager
async def open_services(settings: Settings, trainer: Trainer | None = None) -> AsyncIterator[Services]:
    """Everything that the routes work with. Raises core.errors in words where something cannot be opened."""
    data = settings.data
    async with AsyncExitStack() as stack:
        stack.enter_context(own(data))
        database = await open_database(settings.database_url)
        stack.push_async_callback(database.close)
        life = await stack.enter_async_context(servers.live(database))
        async with database.read() as connection:
            secrets = await load_secrets_of(connection, data)
            last_event = await jobs.last_event_id(connection)
        takeover.require_alike(await life.join(secrets.digest, settings.storage.blobs_url), secrets, settings)
        commits = Commits(database)
        stack.push_async_callback(commits.drain)
        blobs = open_blobs(database, settings.storage.blobs_url or data / "blobs", commits)
        provider = LocalProvider(settings.engine.models, _engines(settings.engine))
        stack.push_async_callback(provider.close)
        counters = await open_counters(settings.limits.shared_url)
        stack.push_async_callback(counters.close)
        fetcher = Fetcher(*fetching(settings.limits))
        stack.push_async_callback(fetcher.aclose)
        admission = Admission(settings.limits.max_queue, settings.limits.callers, counters)
        found = usable(settings.data)
        fleet = open_fleet(
            settings,
            provider,
            fetcher,
            waiting=admission.waiting_seconds,
            counters=counters,
            known=found,
            predictor=experience.read(data),
        )
        stack.callback(lambda: experience.keep(data, fleet.predictor))
        stack.push_async_callback(fleet.close)
        ledger = Ledger(database, commits=commits, server=life.number)
        budgets = Budgets(database)
        await settle_budgets(settings, database, budgets)
        key_secret = secrets.derive("api keys")
        attempts = Attempts(ledger, blobs, fleet, lambda: time.time() + services.settings.storage.image_days * DAY)
        stack.push_async_callback(attempts.close)
        services = Services(
            settings=settings,
            database=database,
            blobs=blobs,
            secrets=secrets,
            media=Media(secrets.derive("signed urls"), settings.storage.url_minutes * 60),
            authenticator=Authenticator(
                database,
                key_secret,
                open_to_all=settings.loopback,
                configured=configured_callers(settings, key_secret),
            ),
            hub=EventHub(database, last_event, life.slot),
            admission=admission,
            provider=provider,
            fleet=fleet,
            commits=commits,
            ledger=ledger,
            budgets=budgets,
            counters=counters,
            attempts=attempts,
            checks=HealthChecks(fleet.places, fleet.listed, fleet.circuits, every=settings.routing.probe_seconds),
            fetcher=fetcher,
            pulse=Pulse(),
            known=refresh.known(settings.data, found.version),
            server=life.number,
        )
        services.tunings = Tunings(services, trainer or Trainer())
        await durable.launch(services, data)
        stack.push_async_callback(durable.stop, services)
        beside = [_sweep(services), _trim(blobs), services.pulse.beat(), canary.run(services), refresh.run(services)]
        if life.number == servers.ALONE:
            await takeover.go_on(services)
        else:
            beside += [takeover.look_after_others(services), elsewhere.hear(services)]
        for task in beside:
            stack.callback(asyncio.create_task(task).cancel)
        await stack.enter_async_context(_running(services.tunings))
        if settings.routing.probe_seconds:
            stack.callback(asyncio.create_task(services.checks.run()).cancel)
        yield services


@asynccontextmanager
async def _running(fine_tuning: Tunings) -> AsyncIterator[None]:
    """When it is left, trainers have kept their states and ended."""
    task = asyncio.create_task(fine_tuning.run())
    try:
        yield
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task


@contextmanager
def own(data: Path) -> Iterator[None]:
    """The data folder, made if need be, for one server at a time: two would make each job twice."""
    try:
        data.mkdir(parents=True, exist_ok=True, mode=0o700)
        lock = (data / "lock").open("w")
    except OSError as error:
        raise OutputError(f"{data} cannot be written: {error.strerror}", "choose another with --data") from error
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise OutputError(
                f"another server is running on {data}", "stop it, or choose another folder with --data"
            ) from error
        lock.write(str(os.getpid()))
        lock.flush()
        yield


def fetching(settings: LimitSettings) -> tuple[Reach, FetchLimits]:
    """Where pictures may be fetched from and webhooks be told, and how much of a picture, in what time."""
    reach = Reach(settings.allowed_networks, frozenset(settings.allowed_ports))
    return reach, FetchLimits(max_bytes=int(settings.max_image_mb * 1e6), seconds=settings.fetch_seconds)


async def open_counters(shared_url: str | None) -> Counters:
    """Raises CountersError where the server that is to be shared does not answer."""
    if shared_url is None:
        return MemoryCounters()
    from kleinbild.gateway.limits.shared import open_shared

    return await open_shared(shared_url)


async def _trim(blobs: Blobs) -> None:
    while True:
        await asyncio.sleep(TRIM_SECONDS)
        blobs.forget_latest()
        await asyncio.to_thread(give_back_holes)


async def _sweep(services: Services) -> None:
    """Removes what has outlived its time, every ten minutes."""
    while True:
        await asyncio.sleep(SWEEP_SECONDS)
        try:
            kept_seconds = services.settings.storage.image_days * DAY
            if await sweep(services.database, services.blobs, time.time(), kept_seconds):
                await durable.forget(time.time() - WORKFLOWS_KEPT_SECONDS)
            await asyncio.to_thread(experience.keep, services.settings.data, services.fleet.predictor)
            now = time.time()
            await services.attempts.give_up_unknown(now - services.settings.routing.unknown_hours * HOUR, now)
        except Exception:
            log.exception("what has expired could not be removed; trying again later")


def _engines(settings: EngineSettings) -> Callable[[str], RemoteEngine]:
    return lambda model: RemoteEngine(
        model,
        device=settings.device,
        dtype=settings.dtype,
        offload=settings.offload,
        compile=settings.compile,
        nice=NICE,
    )
