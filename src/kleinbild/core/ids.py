"""Names of things: a prefix that says of what, then time and chance, so that they sort by age and none comes twice."""

from __future__ import annotations

import secrets
import time

_ALPHABET = "0123456789abcdefghjkmnpqrstvwxyz"  # Crockford's base 32
_TIME_BITS, _RANDOM_BITS = 50, 80


def new_id(prefix: str) -> str:
    """`job_…`: 26 characters after the prefix, of which the first ten are milliseconds since 1970."""
    number = (time.time_ns() // 1_000_000) << _RANDOM_BITS | secrets.randbits(_RANDOM_BITS)
    digits = (_TIME_BITS + _RANDOM_BITS) // 5
    return f"{prefix}_" + "".join(_ALPHABET[number >> 5 * place & 31] for place in reversed(range(digits)))
