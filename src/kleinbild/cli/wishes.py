"""What a command line asks for beside the picture itself."""

from __future__ import annotations

from dataclasses import dataclass

from kleinbild.core.offload import Offload
from kleinbild.core.precision import Precision


@dataclass(frozen=True, slots=True)
class Wishes:
    """Where the pictures shall go (`-o`), in which format, how many, and how they are told; in which numbers they are
    computed, and where weights rest meanwhile; whether in this process (`local`), or by which server."""

    output: str | None = None
    format: str | None = None
    count: int = 1
    as_json: bool = False
    show: bool = False
    dtype: Precision | None = None
    offload: Offload | None = None
    local: bool = False
    server: str | None = None
