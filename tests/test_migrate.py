"""The schema, by outbox's own history or merged into a host's."""

from __future__ import annotations

import re
import shutil
import sqlite3
import textwrap
from collections.abc import Callable
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import pytest
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Engine, delete, inspect, make_url

from outbox import Outbox, Settings
from outbox.core.lane import Lane
from outbox.errors import ConfigError, SchemaOutOfDate
from outbox.simulator import Simulator
from outbox.store import migrate
from outbox.store.schema import LANE, metadata
from outbox.testing import drain
from tests.support import killable
from tests.support.databases import Database
from tests.support.intervals import interval, intervals


@pytest.fixture
def box(database: Database, box: Outbox) -> Outbox:  # database: pytest before 8.4 forgets what the other box asks for
    """An outbox whose tables Alembic has created, revision by revision, rather than a copied template."""
    box.migrate("base")
    box.migrate()
    return box


def test_migrating_again_changes_nothing(box: Outbox) -> None:
    box.put(interval())
    box.migrate()
    status = box.status()
    assert status.schema.current == status.schema.head
    assert status.lanes["usage"].pending == 1


def test_migrating_adds_the_lanes_of_a_host_that_emptied_all_tables(box: Outbox, engine: Engine) -> None:
    with engine.begin() as connection:
        connection.execute(delete(LANE))
    [waits] = box.put(interval())
    with pytest.raises(SchemaOutOfDate, match="no row for usage"):
        box.status()
    box.migrate()
    assert box.status().lanes["usage"].pending == 1
    with Simulator() as beacon:
        drain(box, beacon)
        assert list(beacon.received.ids("usage")) == [str(waits)]


def test_a_lane_that_is_added_again_sends_nothing_that_the_ledger_says_is_sent(box: Outbox, engine: Engine) -> None:
    with Simulator() as beacon:
        sent = box.put(*intervals(3))
        drain(box, beacon)
        with engine.begin() as connection:
            connection.execute(delete(LANE))
        [more] = box.put(interval())
        box.migrate()
        drain(box, beacon)
        assert beacon.received.ids("usage") == {str(id): 1 for id in (*sent, more)}
        status = box.status().lanes["usage"]
        assert (status.sent, status.pending, status.state) == (4, 0, "open")
        [audited] = box.audit("usage")
        assert (audited.problem, audited.strays) == (None, 0)


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
    """Alembic returns the changes of one column as a nested list."""
    return [each for change in changes for each in (change if isinstance(change, list) else [change])]


def _of_identity(change: tuple[Any, ...]) -> bool:
    """Older Alembic reports an identity column as a changed default on SQLite and MariaDB."""
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


FIRST = "outbox_0001"
LAST = "outbox_0003"
"""The newest revision."""
SECOND = "outbox_00005"
"""After LAST by its ``down_revision``, but before it as text."""
SECOND_REVISION = f"""
import sqlalchemy as sa
from alembic import op

revision = "{SECOND}"
down_revision = "{LAST}"
branch_labels = None
depends_on = None


def upgrade():
    op.add_column("outbox_lane", sa.Column("note", sa.Integer))


def downgrade():
    op.drop_column("outbox_lane", "note")
"""


@pytest.fixture
def second_revision(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A script directory with one revision more; returns its folder."""
    folder = tmp_path / "migrations"
    shutil.copytree(migrate.SCRIPTS, folder, ignore=shutil.ignore_patterns("__pycache__"))
    (folder / "versions" / "outbox_00005_note.py").write_text(SECOND_REVISION)
    monkeypatch.setattr(migrate, "SCRIPTS", str(folder))
    monkeypatch.setitem(migrate.LANDMARKS, SECOND, "outbox_lane.note")
    return folder


@pytest.mark.parametrize("cut_off", ["up", "down"])
def test_columns_that_an_upgrade_cut_short_has_left_are_no_obstacle(box: Outbox, engine: Engine, cut_off: str) -> None:
    columns = "rejected", "shortfall", "last_warning_at", "last_warning"
    if cut_off == "up":
        box.migrate(FIRST)
        with engine.begin() as connection:
            connection.exec_driver_sql("ALTER TABLE outbox_lane ADD COLUMN rejected BIGINT NOT NULL DEFAULT 0")
    else:
        with engine.begin() as connection:
            connection.exec_driver_sql("ALTER TABLE outbox_lane DROP COLUMN last_warning")
        box.migrate(FIRST)
        with engine.connect() as connection:
            left = {each["name"] for each in inspect(connection).get_columns("outbox_lane")}
        assert left.isdisjoint(columns)
    box.migrate()
    with engine.connect() as connection:
        assert {each["name"] for each in inspect(connection).get_columns("outbox_lane")} >= set(columns)
    box.put(interval())
    assert box.status().lanes["usage"].rejected == 0


def test_totals_survive_the_upgrade_that_adds_to_them(box: Outbox, engine: Engine) -> None:
    box.migrate(FIRST)
    with engine.begin() as connection:
        connection.exec_driver_sql("UPDATE outbox_lane SET sent = 7 WHERE lane = 'usage'")
    box.migrate()
    seen = box.status().lanes["usage"]
    assert (seen.sent, seen.rejected, seen.shortfall, seen.last_warning) == (7, 0, 0, None)


def revision_of(box: Outbox) -> str | None:
    return box.store.schema().current


def test_who_meets_the_tables_of_an_older_version_is_told_to_migrate(box: Outbox) -> None:
    box.put(interval())
    box.migrate("outbox_0001")
    for use in (box.status, lambda: box.store.lane_status(Lane.USAGE), lambda: box.audit(Lane.USAGE)):
        with pytest.raises(SchemaOutOfDate, match="Run: outbox migrate"):
            use()


def test_the_landmarks_are_those_of_the_script_directory() -> None:
    config = Config()
    config.set_main_option("script_location", migrate.SCRIPTS)
    scripts = ScriptDirectory.from_config(config)
    assert list(reversed(migrate.LANDMARKS)) == [each.revision for each in scripts.walk_revisions()]
    assert migrate.head() == scripts.get_current_head()


def test_a_revision_may_be_named_up_and_down_in_full_in_part_or_in_steps(second_revision: Path, box: Outbox) -> None:
    assert revision_of(box) == SECOND
    moves = (
        (FIRST, FIRST),
        ("outbox_0000", SECOND),
        ("-1", LAST),
        ("+1", SECOND),
        ("-3", FIRST),
        ("base", None),
        (LAST, LAST),
        ("head", SECOND),
        ("-1", LAST),
        ("heads", SECOND),
    )
    for revision, arrived in moves:
        box.migrate(revision)
        assert revision_of(box) == arrived, revision
    box.put(interval())


def test_an_unknown_revision_is_named_with_those_that_there_are(second_revision: Path, box: Outbox) -> None:
    known = f"Known: head, base, {FIRST}, outbox_0002, {LAST}, {SECOND}"
    for unknown in ("outbox_9999", "outbox_0", "+5", "-7", ""):
        with pytest.raises(ConfigError, match=rf"--revision {re.escape(unknown)}: .+\. {known}\."):
            box.migrate(unknown)
        with pytest.raises(ConfigError, match=known):
            box.migration_sql(unknown)
        assert revision_of(box) == SECOND, "nothing was changed"


def test_tables_of_a_newer_version_are_left_alone(
    second_revision: Path, box: Outbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert revision_of(box) == SECOND
    monkeypatch.undo()
    for refused in (box.status, box.migrate):
        with pytest.raises(SchemaOutOfDate, match=f"{SECOND}, which this version .* not know .*a newer one made it"):
            refused()
    assert revision_of(box) == SECOND


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

context.configure(
    connection=context.config.attributes["connection"], version_table=context.config.attributes["version_table"]
)
with context.begin_transaction():
    context.run_migrations()
"""
HOST_REVISION = f"""
import sqlalchemy as sa
from alembic import op

revision = "host_1"
down_revision = None
branch_labels = ("host",)
depends_on = "{FIRST}"


def upgrade():
    op.create_table("orders", sa.Column("id", sa.Integer, primary_key=True))


def downgrade():
    op.drop_table("orders")
"""
HOST_MERGE = f"""
revision = "host_2"
down_revision = ("host_1", "{SECOND}")
branch_labels = None
depends_on = None


def upgrade():
    pass


def downgrade():
    pass
"""


class Host:
    """An application with its own Alembic history, which includes ours."""

    def __init__(self, engine: Engine, folder: Path, ours: str) -> None:
        self.engine = engine
        self.versions = folder / "versions"
        self.versions.mkdir(parents=True)
        (folder / "env.py").write_text(textwrap.dedent(ENV))
        self.add("host_1", HOST_REVISION)
        self.config = Config()
        self.config.set_main_option("script_location", str(folder))
        self.config.set_main_option("path_separator", "newline")
        self.config.set_main_option("version_locations", f"{self.versions}\n{ours}")
        self.config.attributes["version_table"] = "alembic_version"

    def add(self, name: str, revision: str) -> None:
        (self.versions / f"{name}.py").write_text(revision)

    def upgrade(self, revision: str) -> None:
        self._run(command.upgrade, revision)

    def downgrade(self, revision: str) -> None:
        self._run(command.downgrade, revision)

    def _run(self, move: Callable[[Config, str], None], revision: str) -> None:
        with self.engine.begin() as connection:
            self.config.attributes["connection"] = connection
            move(self.config, revision)


def test_a_host_may_have_outbox_in_its_own_history(
    database: Database, engine: Engine, tmp_path: Path, beacon: Simulator
) -> None:
    Host(engine, tmp_path / "host", "outbox:migrations/versions").upgrade("heads")
    with Outbox(database.url, settings=Settings()) as box:
        assert box.status().schema.current == box.status().schema.head
        ids = box.put(interval())
        drain(box, beacon)
        assert beacon.received.ids() == {str(ids[0]): 1}
        with pytest.raises(ConfigError, match="host's own Alembic history"):
            box.migrate()
    with engine.connect() as connection:
        assert inspect(connection).has_table("orders")


def test_a_host_that_is_behind_is_told_so_whatever_its_own_heads_are(
    database: Database, engine: Engine, tmp_path: Path, second_revision: Path
) -> None:
    host = Host(engine, tmp_path / "host", str(second_revision / "versions"))
    host.upgrade("host_1")  # depends on our first revision, and replaces it in the host's version table
    with Outbox(database.url, settings=Settings()) as box:
        assert revision_of(box) == FIRST
        with pytest.raises(SchemaOutOfDate, match=f"at {FIRST}, this version needs {SECOND}.*host's alembic"):
            box.store.require_schema()
        host.add("host_2", HOST_MERGE)
        host.upgrade("heads")  # merges our second revision: none of ours is among the heads
        assert revision_of(box) == SECOND
        box.store.require_schema()
        host.downgrade("host_1")
        host.downgrade(f"{SECOND}-1")
        assert revision_of(box) == LAST
        host.downgrade("base")
        assert revision_of(box) is None


def test_the_version_table_of_a_host_may_have_any_name(database: Database, engine: Engine, tmp_path: Path) -> None:
    host = Host(engine, tmp_path / "host", "outbox:migrations/versions")
    host.config.attributes["version_table"] = "shop_versions"
    host.upgrade("heads")
    with Outbox(database.url, settings=Settings()) as box:
        assert box.status().schema.current == box.status().schema.head
        with pytest.raises(ConfigError, match="host's own Alembic history"):
            box.migrate()


@pytest.mark.parametrize("database", ["postgresql"], indirect=True)
def test_the_indexes_of_a_log_have_no_room_in_their_pages_where_it_would_stay_empty(
    box: Outbox, engine: Engine
) -> None:
    with engine.connect() as connection:
        full = connection.exec_driver_sql(
            "SELECT count(*) FROM pg_index i JOIN pg_class c ON c.oid = i.indexrelid"
            " WHERE 'fillfactor=100' = ANY (c.reloptions)"
            " AND i.indrelid = ANY ('{outbox_usage,outbox_metrics,outbox_traces,outbox_logs}'::regclass[])"
        ).scalar()
    assert full == 8
