"""Kleinbild: FLUX.2 [klein] as a product that you run yourself.

This file is the public face: `generate`, `edit` and `replay` for pictures, `Engine` for a model in this process,
`RemoteEngine` for one in a process of its own, `Client` and `AsyncClient` for a server, `Picture` and `KleinbildError`.
Each name is imported when it is first used, so that `import kleinbild` takes milliseconds and no torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from kleinbild.api import edit, generate, replay
    from kleinbild.client.asynchronous import AsyncClient
    from kleinbild.client.sync import Client
    from kleinbild.core.errors import KleinbildError
    from kleinbild.engine.picture import Picture
    from kleinbild.engine.remote import RemoteEngine
    from kleinbild.engine.runtime import Engine

__version__ = "0.1.0"

__all__ = [
    "AsyncClient",
    "Client",
    "Engine",
    "KleinbildError",
    "Picture",
    "RemoteEngine",
    "__version__",
    "edit",
    "generate",
    "replay",
]

_HOMES = {
    "AsyncClient": "kleinbild.client.asynchronous",
    "Client": "kleinbild.client.sync",
    "Engine": "kleinbild.engine.runtime",
    "KleinbildError": "kleinbild.core.errors",
    "Picture": "kleinbild.engine.picture",
    "RemoteEngine": "kleinbild.engine.remote",
    "edit": "kleinbild.api",
    "generate": "kleinbild.api",
    "replay": "kleinbild.api",
}


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(_HOMES[name]), name)
    globals()[name] = value  # the next access does not come here
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
