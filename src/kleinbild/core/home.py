"""Where Kleinbild keeps what it keeps for a user."""

from __future__ import annotations

import os
from pathlib import Path


def home() -> Path:
    """`$KLEINBILD_HOME`, by default `~/.kleinbild`: models in `models`, the server's data in `server`."""
    return Path(os.environ.get("KLEINBILD_HOME") or Path.home() / ".kleinbild")
