"""The schema, by outbox's own history or merged into a host's."""

from __future__ import annotations

import sqlite3
import textwrap
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import pytest
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext
from sqlalchemy import Engine, inspect, make_url

from outbox import Outbox, Settings
from outbox.errors import ConfigError, SchemaOutOfDate
from outbox.simulator import Simulator
from outbox.store.schema import metadata
from outbox.testing import drain
from tests.support import killable
from tests.support.databases import Database
from tests.support.intervals import interval


def test_migrating_again_changes_nothing(box: Outbox) -> None:
    box.put(interval())
    box.migrate()
    status = box.status()
    assert status.schema.current == status.schema.head
    assert status.lanes["usage"].pending == 1


def test_four_processes_may_migrate_at_once(database: Database, tmp_path: Path) -> None:
    with ExitStack() as stack:
        out = stack.enter_context((tmp_path / "out").open("wb"))
        started = [stack.enter_context(killable.start("migrate", out, database_url=database.url)) for _ in range(4)]
        assert [process.wait(60) for process in started] == [0, 0, 0, 0]
    with Outbox(database.url, settings=Settings()) as box:
        assert box.status().schema.current == box.status().schema.head
        box.put(interval())


def test_the_tables_of_the_code_are_the_migrated_ones(box: Outbox, engine: Engine) -> None:
    def ours(_object: object, name: str | None, kind: str, _reflected: bool, _to: object) -> bool:
        return kind != "table" or name in metadata.tables

    with engine.connect() as connection:
        context = MigrationContext.configure(connection, opts={"include_object": ours, "compare_type": True})
        assert [change for change in _flat(compare_metadata(context, metadata)) if not _of_identity(change)] == []


def _flat(changes: list[Any]) -> list[Any]:
    """Changes of one column come as a list of their own."""
    return [each for change in changes for each in (change if isinstance(change, list) else [change])]


def _of_identity(change: tuple[Any, ...]) -> bool:
    """Older Alembic takes an identity, which SQLite and MariaDB have under another name, for a default."""
    return change[0] == "modify_default" and change[3] == "seq"


def test_down_to_base_leaves_no_table_and_up_again_works(box: Outbox, engine: Engine) -> None:
    box.migrate("base")
    with engine.connect() as connection:
        left = [name for name in inspect(connection).get_table_names() if name in metadata.tables]
        assert (left, inspect(connection).get_view_names()) == ([], [])
    with pytest.raises(SchemaOutOfDate, match="outbox migrate"):
        box.status()
    box.migrate()
    box.put(interval())
    assert box.status().lanes["usage"].pending == 1


def test_an_unknown_revision_is_named(box: Outbox) -> None:
    with pytest.raises(ConfigError, match="outbox_9999"):
        box.migrate("outbox_9999")


def test_the_sql_script_makes_the_same_schema(database: Database, engine: Engine) -> None:
    box = Outbox(database.url, settings=Settings())
    script = box.migration_sql()
    if database.name == "sqlite":
        with closing(sqlite3.connect(str(make_url(database.url).database))) as connection:
            connection.executescript(script)
    else:
        with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
            for statement in script.split(";\n"):
                if statement.strip():
                    connection.exec_driver_sql(statement)
    with box:
        assert box.status().schema.current == box.status().schema.head
        box.put(interval())
        assert box.status().lanes["usage"].pending == 1


ENV = """
from alembic import context

context.configure(connection=context.config.attributes["connection"])
with context.begin_transaction():
    context.run_migrations()
"""
HOST_REVISION = """
import sqlalchemy as sa
from alembic import op

revision = "host_1"
down_revision = None
branch_labels = ("host",)
depends_on = "outbox_0001"


def upgrade():
    op.create_table("orders", sa.Column("id", sa.Integer, primary_key=True))


def downgrade():
    op.drop_table("orders")
"""


def host_alembic(folder: Path) -> Config:
    (folder / "versions").mkdir(parents=True)
    (folder / "env.py").write_text(textwrap.dedent(ENV))
    (folder / "versions" / "host_1.py").write_text(HOST_REVISION)
    config = Config()
    config.set_main_option("script_location", str(folder))
    config.set_main_option("path_separator", "newline")
    config.set_main_option("version_locations", f"{folder / 'versions'}\noutbox:migrations/versions")
    return config


def test_a_host_may_have_outbox_in_its_own_history(
    database: Database, engine: Engine, tmp_path: Path, beacon: Simulator
) -> None:
    config = host_alembic(tmp_path / "host")
    with engine.begin() as connection:
        config.attributes["connection"] = connection
        command.upgrade(config, "heads")
    with Outbox(database.url, settings=Settings()) as box:
        assert box.status().schema.current == box.status().schema.head
        ids = box.put(interval())
        drain(box, beacon)
        assert beacon.received.ids() == {str(ids[0]): 1}
        with pytest.raises(ConfigError, match="host's own Alembic history"):
            box.migrate()
    with engine.connect() as connection:
        assert inspect(connection).has_table("orders")
