"""The server on this machine: a small file says where it is. No HTTP library is imported here.

`kleinbild serve` announces itself when it listens and withdraws when it ends; one that was killed leaves the file
behind, and a look at its port tells.
"""

from __future__ import annotations

import json
import os
import socket
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from kleinbild.core.home import home
from kleinbild.engine.files import write_file

LOOK_S = 0.25
"""Loopback answers or refuses in far less than a millisecond; only a machine in distress takes longer."""


@dataclass(frozen=True, slots=True)
class Running:
    """A server of this user, at a loopback address."""

    url: str
    pid: int


def server_file() -> Path:
    return home() / "server" / "server.json"


def announce(url: str, pid: int | None = None) -> None:
    """Says that the server of process `pid` (ours) is at `url`. Raises OutputError where that cannot be written."""
    path = server_file()
    path.parent.mkdir(parents=True, exist_ok=True)
    write_file(path, json.dumps({"url": url, "pid": pid or os.getpid()}).encode())


def withdraw(pid: int | None = None) -> None:
    """Takes that back, unless another server has announced itself since."""
    said = read()
    if said is not None and said.pid == (pid or os.getpid()):
        server_file().unlink(missing_ok=True)


def find() -> Running | None:
    """The server that was announced, if something listens there."""
    said = read()
    return said if said is not None and _listens(said.url) else None


def read() -> Running | None:
    """What the file says; None if there is none, or none that we understand."""
    try:
        said = json.loads(server_file().read_bytes())
        return Running(str(said["url"]), int(said["pid"]))
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _listens(url: str) -> bool:
    try:
        parts = urlsplit(url)
        port = parts.port or (443 if parts.scheme == "https" else 80)
        with socket.create_connection((parts.hostname or "", port), timeout=LOOK_S):
            return True
    except (OSError, ValueError):
        return False
