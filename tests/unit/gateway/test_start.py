"""The server starts, or says in words why it does not."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from kleinbild.core.errors import KleinbildError
from kleinbild.gateway.lifespan import open_services
from kleinbild.gateway.settings import Settings
from kleinbild.storage import keys, webhooks
from kleinbild.storage.keys import Rights
from kleinbild.storage.webhooks import Endpoint
from tests.postgres import Postgres, postgres

pytestmark = pytest.mark.anyio


@pytest.fixture(scope="module")
def postgresql() -> Iterator[Postgres]:
    with postgres() as running:
        yield running


def settings(data: Path, database_url: str | None = None) -> Settings:
    return Settings.model_validate({"server": {"data": data}, "storage": {"database_url": database_url}})


async def refused(settings: Settings) -> str:
    with pytest.raises(KleinbildError) as raised:
        async with open_services(settings):
            pass
    return raised.value.message


@pytest.mark.parametrize("what", ["a key", "a webhook"])
async def test_a_lost_secret_is_not_silently_another_one(tmp_path: Path, what: str) -> None:
    async with open_services(settings(tmp_path)) as services, services.database.write() as connection:
        if what == "a key":
            await keys.create(connection, b"s", name="n", owner="o", rights=Rights("p"))
        else:
            await webhooks.add(connection, Endpoint("wh_1", "p", "https://example.com", "sealed", 1.0))
    secret = (tmp_path / "secret").rename(tmp_path / "elsewhere")
    assert f"whose secret is not in {tmp_path}" in await refused(settings(tmp_path))
    assert not (tmp_path / "secret").exists()
    secret.rename(tmp_path / "secret")
    async with open_services(settings(tmp_path)):
        pass
