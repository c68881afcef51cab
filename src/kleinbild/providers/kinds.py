"""The kinds of providers by name: how each is made, and what it can do with a model."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import httpx2

from kleinbild.core.deployments import Can, ProviderKind
from kleinbild.providers import bfl, fal, openai, replicate, stability, together
from kleinbild.providers.hooks import Hook
from kleinbild.providers.hosted import Hosted
from kleinbild.safety.fetch import Fetcher

_CAPABILITIES: Mapping[ProviderKind, Callable[[str], Can]] = {
    "bfl": bfl.capabilities,
    "replicate": replicate.capabilities,
    "together": together.capabilities,
    "stability": stability.capabilities,
    "fal": fal.capabilities,
}
TAKING_ON: frozenset[ProviderKind] = frozenset({"bfl", "replicate", "fal"})
"""Those that take work on and are polled for it, and may call back when it is done."""
_CLASSES: Mapping[ProviderKind, tuple[Callable[..., Hosted], str]] = {
    "openai": (openai.OpenAI, openai.DEFAULT_URL),
    "bfl": (bfl.BlackForestLabs, bfl.DEFAULT_URL),
    "replicate": (replicate.Replicate, replicate.DEFAULT_URL),
    "together": (together.Together, together.DEFAULT_URL),
    "stability": (stability.Stability, stability.DEFAULT_URL),
    "fal": (fal.Fal, fal.DEFAULT_URL),
}


def capabilities(kind: ProviderKind, model: str, base_url: str | None = None) -> Can:
    """What a service does with its model of that name; not of the engine on this machine, which says so itself."""
    if kind == "openai":
        return openai.capabilities(model, base_url or openai.DEFAULT_URL)
    return _CAPABILITIES[kind](model)


def hosted(
    kind: ProviderKind,
    key: str | None,
    base_url: str | None = None,
    *,
    fetcher: Fetcher | None = None,
    transport: httpx2.AsyncBaseTransport | None = None,
    hook: Hook | None = None,
) -> Hosted:
    """An account at a service; `base_url` is the service's own unless somebody says otherwise. `hook` is where those that
    take work on are to call back (`TAKING_ON`)."""
    make, usual = _CLASSES[kind]
    hooked = {} if hook is None else {"hook": hook}
    place: Hosted = make(key, base_url=base_url or usual, fetcher=fetcher, transport=transport, **hooked)
    return place
