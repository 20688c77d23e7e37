"""An enqueue that is cut off on the caller's connection: none of it is there, and what cut it off is what comes out."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from sqlalchemy import Connection, Engine, create_engine, event, text

from outbox import Outbox, TelemetryEnvelope
from outbox.messages import Message
from tests.messages.documents import example
from tests.support.databases import Database
from tests.support.intervals import interval, intervals
from tests.support.locks import waits_for_a_lock
from tests.support.waiting import wait_until

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


def only_what_commits_is_there(box: Outbox, engine: Engine, messages: list[Message]) -> None:
    with engine.connect() as connection:
        box.enqueue_many(connection, messages)
        connection.rollback()
        assert entries(engine) == 0
        box.enqueue_many(connection, messages)
        connection.commit()
    assert entries(engine) == len(messages)


MANY = {
    "more than a statement takes": lambda: intervals(CHUNK_ROWS),
    "more than a chunk takes": lambda: intervals(3 * CHUNK_ROWS),
    "messages of two lanes": lambda: [interval(), TelemetryEnvelope(signal="traces", document=example("traces"))],
}


def of_many(*databases: str) -> pytest.MarkDecorator:
    """The databases, each with what it does not insert by one statement: servers take a chunk by one, or by COPY."""
    cases = [(each, many) for each in databases for many in MANY if each == "sqlite" or "statement" not in many]
    return pytest.mark.parametrize(("database", "messages"), cases, indirect=True)


@pytest.fixture
def messages(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> list[Message]:
    monkeypatch.setattr("outbox.producer.CHUNK_ROWS", CHUNK_ROWS)
    made: list[Message] = MANY[request.param]()
    return made


@of_many("sqlite", "postgresql", "mariadb")
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


@of_many("postgresql", "mariadb")
def test_a_transaction_that_goes_on_has_what_it_had(box: Outbox, engine: Engine, messages: list[Message]) -> None:
    with engine.begin() as connection:
        box.enqueue(connection, interval())
        with time_is_over_at_insert(engine, 3 if len(messages) > 2 else 2):
            box.enqueue_many(connection, messages)
        box.enqueue(connection, interval())
    assert entries(engine) == 2


@of_many("sqlite", "postgresql", "mariadb")
def test_what_is_rolled_back_was_never_there(box: Outbox, engine: Engine, messages: list[Message]) -> None:
    """Also as the first of its transaction: the driver of SQLite has not begun one yet."""
    only_what_commits_is_there(box, engine, messages)


@of_many("sqlite")
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

    only_what_commits_is_there(box, engine, messages)


@pytest.mark.parametrize("database", ["mariadb", "postgresql"], indirect=True)
def test_what_a_signals_handler_raises_while_the_server_is_at_work_comes_out(
    box: Outbox, database: Database, engine: Engine
) -> None:
    """The INSERT waits for another transaction, which has one of its ids."""
    messages = intervals(2000)
    observer = create_engine(database.url, isolation_level="AUTOCOMMIT")

    def end_the_time() -> None:
        wait_until(lambda: waits_for_a_lock(observer))
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGUSR1)

    def handler(*_: object) -> None:
        raise TimeIsOver

    before = signal.signal(signal.SIGUSR1, handler)
    clock = threading.Thread(target=end_the_time)
    try:
        with engine.connect() as other:
            box.enqueue(other, messages[-1])
            clock.start()
            with engine.connect() as connection:
                with pytest.raises(TimeIsOver):
                    box.enqueue_many(connection, messages)
                connection.invalidate()  # the drivers cannot go on: an answer is on its way
            other.rollback()
    finally:
        clock.join()
        signal.signal(signal.SIGUSR1, before)
        observer.dispose()
    assert entries(engine) == 0
