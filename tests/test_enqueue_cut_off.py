"""An enqueue that is cut off on the caller's connection: none of it is there, and what cut it off is what comes out."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from sqlalchemy import Connection, Engine, event, text

from outbox import Outbox, TelemetryEnvelope
from outbox.messages import Message
from tests.messages.documents import example
from tests.support.databases import Database
from tests.support.intervals import interval, intervals

CHUNK_ROWS = 120
"""On each database more than one statement inserts at once, but for PostgreSQL."""


class TimeIsOver(Exception):
    """What a signal's handler raises, as Celery's does."""


@contextmanager
def time_is_over_at_insert(engine: Engine, nth: int) -> Iterator[None]:
    """TimeIsOver comes before the ``nth`` INSERT of the engine, which is never run; it must have come."""
    seen = 0

    def count(_connection: Connection, _cursor: Any, statement: str, *_: Any) -> None:
        nonlocal seen
        if statement.startswith("INSERT INTO outbox_"):
            seen += 1
            if seen == nth:
                raise TimeIsOver

    event.listen(engine, "before_cursor_execute", count)
    try:
        with pytest.raises(TimeIsOver):
            yield
    finally:
        event.remove(engine, "before_cursor_execute", count)


def entries(engine: Engine) -> int:
    with engine.connect() as connection:
        tables = "outbox_usage", "outbox_traces"
        return sum(connection.execute(text(f"SELECT count(*) FROM {table}")).scalar_one() for table in tables)


MANY = {
    "more than a statement takes": lambda: intervals(CHUNK_ROWS),
    "more than a chunk takes": lambda: intervals(3 * CHUNK_ROWS),
    "messages of two lanes": lambda: [interval(), TelemetryEnvelope(signal="traces", document=example("traces"))],
}


@pytest.fixture(params=MANY)
def messages(request: pytest.FixtureRequest, database: Database, monkeypatch: pytest.MonkeyPatch) -> list[Message]:
    if request.param == "more than a statement takes" and database.name != "sqlite":
        pytest.skip("one statement, or COPY")
    monkeypatch.setattr("outbox.producer.CHUNK_ROWS", CHUNK_ROWS)
    made: list[Message] = MANY[request.param]()
    return made


def test_a_connection_that_commits_each_statement_has_all_or_none(
    box: Outbox, engine: Engine, messages: list[Message]
) -> None:
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        with time_is_over_at_insert(engine, 2):
            box.enqueue_many(connection, messages)
        assert entries(engine) == 0
        box.enqueue_many(connection, messages)
        assert entries(engine) == len(messages), "it commits each statement as before"
        box.enqueue(connection, interval())
    assert entries(engine) == len(messages) + 1


@pytest.mark.parametrize("database", ["postgresql", "mariadb"], indirect=True)
def test_a_transaction_that_goes_on_has_what_it_had(box: Outbox, engine: Engine, messages: list[Message]) -> None:
    with engine.begin() as connection:
        box.enqueue(connection, interval())
        with time_is_over_at_insert(engine, 3 if len(messages) > 2 else 2):
            box.enqueue_many(connection, messages)
        box.enqueue(connection, interval())
    assert entries(engine) == 2


def test_what_is_rolled_back_was_never_there(box: Outbox, engine: Engine, messages: list[Message]) -> None:
    """Also as the first of its transaction: the driver of SQLite has not begun one yet."""
    with engine.connect() as connection:
        box.enqueue_many(connection, messages)
        connection.rollback()
        assert entries(engine) == 0
        box.enqueue_many(connection, messages)
        connection.commit()
    assert entries(engine) == len(messages)


@pytest.mark.parametrize("database", ["sqlite"], indirect=True)
def test_a_host_whose_listener_begins_each_transaction_has_only_that(
    box: Outbox, engine: Engine, messages: list[Message]
) -> None:
    """As SQLAlchemy's documentation advises: the driver commits each statement, until somebody says BEGIN."""

    @event.listens_for(engine, "connect")
    def leave_transactions_to_us(driver_connection: Any, _record: Any) -> None:
        driver_connection.isolation_level = None

    @event.listens_for(engine, "begin")
    def begin(connection: Connection) -> None:
        connection.exec_driver_sql("BEGIN")

    with engine.connect() as connection:
        box.enqueue_many(connection, messages)
        connection.rollback()
        assert entries(engine) == 0
        box.enqueue_many(connection, messages)
        connection.commit()
    assert entries(engine) == len(messages)
