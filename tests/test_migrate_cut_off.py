"""Interrupted migrations where DDL commits implicitly: their partial state is completed, repaired or refused."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import Connection, Engine, create_engine, event, inspect, make_url, text

from outbox import Outbox
from outbox.errors import DatabaseUnavailable, OutboxError, SchemaOutOfDate
from outbox.simulator import Simulator
from outbox.store.dialects import dialect_of
from outbox.store.schema import metadata
from outbox.testing import drain
from tests.support.databases import Database
from tests.support.intervals import interval
from tests.support.waiting import wait_until

mariadb = pytest.mark.parametrize("database", ["mariadb"], indirect=True)

FIRST = "outbox_0001"
SECOND = "outbox_0002"
LAST = "outbox_0003"
FINISH = "outbox migrate --revision base --yes"
CHANGES = ("CREATE", "ALTER", "DROP", "INSERT", "UPDATE", "DELETE")


@pytest.fixture
def box(database: Database, box: Outbox, monkeypatch: pytest.MonkeyPatch) -> Outbox:
    """An outbox whose migration waits one second for a table's lock."""
    monkeypatch.setattr("outbox.store.dialects.mysql.MIGRATION_LOCK_SECONDS", 1)
    return box


class Killed(BaseException):
    """The migrating process dies: the database has committed the statements before, and sees none after."""


@contextmanager
def each_change(box: Outbox, moment: str, do: Callable[[Connection, str], object]) -> Iterator[None]:
    """Call ``do`` before or after (``moment``) each statement of the box that changes something."""

    def listener(connection: Connection, _cursor: Any, statement: str, *_: Any) -> None:
        if statement.lstrip().startswith(CHANGES):
            do(connection, statement)

    event.listen(box.engine, f"{moment}_cursor_execute", listener)
    try:
        yield
    finally:
        event.remove(box.engine, f"{moment}_cursor_execute", listener)


def killed(box: Outbox, revision: str, after: int) -> bool:
    """Migrate, and die after ``after`` changes. False: the migration had no more, and completed."""
    done: list[str] = []

    def count(_connection: Connection, statement: str) -> None:
        if len(done) == after:
            raise Killed
        done.append(statement)

    with each_change(box, "before", count):
        try:
            box.migrate(revision)
        except Killed:
            return True
    return False


def tables(engine: Engine) -> set[str]:
    """The outbox tables that exist, and the view."""
    with engine.connect() as connection:
        there = inspect(connection)
        return {*there.get_table_names(), *there.get_view_names()} - {"outbox_alembic_version"}


def columns(engine: Engine) -> set[str]:
    with engine.connect() as connection:
        return {each["name"] for each in inspect(connection).get_columns("outbox_lane")}


def must_be_whole(box: Outbox, engine: Engine) -> None:
    assert tables(engine) == {*metadata.tables, "outbox_entry_status"}
    with engine.connect() as connection:
        connection.exec_driver_sql("SELECT lane FROM outbox_entry_status")
        changes = compare_metadata(MigrationContext.configure(connection), metadata)
    of_columns = [each for change in changes for each in (change if isinstance(change, list) else [change])]
    assert [change for change in of_columns if change[0] in ("add_table", "add_column", "add_index")] == []
    assert box.store.schema().current == LAST
    box.status()


def execute(engine: Engine, *statements: str) -> None:
    with engine.begin() as connection:
        for statement in statements:
            connection.exec_driver_sql(statement)


# --- another open transaction --------------------------------------------------------------------------------


@mariadb
def test_a_downgrade_to_base_that_a_reader_holds_up_leaves_every_entry_and_what_was_sent_is_not_sent_again(
    box: Outbox, engine: Engine, beacon: Simulator
) -> None:
    (sent,) = box.put(interval())
    drain(box, beacon)
    (pending,) = box.put(interval())
    with engine.connect() as reader:
        reader.exec_driver_sql("SELECT count(*) FROM outbox_usage")
        with pytest.raises(DatabaseUnavailable, match=r"keeps each step .* run again") as told:
            box.migrate("base")
    assert "Nothing was written" not in str(told.value)
    with pytest.raises(SchemaOutOfDate, match="Run: outbox migrate"):
        box.status()
    box.migrate()
    must_be_whole(box, engine)
    drain(box, beacon)
    assert beacon.received.ids() == {str(sent): 1, str(pending): 1}


@mariadb
def test_a_reader_who_comes_while_columns_are_dropped_finds_all_of_them_gone(box: Outbox, engine: Engine) -> None:
    with engine.connect() as reader:

        def read(_connection: Connection, statement: str) -> None:
            if statement.startswith("ALTER TABLE outbox_lane"):
                reader.exec_driver_sql("SELECT count(*) FROM outbox_lane")

        with each_change(box, "after", read):
            box.migrate(FIRST)
        assert reader.in_transaction(), "it has come"
    assert columns(engine).isdisjoint({"rejected", "shortfall", "last_warning_at", "last_warning"})
    box.migrate()
    must_be_whole(box, engine)


# --- killed --------------------------------------------------------------------------------------------------


@mariadb
@pytest.mark.parametrize("again", [True, False], ids=["the same command", "an upgrade"])
@pytest.mark.parametrize("revision", [SECOND, FIRST, "base"])
def test_what_a_downgrade_that_is_killed_anywhere_has_left_is_finished_by_the_same_command_or_repaired_by_an_upgrade(
    box: Outbox, engine: Engine, revision: str, again: bool
) -> None:
    changes = 0
    while killed(box, revision, after=changes):
        if again:
            box.migrate(revision)
            assert (box.store.schema().current or "base") == revision
            assert revision != "base" or tables(engine) == set()
        box.migrate()
        must_be_whole(box, engine)
        changes += 1
    assert changes >= 2, "at least what is dropped, and the revision"
    box.migrate()


@mariadb
@pytest.mark.parametrize("recorded", [SECOND, LAST])
def test_an_upgrade_adds_columns_that_are_missing_whatever_revision_was_recorded_over_them(
    box: Outbox, engine: Engine, recorded: str
) -> None:
    """A downgrade in four statements left the tables so, and an upgrade after it did not notice."""
    box.migrate(recorded)
    execute(engine, "ALTER TABLE outbox_lane DROP COLUMN last_warning, DROP COLUMN last_warning_at")
    box.migrate()
    must_be_whole(box, engine)


@mariadb
def test_entries_that_are_left_where_a_server_died_as_it_dropped_the_tables_are_refused_and_not_sent_again(
    box: Outbox, engine: Engine
) -> None:
    """MariaDB's DROP of several tables is not atomic: it drops one after the other."""
    for dropped in range(1, 8):
        box.put(interval())
        base_as_the_server_dies(box, engine, dropped)
        left = tables(engine)
        assert len(left) == 8 - dropped, "the view too"
        if "outbox_usage" in left:
            for _ in range(2):  # the first refusal changes nothing
                with pytest.raises(OutboxError, match=rf"usage has entries.*{FINISH}.*restore a backup"):
                    box.migrate()
                with pytest.raises(SchemaOutOfDate):
                    box.status()
            assert tables(engine) == left
            box.migrate("base")
            assert tables(engine) == set()
        box.migrate()
        must_be_whole(box, engine)
    assert "outbox_usage" not in left, "the last of them"


def base_as_the_server_dies(box: Outbox, engine: Engine, dropped: int) -> None:
    """A downgrade to base that dies once ``dropped`` tables are gone."""

    def die(_connection: Connection, statement: str) -> None:
        what, _, names = statement.partition("outbox_")
        if "outbox_usage" in statement:
            assert what == "DROP TABLE IF EXISTS "
            some = f"outbox_{names}".split(", ")[:dropped]
            execute(engine, "SET SESSION lock_wait_timeout = 5", f"DROP TABLE {', '.join(some)}")
            raise Killed

    with each_change(box, "before", die), pytest.raises(Killed):
        box.migrate("base")


def test_entries_without_their_lanes_are_refused_also_where_no_revision_is_recorded(
    box: Outbox, engine: Engine
) -> None:
    box.put(interval())
    execute(engine, "DROP VIEW outbox_entry_status", "DROP TABLE outbox_lane", "DELETE FROM outbox_alembic_version")
    with pytest.raises(OutboxError, match=rf"usage has entries.*{FINISH}.*restore a backup"):
        box.migrate()
    box.migrate("base")
    assert tables(engine) == set()
    box.migrate()
    must_be_whole(box, engine)


@mariadb
def test_a_first_upgrade_that_is_killed_goes_on_though_producers_have_written_meanwhile(
    box: Outbox, engine: Engine
) -> None:
    box.migrate("base")
    made = iter(range(100))
    while "outbox_usage" not in tables(engine):
        assert killed(box, FIRST, after=next(made))
    box.put(interval())
    box.migrate()
    must_be_whole(box, engine)
    assert box.status().lanes["usage"].pending == 1


@mariadb
def test_a_column_that_is_missing_is_told_as_a_schema_that_is_out_of_date(box: Outbox, engine: Engine) -> None:
    execute(engine, "ALTER TABLE outbox_lane DROP COLUMN last_warning")
    with pytest.raises(SchemaOutOfDate, match=r"last_warning.*Run: outbox migrate"):
        box.status()
    box.migrate()
    box.status()


# --- two at once ---------------------------------------------------------------------------------------------


@contextmanager
def migrating(engine: Engine) -> Iterator[int]:
    """Hold the migration lock, as another process that migrates; yields the id of its session."""
    with engine.connect() as connection, dialect_of(connection).migration_lock(connection):
        yield connection.execute(text("SELECT CONNECTION_ID()")).scalar_one()


@mariadb
def test_who_has_waited_for_another_process_that_migrates_says_so_and_changes_nothing(
    box: Outbox, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    with migrating(engine) as session:
        monkeypatch.setattr("outbox.store.dialects.mysql.MIGRATION_TURN_SECONDS", 1)
        with pytest.raises(DatabaseUnavailable, match=rf"another process \(session {session}\) .* for 1 s\. Nothing"):
            box.migrate("base")
        must_be_whole(box, engine)
    box.migrate(FIRST)
    box.migrate()


@mariadb
def test_who_migrates_another_database_of_the_server_is_not_waited_for(
    database: Database, box: Outbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("outbox.store.dialects.mysql.MIGRATION_TURN_SECONDS", 0)
    other = create_engine(make_url(database.url).set(database="mysql"))
    with migrating(other):
        box.migrate(FIRST)
        box.migrate()
    other.dispose()


@mariadb
def test_what_has_ended_a_migration_is_told_though_its_session_cannot_give_the_lock_back(
    box: Outbox, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    def kill(connection: Connection, _statement: str) -> None:
        session = connection.connection.driver_connection.thread_id()  # type: ignore[union-attr]
        there = text("SELECT count(*) FROM information_schema.processlist WHERE id = :id")
        with engine.connect() as operator:
            operator.exec_driver_sql(f"KILL {session}")
            wait_until(lambda: operator.execute(there, {"id": session}).scalar() == 0)

    with (
        each_change(box, "before", kill),
        pytest.raises(DatabaseUnavailable, match=r"Lost connection|gone away|\(20\d\d"),
    ):
        box.migrate(FIRST)
    monkeypatch.setattr("outbox.store.dialects.mysql.MIGRATION_TURN_SECONDS", 0)
    box.migrate()  # the lock is free
    must_be_whole(box, engine)
