"""Work on bytes: at once where there are few, in a thread where it would hold an event loop up."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")
FEW_BYTES = 32 * 1024
"""Parsing, hashing or measuring so many takes less time than having a thread do it."""
MANY_BYTES = FEW_BYTES + 1


async def on_bytes(num_bytes: int, work: Callable[[], T]) -> T:
    """What `work` gives, whose time goes with `num_bytes`."""
    return work() if num_bytes <= FEW_BYTES else await asyncio.to_thread(work)
