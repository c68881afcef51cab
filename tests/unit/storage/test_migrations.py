"""A database comes to this version's tables from nothing and stays there; one that is not for it is refused."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, MetaData, inspect, text

from kleinbild.core.errors import DatabaseError
from kleinbild.storage import migrations
from kleinbild.storage.database import open_database, sqlite_url
from kleinbild.storage.schema import metadata

pytestmark = pytest.mark.anyio

OPEN = """
import asyncio, sys
from kleinbild.storage.database import open_database

async def main():
    await (await open_database(sys.argv[1])).close()

input()
asyncio.run(main())
print("alembic" in sys.modules)
"""


def differences(connection: Connection) -> list[object]:
    options = {"compare_type": True, "compare_server_default": True}
    return compare_metadata(MigrationContext.configure(connection, opts=options), metadata)


def constraints(connection: Connection) -> dict[str, object]:
    """What alembic's comparison leaves out: keys and their names, columns in order."""
    found = inspect(connection)
    return {
        name: (
            found.get_pk_constraint(name),
            sorted(map(str, found.get_foreign_keys(name))),
            [column["name"] for column in found.get_columns(name)],
        )
        for name in metadata.tables
    }


async def test_from_nothing_to_exactly_the_schemas_tables(url: str) -> None:
    database = await open_database(url)
    async with database.write() as connection:
        assert await connection.run_sync(differences) == []
        migrated = await connection.run_sync(constraints)
        everything = MetaData()
        await connection.run_sync(everything.reflect)
        assert everything.tables.keys() == metadata.tables.keys() | {"alembic_version"}
        await connection.run_sync(everything.drop_all)
        await connection.run_sync(metadata.create_all)
        assert migrated == await connection.run_sync(constraints)
    await database.close()


async def test_a_missing_table_and_a_missing_column_are_differences(url: str) -> None:
    """The comparison that the test above trusts."""
    database = await open_database(url)
    async with database.write() as connection:
        await connection.execute(text("DROP TABLE audit"))
        await connection.execute(text("ALTER TABLE files DROP COLUMN purpose"))
        assert len(await connection.run_sync(differences)) == 2
    await database.close()


async def test_the_head_is_alembics() -> None:
    config = Config()
    config.set_main_option("script_location", str(migrations.FOLDER))
    script = ScriptDirectory.from_config(config)
    assert script.get_heads() == [migrations.HEAD]
    assert sorted(one.revision for one in script.walk_revisions()) == list(migrations.KNOWN)


@pytest.mark.alone
async def test_opened_again_it_is_as_it_was_and_quick(tmp_path: Path) -> None:
    path = tmp_path / "kleinbild.sqlite"
    await (await open_database(sqlite_url(path))).close()
    before = path.read_bytes()
    begun = time.perf_counter()
    await (await open_database(sqlite_url(path))).close()
    assert time.perf_counter() - begun < 0.15
    assert path.read_bytes() == before


def opening(url: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", OPEN, url]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


async def test_processes_that_start_together_migrate_once(url: str) -> None:
    processes = [opening(url) for _ in range(4)]
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()
    told = [process.communicate(timeout=60) for process in processes]
    assert [err for _, err in told] == [""] * 4
    assert "True\n" in [out for out, _ in told]
    later = opening(url)
    assert later.communicate("go\n", timeout=60) == ("False\n", "")


async def test_a_newer_database_is_refused_and_left_alone(url: str) -> None:
    database = await open_database(url)
    async with database.write() as connection:
        await connection.execute(text("UPDATE alembic_version SET version_num = '9999'"))
    with pytest.raises(DatabaseError, match="newer version") as refused:
        await open_database(url)
    assert "9999" in refused.value.message
    assert "upgrade Kleinbild" in refused.value.hint
    async with database.read() as connection:
        assert (await connection.execute(text("SELECT version_num FROM alembic_version"))).scalar_one() == "9999"
    await database.close()


async def test_tables_of_somebody_else_are_refused_and_left_alone(url: str) -> None:
    database = await open_database(url)
    async with database.write() as connection:
        await connection.execute(text("DROP TABLE alembic_version"))
        await connection.execute(text("DROP TABLE audit"))
    with pytest.raises(DatabaseError, match="adjustments, attempt_states"):
        await open_database(url)
    async with database.read() as connection:
        names = await connection.run_sync(lambda synchronous: inspect(synchronous).get_table_names())
        assert not {"audit", "alembic_version"} & set(names)
    await database.close()
