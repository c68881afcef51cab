from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from kleinbild.storage.database import Database, open_database, sqlite_url


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture
async def database(anyio_backend: str, tmp_path: Path) -> AsyncIterator[Database]:
    opened = await open_database(sqlite_url(tmp_path / "kleinbild.db"))
    yield opened
    await opened.close()
