"""What a model was made for and shapes do not tell: `Settings`, the content of `kleinbild.json`.

A folder or file without one is an official model, and the official defaults apply. No torch here: the command line
reads settings to list models.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Literal

from kleinbild.core.errors import WeightsError

SETTINGS_FILE = "kleinbild.json"

Variant = Literal["distilled", "base", "kv"]


@dataclass(frozen=True, slots=True)
class Settings:
    """How a model is run. The defaults are those of the official step-distilled models.

    `text_layers` are the text encoder's layers that make the context, counted from 1. Sizes are pixels. `vocabulary`
    names the word list that prompts are held to ("nano"), or None. `reference_caching`: references' keys and values are
    stored in the first step and read afterwards (kv variant). `num_groups` are the autoencoder's GroupNorm groups.
    """

    text_layers: tuple[int, ...] = (9, 18, 27)
    max_text_tokens: int = 512
    default_steps: int = 4
    default_guidance: float = 1.0
    default_size: int = 1024
    distilled: bool = True
    reference_caching: bool = False
    vocabulary: str | None = None
    min_side: int = 64
    max_side: int = 2048
    max_pixels: int = 4 * 1024 * 1024
    num_groups: int = 32

    @property
    def variant(self) -> Variant:
        if self.reference_caching:
            return "kv"
        return "distilled" if self.distilled else "base"

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "text_layers": list(self.text_layers)}

    @classmethod
    def from_json(cls, values: Any) -> Settings:
        """Raises ValueError for an unknown key or a value of another type; keys that are absent keep the default."""
        if not isinstance(values, dict):
            raise ValueError("not a table of settings")
        known = {field.name: getattr(cls(), field.name) for field in fields(cls)}
        if unknown := sorted(set(values) - set(known)):
            raise ValueError(f"unknown {', '.join(unknown)}; known are {', '.join(known)}")
        for name, value in values.items():
            if not _fits(value, known[name]):
                raise ValueError(f"{name} cannot be {value!r}")
        if "text_layers" in values:
            values = {**values, "text_layers": tuple(values["text_layers"])}
        return cls(**values)


def official(variant: Variant) -> Settings:
    """What the makers of the models recommend for `variant`."""
    if variant == "base":
        return Settings(default_steps=50, default_guidance=4.0, distilled=False)
    return Settings(reference_caching=variant == "kv")


def read_settings(path: Path) -> Settings:
    """The settings in the file `path`. Raises WeightsError where it is not such a file."""
    try:
        return Settings.from_json(json.loads(path.read_text("utf-8")))
    except (OSError, ValueError) as error:
        raise WeightsError(f"{path}: {error}", "correct the file, or remove it to use the official defaults") from error


def write_settings(path: Path, settings: Settings) -> None:
    path.write_text(json.dumps(settings.to_json(), indent=2) + "\n", "utf-8")


def _fits(value: object, default: object) -> bool:
    if isinstance(default, tuple):
        return isinstance(value, list | tuple) and bool(value) and all(type(item) is int for item in value)
    if default is None:
        return value is None or isinstance(value, str)
    if isinstance(default, float):
        return type(value) in (int, float)
    return type(value) is type(default)
