"""The tables' history: each file in `versions` takes a database one step on; `upgrade` takes it to the last.

A migration is written once and never changed. There is no way back: an older version refuses a newer database, so keep a
copy of the data before you try a new version. To write one, change `schema.py`, then have alembic compare it with an old
database (`env.py` says how); its revision is the next number, with `--rev-id`.
"""

from __future__ import annotations

from pathlib import Path

from sqlalchemy import Column, Connection, MetaData, String, Table, func, inspect, select

from kleinbild.core.errors import DatabaseError
from kleinbild.storage.schema import metadata

FOLDER = Path(__file__).parent
KNOWN = tuple(sorted(path.name.partition("_")[0] for path in (FOLDER / "versions").glob("[0-9]*.py")))
HEAD = KNOWN[-1]
LOCK = 7_235_141_602_118_340_961  # of PostgreSQL, for whoever migrates; any number that others do not use
_version = Table("alembic_version", MetaData(), Column("version_num", String(32)))  # as alembic makes it


def revision_of(connection: Connection) -> str | None:
    """The revision of the database's tables; None before the first migration. Without alembic, whose import is slow."""
    if not inspect(connection).has_table(_version.name):
        return None
    return connection.execute(select(_version.c.version_num)).scalar_one_or_none()


def upgrade(connection: Connection) -> None:
    """Takes the tables to HEAD within the connection's transaction; of two processes at once, one waits for the other.

    Raises DatabaseError for tables that are newer than this version, or not ours.
    """
    if connection.dialect.name == "postgresql":  # on SQLite the transaction is the lock
        connection.execute(select(func.pg_advisory_xact_lock(LOCK)))
    found = revision_of(connection)
    if found == HEAD:
        return
    _refuse_unknown(connection, found)

    from alembic import command
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", str(FOLDER).replace("%", "%%"))
    config.attributes["connection"] = connection
    command.upgrade(config, "head")


def _refuse_unknown(connection: Connection, found: str | None) -> None:
    if found is not None and found not in KNOWN:
        raise DatabaseError(
            f"a newer version of Kleinbild has used this database: its tables are at revision {found}, "
            f"and this version knows them up to {HEAD}",
            "upgrade Kleinbild, or choose another database",
        )
    taken = sorted(metadata.tables.keys() & set(inspect(connection).get_table_names())) if found is None else []
    if taken:
        raise DatabaseError(
            f"there are tables in the database that no migration has made: {', '.join(taken)}",
            "they are another program's, or of a version before the first release; choose another database",
        )
