"""The server starts, or says in words why it does not."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest

from kleinbild.core.errors import KleinbildError
from kleinbild.gateway.lifespan import open_services
from kleinbild.gateway.settings import Settings
from kleinbild.storage import keys, ownership, webhooks
from kleinbild.storage.database import open_database
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


async def test_one_server_at_a_time_has_a_postgresql_database(tmp_path: Path, postgresql: Postgres) -> None:
    one = settings(tmp_path / "one", postgresql.new_database())
    two = settings(tmp_path / "two", one.storage.database_url)
    async with open_services(one):
        said = await refused(two)
        assert said.startswith("another server is running on the database postgresql://")
    async with open_services(one):
        pass


async def test_a_lock_that_postgresql_ended_is_taken_again(
    tmp_path: Path, postgresql: Postgres, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ownership, "CHECK_SECONDS", 0.05)
    url = postgresql.new_database()
    holders = "SELECT pid FROM pg_locks WHERE locktype = 'advisory'"
    database = await open_database(url)
    async with ownership.owned(database):
        with psycopg.connect(url, autocommit=True) as admin:
            (first,) = admin.execute(holders).fetchone() or (None,)
            admin.execute(f"SELECT pg_terminate_backend({first})")
            async with asyncio.timeout(10):
                while (found := admin.execute(holders).fetchone()) is None or found[0] == first:  # noqa: ASYNC110
                    await asyncio.sleep(0.05)
    await database.close()
