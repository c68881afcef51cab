"""Counters in a Valkey or Redis server, for several gateways that share limits: one script a request, run as a whole.

The client is `valkey`: the only one of `valkey`, `redis` and `valkey-glide` that is all of small, pure Python, and made
for both kinds of server. Time is the server's, so that gateways whose clocks differ count alike. Each bucket is kept by
its limit, too: gateways that are configured differently do not fill each other's up. What the server forgets is full.

Where it does not answer nothing is let through (CountersError): limits guard money.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from kleinbild.gateway.limits.counters import ROUNDING, SECONDS, CountersError, Draw, Drawn

if TYPE_CHECKING:
    from valkey.asyncio import Valkey

ANSWER_SECONDS = 1.0
MAX_CONNECTIONS = 32
SCHEMES = ("valkey", "valkeys", "redis", "rediss", "unix")
DRAW = f"""
local time = redis.call('TIME')
local now = tonumber(time[1]) + tonumber(time[2]) / 1e6
local levels, enough = {{}}, 1
for i, key in ipairs(KEYS) do
    local limit, amount = tonumber(ARGV[2 * i - 1]), tonumber(ARGV[2 * i])
    local kept = redis.call('HMGET', key, 'level', 'at')
    local level = limit
    if kept[1] and kept[2] then
        local passed = math.max(0, now - tonumber(kept[2]))
        level = math.min(limit, tonumber(kept[1]) + passed * limit / {SECONDS})
    end
    if amount > level + {ROUNDING} then enough = 0 end
    levels[i] = level
end
local answer = {{enough}}
for i, key in ipairs(KEYS) do
    local amount = tonumber(ARGV[2 * i])
    if enough == 1 and amount > 0 then
        levels[i] = levels[i] - amount
        redis.call('HSET', key, 'level', string.format('%.12g', levels[i]), 'at', string.format('%.6f', now))
        redis.call('PEXPIRE', key, {int(2 * SECONDS * 1000)})
    end
    answer[i + 1] = string.format('%.12g', levels[i])
end
return answer
"""
"""Levels are answered as text: numbers that leave a script are cut to whole ones. Full buckets may be forgotten."""
log = logging.getLogger(__name__)


async def open_shared(url: str) -> SharedCounters:
    """Raises CountersError where the server does not answer, or the client is missing."""
    counters = SharedCounters(url)
    try:
        await counters.draw([Draw("start", 1)])
    except BaseException:
        await counters.close()
        raise
    return counters


class SharedCounters:
    """At `url`, such as valkey://:password@host:6379/0."""

    def __init__(self, url: str) -> None:
        self._place = place_of(url)
        self._server, self._errors = _connections(url)
        self._script = self._server.register_script(DRAW)
        self._answers = True

    async def draw(self, draws: Sequence[Draw]) -> Drawn:
        keys = [f"{{kleinbild}}:limit:{draw.bucket}:{draw.limit}" for draw in draws]
        numbers = [number for draw in draws for number in (draw.limit, draw.amount)]
        try:
            enough, *levels = await self._script(keys=keys, args=numbers)
        except self._errors as error:
            if self._answers:
                log.warning("%s counts the limits and fails; requests are refused meanwhile: %s", self._place, error)
            self._answers = False
            raise CountersError(
                "the limits cannot be checked just now: what counts them does not answer", f"look after {self._place}"
            ) from error
        self._answers = True
        return Drawn(bool(enough), tuple(map(float, levels)))

    async def close(self) -> None:
        await self._server.aclose()


def place_of(url: str) -> str:
    """The URL without user, password and options. Raises CountersError."""
    parts = urlsplit(url)
    if parts.scheme not in SCHEMES:
        raise CountersError(
            f"limits.shared_url starts with {parts.scheme or url[:10]!r}",
            f"write valkey://host:6379/0; allowed are {', '.join(SCHEMES)}",
        )
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"


def _connections(url: str) -> tuple[Valkey, tuple[type[Exception], ...]]:
    """And what can go wrong with them."""
    try:
        from valkey.asyncio import BlockingConnectionPool, Valkey
        from valkey.asyncio.retry import Retry
        from valkey.backoff import NoBackoff
        from valkey.exceptions import ConnectionError as LostError
        from valkey.exceptions import ValkeyError
    except ImportError as error:
        raise CountersError(
            "limits.shared_url is set, and the client of Valkey is not installed", "pip install 'kleinbild[shared]'"
        ) from error
    options: dict[str, Any] = {
        "socket_timeout": ANSWER_SECONDS,
        "socket_connect_timeout": ANSWER_SECONDS,
        "max_connections": MAX_CONNECTIONS,
        "timeout": ANSWER_SECONDS,  # for a connection of those
        "retry": Retry(NoBackoff(), 1, (LostError,)),  # one that was kept may be gone since, as after a restart
        "decode_responses": True,
    }
    return Valkey.from_pool(BlockingConnectionPool.from_url(url, **options)), (ValkeyError, OSError, TimeoutError)
