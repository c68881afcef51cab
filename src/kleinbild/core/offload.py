"""Where the weights of a model rest that is larger than its device: the choice, as a word."""

from __future__ import annotations

from typing import Literal, get_args

from kleinbild.core.errors import RequestError

Offload = Literal["none", "components", "blocks"]
"""`none`: all on the device. `components`: text encoder and transformer take turns there. `blocks`: two blocks at a time."""

OFFLOADS: tuple[Offload, ...] = get_args(Offload)


def read_offload(text: str) -> Offload:
    """Raises RequestError for a word that is none of `OFFLOADS`."""
    if text not in OFFLOADS:
        raise RequestError(f"{text!r} is not a way to offload", f"use {', '.join(OFFLOADS)}, or leave the choice out")
    return text
