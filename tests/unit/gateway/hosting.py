"""All services of a server without an engine, whose places are ones that tests make up."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from kleinbild.gateway.lifespan import open_services
from kleinbild.gateway.services import Services
from kleinbild.gateway.settings import Settings


def settings(folder: Path, *names: str, price: str | None = "0.01", **more: Any) -> Settings:
    """A provider for each name, with a deployment of the same name, of the model "sketch", for `price` a picture, None if nobody knows."""
    given = {
        "server": {"data": folder} | more.pop("server", {}),
        "engine": {"models": []},
        "providers": [{"name": each, "kind": "openai", "base_url": "http://127.0.0.1:9/v1"} for each in names],
        "deployments": [
            {
                "name": each,
                "model": "sketch",
                "provider": each,
                "provider_model": "gpt-image-1",
                "price": price and {"per_image": price},
            }
            for each in names
        ],
    }
    return Settings.model_validate(given | more)


@asynccontextmanager
async def hosting(found: Settings, **places: Any) -> AsyncIterator[Services]:
    async with open_services(found) as services:
        services.fleet.places = {**services.fleet.places, **places}
        await asyncio.sleep(0)  # what runs beside requests has begun, and sleeps
        yield services
