"""The server's life: opened from its settings before the first request, closed after the last."""

from __future__ import annotations

import asyncio
import fcntl
import logging
import os
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from pathlib import Path

from kleinbild.core.errors import OutputError
from kleinbild.core.heap import give_back_holes
from kleinbild.engine.remote import RemoteEngine
from kleinbild.gateway.api.media import Media
from kleinbild.gateway.events import EventHub
from kleinbild.gateway.flow import durable
from kleinbild.gateway.flow.admit import Admission
from kleinbild.gateway.flow.authenticate import Authenticator
from kleinbild.gateway.pulse import Pulse
from kleinbild.gateway.secrets import load_secrets_of
from kleinbild.gateway.services import Services
from kleinbild.gateway.settings import EngineSettings, LimitSettings, Settings
from kleinbild.providers.local import LocalProvider
from kleinbild.safety.fetch import Fetcher, FetchLimits, Reach
from kleinbild.storage import jobs
from kleinbild.storage.blobs import open_blobs
from kleinbild.storage.database import open_database
from kleinbild.storage.ownership import owned
from kleinbild.storage.retention import sweep

SWEEP_SECONDS = 600.0
TRIM_SECONDS = 4.0
WORKFLOWS_KEPT_SECONDS = 3600.0  # for a look into what went wrong; the jobs themselves say what became of them
DAY = 24 * 3600.0
NICE = 5  # of the engine's process: on few cores the server must answer while pictures are made
log = logging.getLogger(__name__)


@asynccontextmanager
async def open_services(settings: Settings) -> AsyncIterator[Services]:
    """Everything that the routes work with. Raises core.errors in words where something cannot be opened."""
    data = settings.data
    async with AsyncExitStack() as stack:
        stack.enter_context(own(data))
        database = await open_database(settings.database_url)
        stack.push_async_callback(database.close)
        await stack.enter_async_context(owned(database))
        async with database.read() as connection:
            secrets = await load_secrets_of(connection, data)
            last_event = await jobs.last_event_id(connection)
        blobs = open_blobs(database, settings.storage.blobs_url or data / "blobs")
        provider = LocalProvider(settings.engine.models, _engines(settings.engine))
        stack.push_async_callback(provider.close)
        services = Services(
            settings=settings,
            database=database,
            blobs=blobs,
            secrets=secrets,
            media=Media(secrets.derive("signed urls"), settings.storage.url_minutes * 60),
            authenticator=Authenticator(database, secrets.derive("api keys"), open_to_all=settings.loopback),
            hub=EventHub(database, last_event),
            admission=Admission(settings.limits.max_queue, settings.limits.callers),
            provider=provider,
            fetcher=Fetcher(*fetching(settings.limits)),
            pulse=Pulse(),
        )
        stack.push_async_callback(services.fetcher.aclose)
        await durable.launch(services, data)
        stack.push_async_callback(durable.stop, services)
        for task in (_sweep(services), _trim(), services.pulse.beat()):
            stack.callback(asyncio.create_task(task).cancel)
        yield services


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


async def _trim() -> None:
    while True:
        await asyncio.sleep(TRIM_SECONDS)
        await asyncio.to_thread(give_back_holes)


async def _sweep(services: Services) -> None:
    """Removes what has outlived its time, every ten minutes."""
    while True:
        await asyncio.sleep(SWEEP_SECONDS)
        try:
            kept_seconds = services.settings.storage.image_days * DAY
            await sweep(services.database, services.blobs, time.time(), kept_seconds)
            await durable.forget(time.time() - WORKFLOWS_KEPT_SECONDS)
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
