"""What a command line asks for beside the picture itself."""

from __future__ import annotations

from dataclasses import dataclass

from kleinbild.core.offload import Offload


@dataclass(frozen=True, slots=True)
class Wishes:
    """Where the pictures shall go (`-o`), in which format, how many of them, how they are told; where weights rest."""

    output: str | None = None
    format: str | None = None
    count: int = 1
    as_json: bool = False
    show: bool = False
    offload: Offload | None = None
