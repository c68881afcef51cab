"""Fleets for tests: deployments by name, places that tests make up, and everything else as the server has it."""

from __future__ import annotations

from collections.abc import Mapping
from decimal import Decimal
from typing import Any

from kleinbild.core.deployments import Can, Deployment
from kleinbild.core.prices import Price
from kleinbild.core.sizes import SizeRange
from kleinbild.gateway.fleet import Fleet
from kleinbild.gateway.flow.circuits import Circuits, Tolerance
from kleinbild.gateway.flow.hedging import Hedges
from kleinbild.gateway.limits.providers import ProviderLimits
from kleinbild.gateway.routing.predict import Predictor
from kleinbild.providers.hosted import Hosted

SIZES = SizeRange(min_side=64, max_side=2048, max_pixels=4 * 1024 * 1024, multiple=16)
ABLE = Can(
    tasks=frozenset({"image.generate", "image.edit"}),
    parameters=frozenset({"size", "seed", "mask"}),
    sizes=SIZES,
    max_images=4,
    max_references=4,
)


def deployment(name: str, **changes: Any) -> Deployment:
    """At a provider of its own name, of the model "sketch", a cent a picture."""
    usual: dict[str, Any] = {
        "model": "sketch",
        "provider": name,
        "kind": "openai",
        "provider_model": "m",
        "can": ABLE,
        "price": Price(per_image=Decimal("0.01"), version="1"),
    }
    return Deployment(name, **{**usual, **changes})


def fleet(*deployments: Deployment, places: Mapping[str, Hosted] | None = None, **changes: Any) -> Fleet:
    usual: dict[str, Any] = {
        "local": None,
        "circuits": Circuits(Tolerance()),
        "predictor": Predictor(),
        "limits": ProviderLimits(),
        "hedges": Hedges(),
        "default_model": deployments[0].model,
    }
    return Fleet(deployments={each.name: each for each in deployments}, places=places or {}, **{**usual, **changes})


def models(*names: str) -> Fleet:
    """The engine's."""
    return fleet(*(deployment(name, model=name, provider="local", kind="local", provider_model=name) for name in names))
