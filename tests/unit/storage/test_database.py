"""Which databases there are, and what is said about those that cannot be used."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest

from kleinbild.core.errors import DatabaseError, RequestError
from kleinbild.storage.database import open_database, read_url, sqlite_url

pytestmark = pytest.mark.anyio


@pytest.mark.parametrize("scheme", ["postgresql", "postgresql+psycopg"])
def test_one_driver_is_used_however_the_url_is_written(scheme: str) -> None:
    url = read_url(f"{scheme}://anna:p%40ss@db.example:5433/kleinbild?sslmode=require")
    wanted = "postgresql+psycopg://anna:p%40ss@db.example:5433/kleinbild?sslmode=require"
    assert url.render_as_string(hide_password=False) == wanted


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("postgresql+asyncpg://u:hush@h/d", "starts with postgresql+asyncpg, which is not supported"),
        ("mysql://u:hush@h/d", "starts with mysql"),
        ("u:hush@h/d", "is none"),
    ],
)
def test_others_are_refused_without_their_passwords(text: str, words: str) -> None:
    with pytest.raises(RequestError, match=re.escape(words)) as refused:
        read_url(text)
    assert "hush" not in refused.value.message
    assert refused.value.hint == "write postgresql://user:password@host/database"


async def test_a_missing_driver_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "psycopg", None)
    with pytest.raises(RequestError, match="psycopg") as refused:
        await open_database("postgresql://localhost/d")
    assert refused.value.hint == "pip install 'kleinbild[postgres]'"


async def test_a_server_that_is_not_there_is_said_without_the_password() -> None:
    with pytest.raises(
        DatabaseError, match=r"postgresql://u:\*\*\*@127\.0\.0\.1:1/d cannot be used: .*refused"
    ) as refused:
        await open_database("postgresql://u:hush@127.0.0.1:1/d")
    assert "hush" not in refused.value.message + refused.value.hint


async def test_a_file_that_is_no_database_is_said_and_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "kleinbild.sqlite"
    path.write_bytes(b"a diary, not a database" * 100)
    with pytest.raises(DatabaseError, match=r"kleinbild\.sqlite cannot be used as a database: file is not a database"):
        await open_database(sqlite_url(path))
    assert path.read_bytes() == b"a diary, not a database" * 100
