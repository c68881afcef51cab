from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from kleinbild.storage.database import Database, open_database, sqlite_url
from tests.unit.gateway.server import Server, serving


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture
async def database(anyio_backend: str, tmp_path: Path) -> AsyncIterator[Database]:
    opened = await open_database(sqlite_url(tmp_path / "kleinbild.db"))
    yield opened
    await opened.close()


@pytest.fixture
async def server(database: Database, tmp_path: Path) -> AsyncIterator[Server]:
    async with serving(database, tmp_path) as server:
        yield server
