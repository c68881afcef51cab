"""Settings that are read again: what may change holds from then on, everywhere."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import httpx2
import pytest

from kleinbild.core.errors import DestinationError
from kleinbild.gateway.app import create_app
from kleinbild.gateway.lifespan import open_services
from kleinbild.gateway.serve import apply
from kleinbild.gateway.settings import ConfigurationError, Settings
from tests.receiver import receiving
from tests.unit.gateway import hosting
from tests.unit.gateway.test_chain import refusal

pytestmark = pytest.mark.anyio


def settings(data: Path, **limits: Any) -> Settings:
    return Settings.model_validate({"server": {"data": data}, "limits": limits})


async def test_where_and_how_much_is_fetched_follows_the_settings(tmp_path: Path) -> None:
    before = settings(tmp_path)
    with receiving() as receiver:
        async with open_services(before) as services:
            url = receiver.url("/there")
            with pytest.raises(DestinationError):
                await services.fetcher.post(url, b"", {})
            after = settings(tmp_path, allowed_networks=["127.0.0.0/8"], allowed_ports=[receiver.port], max_image_mb=2)
            apply(after, before, services)
            assert await services.fetcher.post(url, b"", {}) == 204
            assert services.fetcher._limits.max_bytes == 2_000_000
            apply(before, before, services)
            with pytest.raises(DestinationError):
                await services.fetcher.post(url, b"", {})


async def test_the_size_of_a_body_follows_the_settings(tmp_path: Path) -> None:
    before = settings(tmp_path)
    app = create_app(before)
    async with open_services(before) as services:
        app.state.services = services
        transport = httpx2.ASGITransport(app)
        async with httpx2.AsyncClient(transport=transport, base_url="http://localhost") as client:
            large = {"prompt": "a" * 10_000}
            assert (await client.post("/v1/jobs", json=large)).status_code == 400
            apply(settings(tmp_path, max_body_mb=0.005), before, services)
            assert (await client.post("/v1/jobs", json=large)).status_code == 413


async def test_a_deployment_without_its_key_leaves_everything_as_it_was(tmp_path: Path) -> None:
    before = settings(tmp_path)
    after = Settings.model_validate(
        {
            "server": {"data": tmp_path},
            "limits": {"max_queue": 1},
            "providers": [{"name": "alpha", "kind": "bfl", "api_key_env": "A_KEY_THAT_NOBODY_SET"}],
            "deployments": [{"name": "far", "model": "klein", "provider": "alpha"}],
        }
    )
    async with open_services(before) as services:
        with pytest.raises(ConfigurationError, match="A_KEY_THAT_NOBODY_SET is not set"):
            apply(after, before, services)
        assert services.settings is before
        assert [*services.fleet.deployments] == ["nano"]


async def test_new_places_are_checked_and_may_be_asked(tmp_path: Path) -> None:
    before, after = settings(tmp_path), hosting.settings(tmp_path, "a", engine={"models": ["nano"]})
    async with open_services(before) as services:
        apply(after, before, services)
        assert services.checks.is_due("a") is False
        services.fleet.circuits.failed("a", refusal("credentials"))
        assert services.checks.is_due("a")
