"""How strongly a file says that its changes are applied: alpha over rank, wherever it says so. No torch here.

A layer's own alpha comes before what the file's metadata say of that layer, that before what they say of all, and
without either the scale is 1. diffusers keeps alpha in the metadata alone (`lora_adapter_metadata`), PEFT in
`adapter_config.json` beside the file, all others in a tensor for each layer.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from kleinbild.core.errors import WeightsError
from kleinbild.model.adapters.plan import Group

METADATA_KEY = "lora_adapter_metadata"
PEFT_FILE, PEFT_CONFIG = "adapter_model.safetensors", "adapter_config.json"
MAX_CONFIG_BYTES = 4_000_000


@dataclass(frozen=True, slots=True)
class Declared:
    """What metadata say: for all layers, and by layers' names."""

    alpha: float | None = None
    rank: int | None = None
    alphas: Mapping[str, float] = field(default_factory=dict)
    ranks: Mapping[str, float] = field(default_factory=dict)
    square_root: bool = False

    def alpha_of(self, body: str) -> float | None:
        return _of(self.alphas, body, self.alpha)

    def rank_of(self, body: str) -> float | None:
        return _of(self.ranks, body, self.rank)


def declared(path: Path, metadata: Mapping[str, str]) -> Declared:
    """What the file's metadata, or PEFT's config beside it, say. Raises WeightsError where that cannot be read."""
    config = path.parent / PEFT_CONFIG
    where = str(path)
    text = metadata.get(METADATA_KEY)
    if text is None and path.name == PEFT_FILE and config.is_file() and config.stat().st_size <= MAX_CONFIG_BYTES:
        where, text = str(config), config.read_text("utf-8")
    if text is None:
        return Declared()
    try:
        values = json.loads(text)
        own = {str(key).removeprefix("transformer."): value for key, value in values.items()}
        return Declared(
            alpha=_number(own.get("lora_alpha", own.get("alpha"))),
            rank=None if own.get("r") is None else int(own["r"]),
            alphas=_pattern(own.get("alpha_pattern")),
            ranks=_pattern(own.get("rank_pattern")),
            square_root=bool(own.get("use_rslora")),
        )
    except (ValueError, TypeError, AttributeError) as error:
        raise WeightsError(f"{where}: alpha and rank cannot be read: {error}", "save the adapter again") from error


def scale(group: Group, alpha: float | None, says: Declared) -> float:
    """The scale of one change; `alpha` is the layer's own.

    With a LoKr of two whole matrices, a layer's own alpha means nothing (LyCORIS writes huge ones there). What metadata
    say is PEFT's, which scales those, too.
    """
    if group.kind == "diff":
        return 1.0
    if alpha is not None:
        return alpha / group.rank if group.rank else 1.0
    alpha, rank = says.alpha_of(group.named.body), group.rank or says.rank_of(group.named.body)
    if alpha is None or not rank:
        return 1.0
    return alpha / (math.sqrt(rank) if says.square_root else rank)


def _number(value: Any) -> float | None:
    if value is None:
        return None
    if not isinstance(value, int | float) or not math.isfinite(value):
        raise ValueError(f"{value!r} is no number")
    return float(value)


def _pattern(values: Any) -> dict[str, float]:
    """Layers' names. PEFT reads them as regular expressions; those that are more than names are refused."""
    pattern = {
        str(name).removeprefix("^").removesuffix("$"): _number(value) or 0.0 for name, value in (values or {}).items()
    }
    if odd := [name for name in pattern if not name.replace(".", "").replace("_", "").isalnum()]:
        raise ValueError(f"{odd[0]!r} is no name of a layer")
    return pattern


def _of(pattern: Mapping[str, float], body: str, otherwise: float | None) -> float | None:
    for name, value in pattern.items():
        if body == name or body.endswith("." + name):
            return value
    return otherwise
