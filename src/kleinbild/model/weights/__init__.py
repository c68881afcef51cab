"""Weights on disk: the layouts that they come in, loading, checking and exporting them.

`check` and `Settings` need no torch; the names that do are imported when they are first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from kleinbild.model.weights.export import export_diffusers
    from kleinbild.model.weights.load import Model, load_model
    from kleinbild.model.weights.report import Report, check
    from kleinbild.model.weights.settings import Settings

__all__ = ["Model", "Report", "Settings", "check", "export_diffusers", "load_model"]

_HOMES = {
    "Model": "load",
    "Report": "report",
    "Settings": "settings",
    "check": "report",
    "export_diffusers": "export",
    "load_model": "load",
}


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    globals()[name] = value  # the next access does not come here
    return value
