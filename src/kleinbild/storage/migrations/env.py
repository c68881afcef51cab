"""What alembic runs. The server comes with its own connection (`kleinbild.storage.migrations.upgrade`); a developer who
writes a migration names a database instead: `alembic -x url=sqlite:///old.sqlite revision --autogenerate -m "what"`.
"""

from alembic import context
from sqlalchemy import Connection, create_engine

from kleinbild.storage.schema import metadata


def migrate(connection: Connection) -> None:
    context.configure(connection, target_metadata=metadata, compare_type=True, compare_server_default=True)
    with context.begin_transaction():
        context.run_migrations()


if (given := context.config.attributes.get("connection")) is not None:
    migrate(given)
else:
    with create_engine(context.get_x_argument(as_dictionary=True)["url"]).connect() as opened:
        migrate(opened)
