"""The catalog, looked for anew where `[catalog]` says: taken whole or not at all, kept in the data folder, in force at once.

1. Every `refresh_hours` the URL or the file is read (`refreshed`); what is newer and all right becomes `catalog.toml` in
   the data folder, anything else is told and leaves it as it was. `kleinbild catalog refresh` does just this.
2. Whenever `catalog.toml` there has changed, by whomever, the fleet learns from it (`look`).
"""

from __future__ import annotations

import asyncio
import json
import logging
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from kleinbild.core.errors import DestinationError, FetchError
from kleinbild.gateway.catalog import FILE, MAX_BYTES, CatalogError, KnownAlreadyError, load, usable
from kleinbild.gateway.opened import facts_of

if TYPE_CHECKING:
    from kleinbild.gateway.services import Services
    from kleinbild.gateway.settings import Settings
    from kleinbild.safety.fetch import Fetcher

STATE = "catalog-refresh.json"
LOOK_SECONDS = 30.0
AGAIN_SECONDS = 600.0  # after one that failed
HOUR = 3600.0
log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Refreshed:
    """`source` was read `at` (seconds since 1970); if what was there is not taken, `error` says why."""

    source: str
    at: float
    error: str | None = None


@dataclass(slots=True, eq=False)
class Known:
    """What a running server knows: the `version` of the catalog in force, when its file was last `changed`, and how the
    last look for a newer one went."""

    version: str
    changed: int | None = None
    last: Refreshed | None = None


def known(data: Path, version: str) -> Known:
    """Of a server that starts with the catalog of that version."""
    return Known(version, _changed(data), last_of(data))


def last_of(data: Path) -> Refreshed | None:
    try:
        return Refreshed(**json.loads((data / STATE).read_text("utf-8")))
    except (OSError, ValueError, TypeError):
        return None


async def refreshed(settings: Settings, fetcher: Fetcher) -> Refreshed:
    """Looks where the settings say, and keeps what is newer and right. That the same is there as before is well."""
    error = None
    try:
        await _load(settings, fetcher)
    except KnownAlreadyError:
        pass
    except (CatalogError, DestinationError, FetchError) as failure:
        error = f"{failure.message}; {failure.hint}"
    found = Refreshed(str(settings.catalog.source), time.time(), error)
    try:
        (settings.data / STATE).write_text(json.dumps(asdict(found)), "utf-8")
    except OSError as failure:
        log.warning("%s cannot be written: %s", settings.data / STATE, failure)
    return found


async def run(services: Services) -> None:
    """For ever."""
    while True:
        try:
            await look(services)
        except Exception:
            log.exception("the catalog could not be looked after; trying again later")
        await asyncio.sleep(LOOK_SECONDS)


async def look(services: Services) -> None:
    """Refreshes the catalog if it is time, and takes over one that has changed."""
    settings, state = services.settings, services.known
    if is_due(settings, state.last, time.time()):
        state.last = await refreshed(settings, services.fetcher)
        if state.last.error is not None:
            log.warning("the catalog %s stays in force: %s", state.version, state.last.error)
    changed = _changed(settings.data)
    if changed == state.changed:
        return
    state.changed, found = changed, await asyncio.to_thread(usable, settings.data)
    if found.version == state.version:
        return
    services.fleet.learn(facts_of(settings, services.provider, found, services.counters))
    state.version = found.version
    log.warning("the catalog %s is in force", found.version)


def is_due(settings: Settings, last: Refreshed | None, now: float) -> bool:
    source = settings.catalog.source
    if source is None:
        return False
    if last is None or last.source != source:
        return True
    seconds = settings.catalog.refresh_hours * HOUR
    return now - last.at >= (seconds if last.error is None else min(seconds, AGAIN_SECONDS))


async def _load(settings: Settings, fetcher: Fetcher) -> None:
    """Raises CatalogError, DestinationError, FetchError."""
    url, file, last_good = settings.catalog.url, settings.catalog.file, settings.data / FILE
    if url is None:
        assert file is not None
        await asyncio.to_thread(load, file, last_good)
        return
    async with await fetcher.fetch(url, accept="application/toml, text/plain", max_bytes=MAX_BYTES) as fetched:
        content = await fetched.read()
    try:
        text = content.decode()
    except UnicodeDecodeError as error:
        raise CatalogError("the catalog that was fetched is not UTF-8", "look at what the URL gives") from error
    await asyncio.to_thread(load, text, last_good)


def _changed(data: Path) -> int | None:
    try:
        return (data / FILE).stat().st_mtime_ns
    except OSError:
        return None
