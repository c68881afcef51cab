"""A real PostgreSQL, of which every test that asks gets a database of its own."""

from __future__ import annotations

import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path

import psycopg
import pytest


class Postgres:
    def __init__(self, url: str) -> None:
        self._url, self._numbers = url, count(1)
        for setting in ("fsync", "synchronous_commit", "full_page_writes"):  # nothing here outlives the tests
            self._run(f"ALTER SYSTEM SET {setting} = off")
        self._run("SELECT pg_reload_conf()")

    def new_database(self) -> str:
        """The URL of an empty one."""
        name = f"test_{next(self._numbers)}"
        self._run(f"CREATE DATABASE {name}")
        return self._url.replace("/postgres?", f"/{name}?")

    def _run(self, statement: str) -> None:
        with psycopg.connect(self._url, autocommit=True) as connection:
            connection.execute(statement)


@contextmanager
def postgres() -> Iterator[Postgres]:
    """Skips the test where there is no wheel for this Python."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of where it puts its lock
        pgserver = pytest.importorskip("pgserver")
    with tempfile.TemporaryDirectory(prefix="pg", ignore_cleanup_errors=True) as folder:
        server = pgserver.get_server(Path(folder) / "data")
        try:
            yield Postgres(server.get_uri())
        finally:
            server.cleanup()
