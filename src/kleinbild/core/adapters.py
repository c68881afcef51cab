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
    """An adapter by its registered name or the path of its file. `scale` None is the strength its card recommends, else 1."""

    name: str
    scale: float | None = None

    def __post_init__(self) -> None:
        if not self.name.strip():
            raise RequestError("an adapter has no name", "kleinbild adapters list")
        if self.scale is not None and not (math.isfinite(self.scale) and abs(self.scale) <= MAX_STRENGTH):
            raise RequestError(
                f"{self.scale!r} is not a strength for the adapter {self.name!r}",
                f"use a number from -{MAX_STRENGTH:g} to {MAX_STRENGTH:g}; 1 is as it was trained",
            )


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
