"""Which settings and which variant a file or folder is run with.

Shapes do not tell distilled, base and kv weights apart. In this order: settings beside the weights, the pipeline's index,
what the catalog says of a model fetched by name, and at last a word in the file's name.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from kleinbild.model.weights.settings import SETTINGS_FILE, Settings, Variant, official, read_settings

MODEL_INDEX = "model_index.json"


def folder_settings(folder: Path, index: dict[str, Any], variant: Variant | None) -> Settings:
    if (folder / SETTINGS_FILE).is_file():
        return read_settings(folder / SETTINGS_FILE)
    settings = official(_variant_by_index(index) or variant or variant_by_name(folder) or "distilled")
    groups = read_json(folder / "vae" / "config.json").get("norm_num_groups", settings.num_groups)
    return replace(settings, num_groups=int(groups))


def file_settings(path: Path) -> Settings | None:
    """`NAME.json` beside `NAME.safetensors`, if it is settings, else the folder's."""
    own = path.with_suffix(".json")
    if "text_layers" in read_json(own):  # other programs leave files of this name, too
        return read_settings(own)
    of_folder = path.parent / SETTINGS_FILE
    return read_settings(of_folder) if of_folder.is_file() else None


def known_variant(path: Path) -> Variant | None:
    """The variant where something beside the weights tells: settings, the pipeline's index or the name."""
    settings = read_settings(path / SETTINGS_FILE) if (path / SETTINGS_FILE).is_file() else file_settings(path)
    if settings:
        return settings.variant
    return _variant_by_index(read_json(path / MODEL_INDEX)) or variant_by_name(path)


def _variant_by_index(index: dict[str, Any]) -> Variant | None:
    if index.get("_class_name") == "Flux2KleinKVPipeline":
        return "kv"
    distilled = index.get("is_distilled")
    return ("distilled" if distilled else "base") if isinstance(distilled, bool) else None


def variant_by_name(path: Path) -> Variant | None:
    """The last resort: distilled, base and kv weights have the same names and shapes, so only the file's name tells."""
    words = path.stem.lower().replace("_", "-").split("-")
    return "base" if "base" in words else "kv" if "kv" in words else None


def read_json(path: Path) -> dict[str, Any]:
    """The table in a file, empty where there is none or it is something else."""
    try:
        values = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError):
        return {}
    return values if isinstance(values, dict) else {}
