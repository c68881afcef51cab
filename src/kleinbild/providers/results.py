"""Pictures of work that is done, fetched from where the service put them, at once: those places last minutes."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from decimal import Decimal

from kleinbild.providers import delivered
from kleinbild.providers.hosted import Fetched, Handle, ProviderError
from kleinbild.providers.polling import FACTOR, FIRST_SECONDS, Deadline
from kleinbild.providers.wire import Wire

MAX_SEED = 2**64
MAX_SECONDS = 86_400.0
TRIES = 3
"""Getting a picture buys nothing, and one that is not got is paid for all the same."""
PICTURE_SECONDS = 60.0
MIN_SECONDS = 5.0
"""For a picture that was made just before the time was up."""


async def fetched(
    wire: Wire,
    places: object,
    count: int,
    *,
    handle: Handle,
    deadline: Deadline,
    seeds: Sequence[int | None] = (),
    charged: Decimal | None = None,
) -> tuple[Fetched, ...]:
    """The `count` pictures at `places`: URLs, or pictures themselves as data URLs. Raises ProviderError, of work that is
    done and billed."""
    try:
        urls = [place for place in places if isinstance(place, str)] if isinstance(places, list) else []
        if len(urls) != count:
            raise delivered.bad_answer(
                "the service did not give the pictures that were asked for", f"{len(urls)} of {count}"
            )
        found = await asyncio.gather(*(_file(wire, url, deadline) for url in urls), return_exceptions=True)
        files = [file if isinstance(file, bytes) else _raise(file) for file in found]
        return await delivered.checked(files, count, seeds)
    except ProviderError as error:
        error.acceptance, error.billed, error.charged, error.handle = "accepted", True, charged, handle
        raise


def seed_of(value: object) -> int | None:
    """A seed as a service tells it; None for what can be none."""
    if isinstance(value, bool) or not isinstance(value, int):
        return None
    return value if 0 <= value < MAX_SEED else None


def seconds_of(value: object) -> float | None:
    """What a service says that it took; None for what can be no such time."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return float(value) if 0 <= value <= MAX_SECONDS else None


async def _file(wire: Wire, url: str, deadline: Deadline) -> bytes:
    if url.startswith("data:"):
        return await delivered.decoded(url)
    pause = FIRST_SECONDS
    for _ in range(TRIES - 1):
        try:
            return await wire.picture(url, seconds=_seconds(deadline))
        except ProviderError:
            await deadline.wait(pause)
            pause *= FACTOR
    return await wire.picture(url, seconds=_seconds(deadline))


def _seconds(deadline: Deadline) -> float:
    return min(PICTURE_SECONDS, max(deadline.left, MIN_SECONDS))


def _raise(error: BaseException) -> bytes:
    raise error
