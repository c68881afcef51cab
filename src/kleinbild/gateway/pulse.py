"""Whether the event loop keeps up: how late a task that sleeps for a moment is woken."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass

BEAT_SECONDS = 0.02
WINDOW_SECONDS = 60.0


@dataclass(slots=True)
class Pulse:
    _worst: float = 0.0
    _worst_before: float = 0.0

    @property
    def worst_seconds(self) -> float:
        """Of this window and the one before it."""
        return max(self._worst, self._worst_before)

    async def beat(self) -> None:
        """For ever."""
        window_ends = time.monotonic() + WINDOW_SECONDS
        while True:
            due = time.monotonic() + BEAT_SECONDS
            await asyncio.sleep(BEAT_SECONDS)
            now = time.monotonic()
            self._worst = max(self._worst, now - due)
            if now > window_ends:
                self._worst_before, self._worst = self._worst, 0.0
                window_ends = now + WINDOW_SECONDS
