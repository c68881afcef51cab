"""Runs the command as a shell would: another process, its own folder, exit code and both streams."""

from __future__ import annotations

import os
import pty
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import IO

KLEINBILD = (sys.executable, "-m", "kleinbild")


@dataclass(frozen=True)
class Result:
    code: int
    stdout: bytes
    stderr: str

    @property
    def lines(self) -> list[str]:
        return self.stdout.decode().splitlines()


def environment(**changes: str) -> dict[str, str]:
    """Ours, without what would change the output."""
    kept = {
        name: value for name, value in os.environ.items() if name not in ("KLEINBILD_DEBUG", "NO_COLOR", "FORCE_COLOR")
    }
    return {**kept, "COLUMNS": "80", "TERM": "xterm-256color", **changes}


def kleinbild(*arguments: str | Path, cwd: Path, stdin: bytes = b"", **variables: str) -> Result:
    command = [*KLEINBILD, *map(str, arguments)]
    done = subprocess.run(
        command, cwd=cwd, input=stdin, env=environment(**variables), capture_output=True, timeout=120, check=False
    )
    return Result(done.returncode, done.stdout, done.stderr.decode())


def with_stdout(stdout: int | IO[bytes], *arguments: str, cwd: Path) -> Result:
    """The same with another place for the results."""
    done = subprocess.run(
        [*KLEINBILD, *arguments],
        cwd=cwd,
        stdout=stdout,
        stderr=subprocess.PIPE,
        env=environment(),
        timeout=120,
        check=False,
    )
    return Result(done.returncode, b"", done.stderr.decode())


def typed(keys: str, *arguments: str, cwd: Path, **variables: str) -> Result:
    """The same with a terminal as stdin, at which `keys` are pressed."""
    ours, theirs = pty.openpty()
    command = [*KLEINBILD, *arguments]
    environ = environment(**variables)
    with subprocess.Popen(
        command, cwd=cwd, stdin=theirs, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environ
    ) as process:
        os.close(theirs)
        os.write(ours, keys.encode())
        stdout, stderr = process.communicate(timeout=120)
    os.close(ours)
    return Result(process.returncode, stdout, stderr.decode())
