"""`kleinbild serve` as a process of its own, in a home of its own."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx2

from tests.integration.command import KLEINBILD, environment

START_S = 120


@dataclass(frozen=True)
class Served:
    url: str
    process: subprocess.Popen[str]


@contextmanager
def served(home: Path, *arguments: str, **variables: str) -> Iterator[Served]:
    """Once it is ready. Ends with it, if it has not been killed before."""
    command = [*KLEINBILD, "serve", "--port", "0", *arguments]
    environ = environment(KLEINBILD_HOME=str(home), **variables)
    process = subprocess.Popen(command, cwd=home, env=environ, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    try:
        first = process.stderr.readline()
        assert " at http" in first, first + process.stderr.read()
        url = first.split(" at ")[1].split("/v1")[0]
        deadline = time.monotonic() + START_S
        while httpx2.get(f"{url}/readyz", trust_env=False).status_code != 200:
            assert time.monotonic() < deadline
            time.sleep(0.1)
        yield Served(url, process)
    finally:
        process.terminate()
        said = process.stderr.read()
        process.stderr.close()
        process.wait(60)
    assert "Traceback" not in said, said
