"""What `kleinbild serve` says about data that it cannot use: two lines, before anything starts."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import pytest

from kleinbild.cli.main import run
from kleinbild.gateway.lifespan import own


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("KLEINBILD_HOME", str(tmp_path))
    assert run(["keys", "create"]) == 0
    return tmp_path / "server"


def said(capsys: pytest.CaptureFixture[str], code: int = 4) -> str:
    capsys.readouterr()
    assert run(["serve", "--port", "0"]) == code
    told = capsys.readouterr()
    assert told.out == ""
    assert [line.split(":")[0] for line in told.err.splitlines() if line[:1].strip()][:2] == ["error", "hint"]
    assert "Traceback" not in told.err
    return " ".join(told.err.split())


def test_data_of_a_newer_version(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with sqlite3.connect(data / "kleinbild.sqlite") as connection:
        connection.execute("UPDATE alembic_version SET version_num = '9999'")
    connection.close()
    assert "a newer version of Kleinbild has used this database: its tables are at revision 9999" in said(capsys)


def test_a_file_that_is_no_database(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for path in data.glob("kleinbild.sqlite*"):
        path.unlink()
    (data / "kleinbild.sqlite").write_bytes(b"a diary" * 100)
    assert "cannot be used as a database" in said(capsys)


def test_a_postgresql_that_is_not_there(
    data: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KLEINBILD_STORAGE__DATABASE_URL", "postgresql://u:hush@127.0.0.1:1/d")
    told = said(capsys)
    assert "cannot be used" in told
    assert "hush" not in told


def test_data_that_another_server_has(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with own(data):
        assert "another server is running on" in said(capsys)


@pytest.mark.usefixtures("data")
def test_a_blob_store_that_leads_nowhere(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KLEINBILD_STORAGE__BLOBS_URL", "ftp://host/pictures")
    assert "storage.blobs_url 'ftp://host/pictures' cannot be used" in said(capsys, 2)
