"""The trainer as a process, started by its module's name: it writes what happens into its folder, and ends with the server.

It is tethered (`providers.tethered`): once the server is gone, however it ended, the trainer keeps its state and ends,
too. So no run is ever seen to by nobody, nor by two, and one that is started again goes on where it was.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from kleinbild.core.training import TrainingEvent, from_line

WORKER = "kleinbild.train.worker"
EVENTS, LOG = "events.jsonl", "worker.log"
GRACE_SECONDS = 60.0  # to end a step and keep the state
NICE = 10  # more than the engine's process: pictures come first
MAX_TAIL = 2000


@dataclass(frozen=True, slots=True)
class Trainer:
    """`worker` is the module that trains in the folder that it is given."""

    worker: str = WORKER
    grace_seconds: float = GRACE_SECONDS

    async def start(self, folder: Path) -> TrainerProcess:
        """Goes on with the run in `folder`, or begins it."""
        command = [sys.executable, "-m", "kleinbild.providers.tethered", self.worker, str(folder)]
        with (folder / LOG).open("ab") as log:
            process = await asyncio.create_subprocess_exec(
                *command, stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.DEVNULL, stderr=log
            )
        with suppress(OSError, AttributeError):  # it has ended already; not on this system
            os.setpriority(os.PRIO_PROCESS, process.pid, NICE)
        return TrainerProcess(process, self.grace_seconds)


@dataclass(slots=True)
class TrainerProcess:
    _process: asyncio.subprocess.Process
    _grace_seconds: float
    _killing: asyncio.TimerHandle | None = None

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def returncode(self) -> int | None:
        return self._process.returncode

    def stop(self) -> None:
        """It is to keep its state and end; it is killed if it does not."""
        if self._killing is None and self.returncode is None:
            self._send(signal.SIGTERM)
            later = asyncio.get_running_loop().call_later
            self._killing = later(self._grace_seconds, self._send, signal.SIGKILL)

    async def ended(self, seconds: float | None = None) -> bool:
        """Waits for its end, so long at most; whether it has."""
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._process.wait()
        if self.returncode is not None and self._killing is not None:
            self._killing.cancel()
        return self.returncode is not None

    def _send(self, number: int) -> None:
        with suppress(ProcessLookupError):
            self._process.send_signal(number)


@dataclass(slots=True)
class Heard:
    """What the trainer has written since it was last asked, beginning with what happened after `until`."""

    folder: Path
    until: float
    _offset: int = field(default=0)

    def new(self) -> Iterator[tuple[TrainingEvent, float]]:
        """Events with their times. A line that is not whole yet comes later; what is no event is passed over."""
        try:
            with (self.folder / EVENTS).open("rb") as file:
                file.seek(self._offset)
                whole = file.read().rpartition(b"\n")[0]
        except FileNotFoundError:
            return
        self._offset += len(whole) + 1 if whole else 0
        for line in whole.splitlines():
            with suppress(ValueError):
                event, at = from_line(line.decode())
                if at > self.until:
                    self.until = at
                    yield event, at


def tail_of_log(folder: Path) -> str:
    """The last lines that the trainer wrote beside its events."""
    with suppress(OSError):
        return (folder / LOG).read_bytes()[-MAX_TAIL:].decode("utf-8", "replace").strip()
    return ""
