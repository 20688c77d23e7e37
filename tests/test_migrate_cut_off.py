"""Migrations that are cut off where DDL commits by itself: what they leave is finished, repaired or refused."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import Connection, Engine, create_engine, event, inspect, make_url, text

from outbox import Outbox
from outbox.errors import DatabaseUnavailable
from outbox.store.dialects import dialect_of
from outbox.store.schema import metadata
from tests.support.databases import Database
from tests.support.waiting import wait_until

mariadb = pytest.mark.parametrize("database", ["mariadb"], indirect=True)

FIRST = "outbox_0001"
SECOND = "outbox_0002"
LAST = "outbox_0003"
FINISH = "outbox migrate --revision base --yes"
CHANGES = ("CREATE", "ALTER", "DROP", "INSERT", "UPDATE", "DELETE")


@pytest.fixture
def box(database: Database, box: Outbox, monkeypatch: pytest.MonkeyPatch) -> Outbox:
    """One that is soon tired of waiting for a table."""
    monkeypatch.setattr("outbox.store.dialects.mysql.MIGRATION_LOCK_SECONDS", 1)
    return box


class Killed(BaseException):
    """What comes before it is committed by the database, what comes after it never reaches it."""


@contextmanager
def each_change(box: Outbox, moment: str, do: Callable[[Connection, str], object]) -> Iterator[None]:
    """``do`` is called ``before`` or ``after`` each statement of the box that changes something."""

    def listener(connection: Connection, _cursor: Any, statement: str, *_: Any) -> None:
        if statement.lstrip().startswith(CHANGES):
            do(connection, statement)

    event.listen(box.engine, f"{moment}_cursor_execute", listener)
    try:
        yield
    finally:
        event.remove(box.engine, f"{moment}_cursor_execute", listener)


def killed(box: Outbox, revision: str, after: int) -> bool:
    """Migrate, and be killed after so many changes; False: there were no more, and it is finished."""
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
    """Those of ours that are there, and the view."""
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


# --- two at once ---------------------------------------------------------------------------------------------


@contextmanager
def migrating(engine: Engine) -> Iterator[int]:
    """As another process that is in the middle of it; the number of its session."""
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
    box.migrate()  # nobody has the lock
    must_be_whole(box, engine)
