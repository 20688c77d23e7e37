"""Enqueued messages are part of the caller's transaction."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from datetime import datetime
from pathlib import Path
from random import Random
from typing import Any
from uuid import uuid4

import pytest
from sqlalchemy import Connection, Engine, create_engine, event, text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import Session, scoped_session, sessionmaker

from outbox import DatabaseUnavailable, InvalidMessage, Outbox, OutboxFull, Settings, TelemetryEnvelope, UsageInterval
from outbox.core.lane import Lane
from outbox.errors import SchemaOutOfDate
from outbox.simulator import Simulator
from outbox.store.dialects.postgresql import PostgreSQL
from outbox.testing import assert_enqueued, drain
from tests.support.databases import Database
from tests.support.delivery import once
from tests.support.intervals import interval, intervals

COPIED = PostgreSQL.copy_from_rows
METRICS = (Path(__file__).parent / "examples" / "metrics.json").read_text()


def stored(engine: Engine, lane: str = "usage") -> int:
    with engine.connect() as connection:
        return int(connection.execute(text(f"SELECT count(*) FROM outbox_{lane}")).scalar_one())


def received(beacon: Simulator) -> dict[str, int]:
    return beacon.received.ids()


@pytest.mark.parametrize("opened", [Session, Engine.connect], ids=["session", "connection"])
def test_what_is_rolled_back_leaves_nothing(
    box: Outbox, engine: Engine, beacon: Simulator, opened: Callable[[Engine], Session | Connection]
) -> None:
    with opened(engine) as unit:
        box.enqueue(unit, interval())
        unit.rollback()
    drain(box, beacon)
    assert (stored(engine), received(beacon)) == (0, {})


@pytest.mark.parametrize("opened", [Session, Engine.connect], ids=["session", "connection"])
def test_what_is_committed_is_delivered(
    box: Outbox, engine: Engine, beacon: Simulator, opened: Callable[[Engine], Session | Connection]
) -> None:
    with opened(engine) as unit, unit.begin():
        ids = box.enqueue(unit, *intervals(3))
    drain(box, beacon)
    assert received(beacon) == once(ids)


def test_a_savepoint_that_is_rolled_back_leaves_nothing(box: Outbox, engine: Engine, beacon: Simulator) -> None:
    with Session(engine) as session, session.begin():
        kept = box.enqueue(session, interval())
        savepoint = session.begin_nested()
        box.enqueue(session, interval())
        savepoint.rollback()
    drain(box, beacon)
    assert received(beacon) == once(kept)


def test_an_id_twice_in_one_call_is_added_once(box: Outbox, engine: Engine) -> None:
    message = interval()
    with Session(engine) as session, session.begin():
        result = box.enqueue(session, message, interval(), message)
    assert result[0] == result[2] == message.id
    assert (result.duplicates, stored(engine)) == (1, 2)


def test_an_id_of_a_later_call_is_added_once(box: Outbox, engine: Engine) -> None:
    message, other = intervals(2)
    box.put(message)
    with Session(engine) as session, session.begin():
        result = box.enqueue(session, message, other)
    assert list(result) == [message.id, other.id]
    assert (result.duplicates, stored(engine)) == (1, 2)


def test_an_id_that_is_there_takes_nothing_of_the_transaction_with_it(box: Outbox, engine: Engine) -> None:
    message, before, after = intervals(3)
    box.put(message)
    with Session(engine) as session, session.begin():
        box.enqueue(session, before)
        result = box.enqueue(session, message)
        box.enqueue(session, after)
    assert (list(result), result.duplicates, stored(engine)) == ([message.id], 1, 3)


def test_a_bulk_counts_what_was_there_already(box: Outbox, engine: Engine, beacon: Simulator) -> None:
    messages = intervals(1500)
    box.put(*messages[:10])
    with Session(engine) as session, session.begin():
        result = box.enqueue_many(session, iter(messages))
    assert list(result) == [message.id for message in messages]
    assert (result.duplicates, stored(engine)) == (10, 1500)
    with Session(engine) as session, session.begin():
        assert box.enqueue_many(session, messages).duplicates == 1500
    drain(box, beacon)
    assert received(beacon) == once(result)


def test_a_bulk_of_new_entries_is_delivered_once(box: Outbox, engine: Engine, beacon: Simulator) -> None:
    with Session(engine) as session, session.begin():
        result = box.enqueue_many(session, (message for message in intervals(3000)))
    assert (len(result), result.duplicates) == (3000, 0)
    drain(box, beacon, timeout=30)
    assert received(beacon) == once(result)


def test_a_bulk_that_is_rolled_back_leaves_nothing(box: Outbox, engine: Engine) -> None:
    with Session(engine) as session:
        box.enqueue_many(session, intervals(1500))
        session.rollback()
    assert stored(engine) == 0


def test_put_is_durable_when_it_returns(box: Outbox, engine: Engine, beacon: Simulator) -> None:
    ids = box.put(*intervals(2))
    assert stored(engine) == 2
    drain(box, beacon)
    assert received(beacon) == once(ids)


def test_a_disabled_lane_stores_nothing(database: Database, engine: Engine) -> None:
    with Outbox(database.url, settings=Settings(telemetry_metrics=False)) as box:
        box.migrate()
        envelope = TelemetryEnvelope(signal="metrics", document=METRICS)
        message = interval()
        result = box.put(envelope, message)
        assert list(result) == [envelope.id, message.id]
        assert result.duplicates == 0
    assert (stored(engine, "metrics"), stored(engine)) == (0, 1)


@pytest.mark.parametrize("n", [1, 1500])
def test_without_tables_enqueue_says_how_to_make_them(database: Database, engine: Engine, n: int) -> None:
    messages = intervals(n)
    with Outbox(database.url, settings=Settings()) as box:
        with Session(engine) as session, pytest.raises(SchemaOutOfDate, match="outbox migrate"):
            box.enqueue_many(session, messages)
        with pytest.raises(SchemaOutOfDate, match="outbox migrate"):
            box.put(*messages)


def test_a_taken_number_is_an_error(box: Outbox, database: Database, engine: Engine) -> None:
    # PostgreSQL's sequence ignores the numbers in the table; the others continue from the largest, so take the last
    # one.
    taken = 1 if database.name == "postgresql" else 2**63 - 1
    id = interval().id
    with engine.connect() as connection:
        connection.execute(
            text("INSERT INTO outbox_usage (seq, id, payload, size) VALUES (:seq, :id, '{}', 2)"),
            {"seq": taken, "id": id if database.name == "postgresql" else id.bytes},
        )
        with pytest.raises(DBAPIError):
            box.enqueue(connection, interval())
        connection.rollback()


@pytest.mark.parametrize("database", ["postgresql"], indirect=True)
def test_a_put_whose_number_is_taken_says_what_mends_it(box: Outbox, engine: Engine) -> None:
    box.put(*intervals(5))
    with engine.begin() as connection:
        connection.execute(text("SELECT setval(pg_get_serial_sequence('outbox_usage', 'seq'), 1, false)"))
    with pytest.raises(DatabaseUnavailable, match=r"The sequence of the log was set back .* Run: outbox audit --mend"):
        box.put(interval())
    box.audit(mend=True)
    box.put(interval())


def test_enqueue_uses_no_connection_but_the_callers(box: Outbox, database: Database) -> None:
    host = create_engine(database.url)
    with host.connect() as connection:
        box.enqueue(connection, interval())
        assert host.pool.checkedout() == 1  # type: ignore[attr-defined]
        connection.rollback()
    host.dispose()


@pytest.mark.parametrize("rows", [1, 2, 50, 51, 120])
def test_whatever_the_number_of_rows_each_is_added_once_by_few_statements(
    box: Outbox, engine: Engine, rows: int
) -> None:
    said: list[str] = []
    event.listen(engine, "before_cursor_execute", lambda _c, _cursor, sql, *_: said.append(sql.split()[0]))
    known, *others = intervals(rows + 1)
    box.put(known)
    box.put(*others[: rows // 2])
    with engine.begin() as connection:
        said.clear()
        result = box.enqueue_many(connection, [known, *others])
    inserts = said.count("INSERT")
    assert stored(engine) == rows + 1
    assert result.duplicates == 1 + rows // 2
    assert inserts <= 1 + rows / 50 if engine.name == "sqlite" else inserts <= 2


@pytest.mark.parametrize("database", ["mariadb"], indirect=True)
@pytest.mark.parametrize(("payloads", "savepoints"), [([300_000], 0), ([400] * 100, 0), ([400] * 101, 1)])
def test_what_is_one_statement_for_the_server_needs_no_savepoint(
    box: Outbox, engine: Engine, payloads: list[int], savepoints: int
) -> None:
    """InnoDB undoes a failed statement as a whole."""
    said: list[str] = []
    event.listen(engine, "before_cursor_execute", lambda _c, _cursor, sql, *_: said.append(sql.split()[0]))
    rows = [(uuid4().bytes, "x" * size, size) for size in payloads]
    with engine.begin() as connection:
        assert box.store.database.dialect.insert(connection, "outbox_metrics", rows) == len(rows)
        connection.rollback()
    assert said.count("SAVEPOINT") == savepoints


@pytest.mark.parametrize("database", ["sqlite"], indirect=True)
def test_what_sqlites_driver_remembers_of_each_statement_is_not_much(box: Outbox, engine: Engine) -> None:
    """It caches up to 128 statements, each with its last parameters: many large rows share a statement for one row."""
    dialect, given = box.store.database.dialect, []
    event.listen(engine, "before_cursor_execute", lambda _c, _cursor, sql, values, *_: given.append((sql, values)))
    with engine.begin() as connection:
        for count in (1, 30, 31, 60, 200):
            for size in (500, 100_000):
                rows = [(uuid4().bytes, "x" * size, size) for _ in range(count)]
                assert dialect.insert(connection, "outbox_metrics", rows) == count
        connection.rollback()
    inserts = [(sql, values) for sql, values in given if sql.startswith("INSERT")]
    at_once = [values for sql, values in inserts if sql.count("?") > 3]
    assert len({sql for sql, _ in inserts}) <= 50
    assert at_once
    assert all(sum(len(value) for value in values if isinstance(value, str)) <= 32 * 1024 for values in at_once)


@pytest.mark.parametrize("make", [sessionmaker, lambda engine: lambda: Session(engine)], ids=["factory", "function"])
def test_a_scoped_session_is_the_session_of_its_scope_and_its_commit_wakes_the_worker(
    box: Outbox, engine: Engine, make: Callable[[Engine], Callable[[], Session]]
) -> None:
    woken: list[set[Lane]] = []
    scoped = scoped_session(make(engine))
    with closing_listener(box, woken):
        [id] = box.enqueue(scoped, interval())
        assert [each.id for each in assert_enqueued(scoped)] == [id]
        assert woken == []
        scoped.commit()
    assert woken == [{Lane.USAGE}]
    scoped.remove()


@contextmanager
def closing_listener(box: Outbox, woken: list[set[Lane]]) -> Iterator[None]:
    stop = box.wake.listen(lambda lanes, _committed=None: woken.append(lanes))
    yield
    stop()


def test_what_is_no_transaction_and_what_is_no_message_is_named(box: Outbox, engine: Engine) -> None:
    wrong: Any
    for wrong, said in (
        (engine, r"enqueue needs the Session or Connection of your transaction, got Engine; box\.put\("),
        (AsyncSession(), r"AsyncSession is asynchronous: await box\.enqueue_async"),
    ):
        with pytest.raises(TypeError, match=said):
            box.enqueue(wrong, interval())
    with closing(engine.raw_connection()) as raw:
        for wrong in (raw, raw.driver_connection, raw.cursor()):
            named = r"(psycopg|pymysql|sqlite3)\." if wrong is raw.driver_connection else ""
            with pytest.raises(TypeError, match=rf"enqueue needs the Session or Connection of .*, got {named}"):
                box.enqueue(wrong, interval())
    message: Any = {"tenant_id": "x"}
    with pytest.raises(InvalidMessage, match="expected a UsageInterval or TelemetryEnvelope, got an object"):
        box.put(message)
    message = [interval()]
    with engine.begin() as connection, pytest.raises(InvalidMessage, match="got an array"):
        box.enqueue(connection, message)
    assert stored(engine) == 0


def test_messages_may_come_from_the_session_that_they_are_enqueued_in(box: Outbox, engine: Engine) -> None:
    with Session(engine) as session:

        def found() -> Iterator[UsageInterval]:
            for _ in range(2):
                yield interval(trace_count=session.scalar(text("SELECT 1")))
                session.commit()

        box.enqueue_many(session, found())
        session.commit()
    assert stored(engine) == 2


@pytest.mark.parametrize("said", ["by an option", "to the driver"])
@pytest.mark.parametrize("count", [1, COPIED])
@pytest.mark.parametrize("known", [0, 3])
def test_a_connection_that_commits_each_statement_takes_all_of_them_or_none(
    box: Outbox, database: Database, engine: Engine, count: int, known: int, said: str
) -> None:
    messages = intervals(count)
    before = messages[:known]
    box.put(*before)
    with committing_each(database, said) as connection:
        assert box.enqueue_many(connection, messages).duplicates == len(before)
    assert stored(engine) == count


@pytest.mark.parametrize("database", ["postgresql", "mariadb"], indirect=True)
@pytest.mark.parametrize("said", ["by an option", "to the driver"])
@pytest.mark.parametrize("end", ["COMMIT", "ROLLBACK"])
def test_a_transaction_that_a_host_begins_by_itself_stays_its_own(
    box: Outbox, database: Database, engine: Engine, said: str, end: str
) -> None:
    with committing_each(database, said) as connection:
        connection.exec_driver_sql("BEGIN")
        box.enqueue_many(connection, intervals(COPIED))
        assert stored(engine) == 0
        connection.exec_driver_sql(end)
    assert stored(engine) == (COPIED if end == "COMMIT" else 0)


@contextmanager
def committing_each(database: Database, said: str) -> Iterator[Connection]:
    if said == "to the driver":
        arguments = {"isolation_level": None} if database.name == "sqlite" else {"autocommit": True}
        engine = create_engine(database.url, connect_args=arguments)
    else:
        engine = create_engine(database.url, isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        yield connection
    engine.dispose()


def test_what_many_put_at_once_in_any_order_is_added_once_and_is_no_error(box: Outbox, engine: Engine) -> None:
    order = Random(5)
    rounds, each, threads = 8, 30, 4
    with ThreadPoolExecutor(threads) as pool:
        for _ in range(rounds):
            messages = intervals(each)
            orders = [order.sample(messages, each) for _ in range(threads)]
            results = list(pool.map(lambda some: box.put(*some), orders))
            assert sum(result.duplicates for result in results) == each * (threads - 1)
    assert stored(engine) == rounds * each


def test_a_bound_is_looked_up_where_the_outbox_is_whatever_map_the_caller_has(
    database: Database, engine: Engine
) -> None:
    with Outbox(database.url, settings=Settings(usage_max_entries=1)) as box:
        box.migrate()
        with engine.begin() as connection:
            mapped = connection.execution_options(schema_translate_map={None: "nowhere"})
            box.enqueue(mapped, interval())
            assert len(assert_enqueued(mapped)) == 1
            with pytest.raises(OutboxFull):
                box.enqueue(mapped, interval())
    assert stored(engine) == 1


@pytest.mark.parametrize(
    ("call", "field"),
    [
        (lambda box: box.find("nope"), "id"),
        (lambda box: box.find(None), "id"),
        (lambda box: box.requeue(ids=["nope"]), "ids"),
        (lambda box: box.dead(lane="profiles"), "lane"),
        (lambda box: box.audit("profiles"), "lane"),
        (lambda box: box.discard(since="yesterday"), "since"),
        (lambda box: box.dead_counts(until=datetime(2025, 1, 6)), "until"),
    ],
)
def test_an_argument_that_selects_nothing_is_named(box: Outbox, call: Callable[[Outbox], object], field: str) -> None:
    with pytest.raises(InvalidMessage) as caught:
        call(box)
    assert caught.value.field == field


def test_one_id_and_iso_times_select_dead_letters(box: Outbox, beacon: Simulator) -> None:
    beacon.faults.patch({"status": 422})
    [id] = box.put(interval())
    drain(box, beacon)
    [letter] = box.dead(ids=str(id), since="2025-01-06T10:00:00Z")
    assert letter.id == id
    assert box.dead(ids=id, until="2025-01-06T10:00:00Z") == []
