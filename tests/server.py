"""The server as anybody starts it: a process of its own with nano's engine, on a free port, with an empty home."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx2
import pytest

START_S = 120.0
STOP_S = 60.0


@dataclass(frozen=True)
class Server:
    """A server that is ready. `key` is an admin's; None where none is needed."""

    url: str
    home: Path
    key: str | None = None

    @property
    def log(self) -> str:
        return log_of(self.home).read_text()

    @property
    def headers(self) -> dict[str, str]:
        return {} if self.key is None else {"Authorization": f"Bearer {self.key}"}

    def ask(self, method: str, path: str, **more: object) -> httpx2.Response:
        headers = {**self.headers, **more.pop("headers", {})}  # type: ignore[dict-item]
        return httpx2.request(method, f"{self.url}{path}", headers=headers, trust_env=False, timeout=60, **more)  # type: ignore[arg-type]

    def new_key(self, name: str, **rights: object) -> str:
        answer = self.ask("POST", "/v1/admin/keys", json={"name": name, **rights})
        assert answer.status_code == 201, answer.text
        return str(answer.json()["key"])


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """On loopback, without keys."""
    with serving(tmp_path_factory.mktemp("server")) as ready:
        yield ready


@pytest.fixture(scope="session")
def keyed_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """Another, which is asked with keys only."""
    with serving(tmp_path_factory.mktemp("keyed")) as ready:
        yield Server(ready.url, ready.home, ready.new_key("admin", role="admin"))


@contextmanager
def serving(home: Path, *options: str, **environment: str) -> Iterator[Server]:
    """Starts it, and stops it as an operator would. Fails with its log if it does not get ready, has a bug or does not
    end well."""
    process = start(home, *options, **environment)
    try:
        yield ready(process, home)
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(STOP_S)
        finally:
            process.kill()
    log_text = log_of(home).read_text()
    assert process.returncode == 0, f"the server ended with {process.returncode}:\n{log_text}"
    assert "Traceback" not in log_text, f"the server has logged a bug:\n{log_text}"


def start(home: Path, *options: str, **environment: str) -> subprocess.Popen[bytes]:
    with log_of(home).open("w") as log:
        return subprocess.Popen(
            [sys.executable, "-m", "kleinbild", "serve", "--port", "0", *options],
            cwd=home,
            env={**os.environ, "KLEINBILD_HOME": str(home), **environment},
            stdout=log,
            stderr=log,
        )


def log_of(home: Path) -> Path:
    return home / "serve.log"


def ready(process: subprocess.Popen[bytes], home: Path) -> Server:
    """The server of `process`, once it makes pictures."""
    deadline = time.monotonic() + START_S
    while time.monotonic() < deadline and process.poll() is None:
        url = _url(home)
        if url and httpx2.get(f"{url}/readyz", trust_env=False).status_code == 200:
            return Server(url, home)
        time.sleep(0.05)
    raise AssertionError(f"the server did not get ready:\n{log_of(home).read_text()}")


def _url(home: Path) -> str | None:
    said = log_of(home).read_text()
    return said.split(" at ")[1].split("/v1")[0] if " at http" in said else None
