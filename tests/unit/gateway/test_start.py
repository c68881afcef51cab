"""The server starts, or says in words why it does not."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from kleinbild.core.errors import KleinbildError
from kleinbild.gateway import lifespan
from kleinbild.gateway.lifespan import open_services
from kleinbild.gateway.opened import settle_budgets
from kleinbild.gateway.secrets import load_secrets
from kleinbild.gateway.settings import Settings
from kleinbild.storage import budgets, keys, servers, webhooks
from kleinbild.storage.budgets import Budgets
from kleinbild.storage.database import open_database
from kleinbild.storage.keys import Rights
from kleinbild.storage.webhooks import Endpoint
from tests.postgres import Postgres, postgres

pytestmark = pytest.mark.anyio


@pytest.fixture(scope="module")
def postgresql() -> Iterator[Postgres]:
    with postgres() as running:
        yield running


def settings(data: Path, database_url: str | None = None, blobs_url: str | None = None) -> Settings:
    storage = {"database_url": database_url, "blobs_url": blobs_url}
    return Settings.model_validate({"server": {"data": data}, "storage": storage})


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


async def test_servers_that_share_a_database_share_secret_and_pictures(tmp_path: Path, postgresql: Postgres) -> None:
    url, shared = postgresql.new_database(), tmp_path / "shared"
    ours = settings(tmp_path, url, str(shared))
    digest = load_secrets(tmp_path / "other").digest
    database = await open_database(url)
    async with servers.live(database) as other:
        await other.join(digest, str(shared))
        assert f"whose secret is not in {tmp_path}" in await refused(ours)
        assert not (tmp_path / "secret").exists()
        load_secrets(tmp_path)
        assert f"its secret is not the one in {tmp_path}" in await refused(ours)
        shutil.copy(tmp_path / "other" / "secret", tmp_path / "secret")
        said = await refused(settings(tmp_path, url))
        assert f"whose pictures are in {shared}; here they are in a folder of its own" in said
        assert str(tmp_path / "mine") in await refused(settings(tmp_path, url, str(tmp_path / "mine")))
        async with open_services(ours) as services:
            assert services.server != other.number
    async with asyncio.timeout(10), database.read() as connection:
        while await servers.living(connection):  # noqa: ASYNC110 - PostgreSQL ends sessions in its own time
            await asyncio.sleep(0.02)
    await database.close()
    async with open_services(settings(tmp_path, url)):  # alone again, with a folder of its own
        pass


async def test_two_that_start_at_once_with_secrets_of_their_own_are_refused(
    tmp_path: Path, postgresql: Postgres, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither is there yet when the other looks whose secret is in use."""
    url = postgresql.new_database()
    database = await open_database(url)
    async with servers.live(database) as other:
        load = lifespan.load_secrets_of

        async def slower(*arguments):
            found = await load(*arguments)
            await other.join("another", None)
            return found

        monkeypatch.setattr(lifespan, "load_secrets_of", slower)
        assert "its secret is not the one in" in await refused(settings(tmp_path, url))
    await database.close()


async def test_servers_settle_the_budgets_of_their_configuration_one_after_the_other(postgresql: Postgres) -> None:
    """In whatever order they stand there: two that change the same rows in two orders would wait for each other."""
    url = postgresql.new_database()
    names = [f"project-{number}" for number in range(40)]
    opened = [await open_database(url) for _ in range(4)]
    wanted = [
        Settings.model_validate({"budgets": [{"scope": "project", "subject": each, "amount": "1"} for each in order]})
        for order in (names, names[::-1])
    ]
    for _ in range(5):
        await asyncio.gather(
            *(settle_budgets(wanted[at % 2], database, Budgets(database)) for at, database in enumerate(opened))
        )
    async with opened[0].read() as connection:
        assert len(await budgets.listed(connection)) == len(names)
    for database in opened:
        await database.close()
