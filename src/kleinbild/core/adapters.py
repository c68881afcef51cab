"""Adapters as requests name them, and what is known of one beside its tensors."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from kleinbild.core.errors import RequestError

MAX_ADAPTERS = 8  # of one request
MAX_STRENGTH = 4.0  # and as much below zero

Kind = Literal["base", "distilled"]
"""The two kinds of models that an adapter of a family is used with."""


@dataclass(frozen=True, slots=True)
class AdapterUse:
    """An adapter by its registered name or the path of its file. `scale` None is the strength its card recommends, else 1.

    `sha256`, if given, is the only file that will do under this name: a picture is to be made again.
    """

    name: str
    scale: float | None = None
    sha256: str = ""

    def __post_init__(self) -> None:
        if not isinstance(self.name, str):
            raise RequestError(f"{self.name!r} is not an adapter's name", "give the name or the path as text")
        if not self.name.strip():
            raise RequestError("an adapter has no name", "kleinbild adapters list")
        if self.scale is not None and not is_strength(self.scale):
            raise RequestError(
                f"{self.scale!r} is not a strength for the adapter {self.name!r}",
                f"use a number from -{MAX_STRENGTH:g} to {MAX_STRENGTH:g}; 1 is as it was trained",
            )

    @property
    def label(self) -> str:
        """What a record calls it: its name, or its file's without the folders."""
        return self.name.replace("\\", "/").rpartition("/")[2]


def is_path(name: str) -> bool:
    """Whether it names a file instead of a registered adapter."""
    return name.endswith(".safetensors") or "/" in name


def read_use(text: str) -> AdapterUse:
    """ "NAME" or "NAME:SCALE", as on a command line. Raises RequestError."""
    name, colon, scale = text.rpartition(":")
    if not colon or is_path(scale):
        return AdapterUse(text)
    try:
        return AdapterUse(name, float(scale))
    except ValueError as error:
        raise RequestError(f"{scale!r} is not a strength for the adapter {name!r}", "write NAME:0.8") from error


def is_strength(value: object) -> bool:
    return type(value) in (int, float) and math.isfinite(value) and abs(value) <= MAX_STRENGTH  # type: ignore[arg-type]


@dataclass(frozen=True, slots=True)
class Card:
    """What is known of a registered adapter.

    `family` is the models' it fits ("nano", "klein-4b"), `base` the name and `base_fingerprint` the weights of the model
    that it was trained on, "" if nobody said. `sha256` is its file's. `trigger_words` call up what it learned;
    `strengths` are the recommended ones. `created_at`: seconds since 1970. `report`: everything else, as JSON.
    """

    name: str
    family: str
    sha256: str
    size_bytes: int
    created_at: float
    base: str = ""
    base_fingerprint: str = ""
    trigger_words: tuple[str, ...] = ()
    licence: str = ""
    strengths: Mapping[Kind, float] = field(default_factory=dict, hash=False)
    report: Mapping[str, Any] = field(default_factory=dict, hash=False)

    def strength(self, *, distilled: bool) -> float:
        return float(self.strengths.get("distilled" if distilled else "base", 1.0))
