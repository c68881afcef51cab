"""Names of things: a prefix that says of what, then time and chance, so that they sort by age and none comes twice."""

from __future__ import annotations

import os
import threading
import time

_ALPHABET = "0123456789abcdefghjkmnpqrstvwxyz"  # Crockford's base 32
_TIME_BITS, _RANDOM_BITS = 50, 80
_DIGITS = (_TIME_BITS + _RANDOM_BITS) // 5
_PAIRS = [first + second for first in _ALPHABET for second in _ALPHABET]
_SHIFTS = range(5 * (_DIGITS - 2), -1, -10)


def new_id(prefix: str) -> str:
    """`job_…`: 26 characters after the prefix, of which the first ten are milliseconds since 1970."""
    chance = int.from_bytes(random_bytes(_RANDOM_BITS // 8))
    number = (time.time_ns() // 1_000_000) << _RANDOM_BITS | chance
    return f"{prefix}_" + "".join([_PAIRS[number >> shift & 1023] for shift in _SHIFTS])


def random_bytes(count: int) -> bytes:
    """From the system, which is asked for many at a time: every request takes some, and asking costs more than they do."""
    return _pool.take(count)


class _Pool:
    SIZE = 4096

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._bytes, self._used = b"", 0

    def take(self, count: int) -> bytes:
        with self._lock:
            if self._used + count > len(self._bytes):
                self._bytes, self._used = os.urandom(max(count, self.SIZE)), 0
            start, self._used = self._used, self._used + count
            return self._bytes[start : self._used]


def _renew() -> None:
    """A forked process is not to give what its parent goes on to give."""
    global _pool  # noqa: PLW0603
    _pool = _Pool()


_pool = _Pool()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_renew)
