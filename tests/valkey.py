"""A real Valkey, or Redis, of one's own: on a socket in a folder that goes with it."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

START_SECONDS = 20.0


class Valkey:
    def __init__(self, program: str, folder: Path) -> None:
        self._program, self._socket, self._log = program, folder / "s", folder / "log"
        self.url = f"unix://{self._socket}"
        self.start()

    def start(self) -> None:
        command = [self._program, "--port", "0", "--unixsocket", str(self._socket), "--save", "", "--appendonly", "no"]
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(command, stdout=log, stderr=log, cwd=self._socket.parent)
        until = time.monotonic() + START_SECONDS
        while not self._listens():
            if self._process.poll() is not None or time.monotonic() > until:
                pytest.fail(f"it does not start: {self._log.read_text()}")
            time.sleep(0.01)

    def _listens(self) -> bool:
        """The socket is there a moment before somebody listens."""
        with socket.socket(socket.AF_UNIX) as client:
            return client.connect_ex(str(self._socket)) == 0

    def stop(self) -> None:
        self._process.kill()
        self._process.wait()
        self._socket.unlink(missing_ok=True)


@contextmanager
def valkey() -> Iterator[Valkey]:
    """Skips the test where there is none, but not in CI."""
    program = shutil.which("valkey-server") or shutil.which("redis-server")
    if program is None:
        refuse = pytest.fail if "CI" in os.environ else pytest.skip
        refuse("there is no Valkey here: apt-get install valkey-server, or redis-server")
    with tempfile.TemporaryDirectory(prefix="kv") as folder:
        server = Valkey(program, Path(folder))
        try:
            yield server
        finally:
            server.stop()
