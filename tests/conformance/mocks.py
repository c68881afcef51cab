"""Mocks of services: Prism, answering as a service's own description says, and refusing what breaks it."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import httpx2
import pytest

ROOT = Path(__file__).parents[2]
DESCRIPTIONS = Path(os.environ.get("KLEINBILD_SHARED", ROOT.parent / "shared")) / "provider-specs"
PRISM = Path(__file__).parent / ".prism/node_modules/.bin/prism"
START_S = 60.0


@contextmanager
def mocks(descriptions: Mapping[str, str], folder: Path) -> Iterator[dict[str, str]]:
    """The URL of a mock of each description, by name. They start together. Logs are in `folder`."""
    if not all((DESCRIPTIONS / path).exists() for path in descriptions.values()):
        pytest.skip(f"the services' descriptions are not at {DESCRIPTIONS}")
    if not PRISM.exists() or shutil.which("node") is None:
        refuse = pytest.fail if "CI" in os.environ else pytest.skip
        refuse("Prism is not installed: tests/conformance/install-prism.sh")
    ports = {name: _free_port() for name in descriptions}
    running = {
        name: _start(DESCRIPTIONS / path, ports[name], folder / f"{name}.log") for name, path in descriptions.items()
    }
    try:
        for name, process in running.items():
            _wait(process, ports[name], folder / f"{name}.log")
        yield {name: f"http://127.0.0.1:{port}" for name, port in ports.items()}
    finally:
        for process in running.values():
            process.terminate()
        for process in running.values():
            process.wait(30)


class Preferring(httpx2.AsyncBaseTransport):
    """Asks a mock for the answer of that status and example."""

    def __init__(self, status: int, example: str | None = None) -> None:
        self.wish = f"code={status}" + (f", example={example}" if example else "")
        self.transport = httpx2.AsyncHTTPTransport()

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        request.headers["prefer"] = self.wish
        return await self.transport.handle_async_request(request)

    async def aclose(self) -> None:
        await self.transport.aclose()


def _start(description: Path, port: int, log: Path) -> subprocess.Popen[bytes]:
    command = [PRISM, "mock", "-h", "127.0.0.1", "-p", str(port), "--errors", description]
    with log.open("wb") as file:
        return subprocess.Popen(command, stdout=file, stderr=file)


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def _wait(process: subprocess.Popen[bytes], port: int, log: Path) -> None:
    deadline = time.monotonic() + START_S
    while process.poll() is None and time.monotonic() < deadline:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.05)
    raise AssertionError(f"Prism does not listen:\n{log.read_text()}")
