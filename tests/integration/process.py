"""A whole server as a process of its own, which can be killed and started again on the same data and port."""

from __future__ import annotations

import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import httpx2

from tests.integration.command import KLEINBILD, environment

START_S = 120


@dataclass
class ServerProcess:
    home: Path
    variables: dict[str, str] = field(default_factory=dict)
    port: int = 0
    process: subprocess.Popen[str] = field(init=False)
    log: list[str] = field(default_factory=list)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def start(self, program: str | None = None) -> None:
        """Until it listens. `program` is Python that runs before the command, in the same process."""
        serve = ["serve", "--port", str(self.port)]
        command = [*KLEINBILD, *serve]
        if program is not None:
            command = [sys.executable, "-c", f"{program}\nfrom kleinbild.cli.main import main\nmain()", *serve]
        self.process = subprocess.Popen(
            command,
            cwd=self.home,
            env=environment(KLEINBILD_HOME=str(self.home), **self.variables),
            stderr=subprocess.PIPE,
            text=True,
        )
        assert self.process.stderr is not None
        while " at http" not in (line := self.process.stderr.readline()):
            assert line, "".join(self.log)
            self.log.append(line)
        self.port = int(line.split(" at ")[1].split("/v1")[0].rsplit(":", 1)[1])
        self._reader = threading.Thread(target=self._read, args=(self.process,))
        self._reader.start()

    def wait_until_ready(self) -> None:
        deadline = time.monotonic() + START_S
        while httpx2.get(f"{self.url}/readyz").status_code != 200:
            assert time.monotonic() < deadline
            time.sleep(0.1)

    def kill(self) -> None:
        """SIGKILL: nothing is tidied up."""
        self.process.kill()
        self.wait_until_gone()

    def stop(self) -> None:
        self.process.terminate()
        self.wait_until_gone()

    def wait_until_gone(self) -> None:
        self.process.wait(60)
        self._reader.join(60)

    def _read(self, process: subprocess.Popen[str]) -> None:
        assert process.stderr is not None
        self.log += process.stderr
        process.stderr.close()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def server_process(home: Path, port: int = 0, **variables: str) -> Iterator[ServerProcess]:
    server = ServerProcess(home, variables, port)
    server.start()
    server.wait_until_ready()
    try:
        yield server
    finally:
        server.stop()
