"""Alembic in code: to head or anywhere, from any number of processes at once, or as SQL.

Own version table, so the outbox may live beside a host's history. A host that prefers one history adds
``outbox:migrations/versions`` to its ``version_locations``; then its own version table has our revisions.
"""

from __future__ import annotations

import io
from importlib.resources import files
from typing import TYPE_CHECKING, Any

from sqlalchemy import Connection, inspect, text

from outbox.core.entry import SchemaStatus
from outbox.errors import ConfigError, SchemaOutOfDate

if TYPE_CHECKING:
    from alembic.config import Config

    from outbox.store.database import Database

VERSION_TABLE = "outbox_alembic_version"
HOST_VERSION_TABLE = "alembic_version"
HEAD = "outbox_0001"


def migrate(database: Database, revision: str = "head") -> None:
    """Upgrade or downgrade to ``revision``; idempotent, and safe when several processes start at once."""
    from alembic import command

    database.dialect.create_store(database.url)
    with database.write() as connection, database.dialect.migration_lock(connection):
        if _merged_into_host(connection):
            raise ConfigError(
                f"{database.safe_url}: the outbox tables belong to the host's own Alembic history"
                f" ({HOST_VERSION_TABLE}). Upgrade with the host's alembic instead."
            )
        current = _revision(connection, VERSION_TABLE)
        config = _config(connection=connection)
        target = revision if revision != "head" else HEAD
        if current == target:
            return
        down = target == "base" or (current is not None and target < current)
        with _known_revision(revision):
            (command.downgrade if down else command.upgrade)(config, revision)


def script(database: Database, revision: str = "head") -> str:
    """The SQL of an upgrade from nothing, for a person who runs it by hand."""
    from alembic import command

    out = io.StringIO()
    config = _config(dialect=database.url.get_backend_name(), buffer=out)
    with _known_revision(revision):
        command.upgrade(config, revision, sql=True)
    return out.getvalue()


def schema_status(connection: Connection) -> SchemaStatus:
    current = _revision(connection, VERSION_TABLE)
    if current is None and _merged_into_host(connection):
        current = HEAD
    return SchemaStatus(current, HEAD)


def require_head(connection: Connection, where: str) -> None:
    """Raise ``SchemaOutOfDate`` unless the tables are of this code's revision."""
    status = schema_status(connection)
    if status.current != status.head:
        found = "the outbox tables are not there" if status.current is None else f"the schema is at {status.current}"
        raise SchemaOutOfDate(f"{where}: {found}, this version needs {status.head}. Run: outbox migrate")


def configure(context: Any) -> None:
    """What env.py hands to Alembic."""
    attributes = context.config.attributes
    options = {"version_table": VERSION_TABLE, "transaction_per_migration": False}
    if attributes.get("connection") is not None:
        context.configure(connection=attributes["connection"], **options)
    else:
        context.configure(
            dialect_name=attributes["dialect"], output_buffer=attributes["buffer"], literal_binds=True, **options
        )


def _config(**attributes: Any) -> Config:
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", str(files("outbox") / "migrations"))
    config.attributes.update(attributes)
    return config


def _revision(connection: Connection, table: str) -> str | None:
    if not inspect(connection).has_table(table):
        return None
    versions = connection.execute(text(f"SELECT version_num FROM {table}")).scalars()  # noqa: S608 - our names
    return next((version for version in versions if version.startswith("outbox_")), None)


def _merged_into_host(connection: Connection) -> bool:
    """Our tables are there without our version table, beside the host's.

    Not by our revision's name: a host revision that depends on it replaces it in Alembic's table of heads.
    ``outbox_lane`` is the last table that an upgrade makes.
    """
    found = inspect(connection)
    return not found.has_table(VERSION_TABLE) and found.has_table(HOST_VERSION_TABLE) and found.has_table("outbox_lane")


class _known_revision:  # noqa: N801 - used as a block
    def __init__(self, revision: str) -> None:
        self.revision = revision

    def __enter__(self) -> None:
        return None

    def __exit__(self, _kind: object, error: BaseException | None, _trace: object) -> None:
        from alembic.util import CommandError

        if isinstance(error, CommandError):
            raise ConfigError(f"--revision {self.revision}: {error}. Known: head, base, {HEAD}.") from error
