"""What a service enqueues belongs to its transaction."""

from __future__ import annotations

from pathlib import Path
from uuid import UUID

import pytest
from sqlalchemy import Engine, create_engine, text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import Session

from outbox import Outbox, Settings, TelemetryEnvelope
from outbox.errors import SchemaOutOfDate
from outbox.simulator import Simulator
from outbox.testing import drain
from tests.support.databases import Database
from tests.support.intervals import interval, intervals

METRICS = (Path(__file__).parent / "examples" / "metrics.json").read_text()


def stored(engine: Engine, lane: str = "usage") -> int:
    with engine.connect() as connection:
        return int(connection.execute(text(f"SELECT count(*) FROM outbox_{lane}")).scalar_one())


def received(beacon: Simulator) -> dict[str, int]:
    return beacon.received.ids()


def once(*ids: UUID) -> dict[str, int]:
    return {str(id): 1 for id in ids}


def test_a_rolled_back_session_leaves_nothing(box: Outbox, engine: Engine, beacon: Simulator) -> None:
    with Session(engine) as session:
        box.enqueue(session, interval())
        session.rollback()
    drain(box, beacon)
    assert (stored(engine), received(beacon)) == (0, {})


def test_a_rolled_back_connection_leaves_nothing(box: Outbox, engine: Engine, beacon: Simulator) -> None:
    with engine.connect() as connection:
        box.enqueue(connection, interval())
        connection.rollback()
    drain(box, beacon)
    assert (stored(engine), received(beacon)) == (0, {})


def test_a_committed_session_is_delivered(box: Outbox, engine: Engine, beacon: Simulator) -> None:
    with Session(engine) as session, session.begin():
        ids = box.enqueue(session, *intervals(3))
    drain(box, beacon)
    assert received(beacon) == once(*ids)


def test_a_committed_connection_is_delivered(box: Outbox, engine: Engine, beacon: Simulator) -> None:
    with engine.begin() as connection:
        ids = box.enqueue(connection, *intervals(3))
    drain(box, beacon)
    assert received(beacon) == once(*ids)


def test_a_savepoint_that_is_rolled_back_leaves_nothing(box: Outbox, engine: Engine, beacon: Simulator) -> None:
    with Session(engine) as session, session.begin():
        kept = box.enqueue(session, interval())
        savepoint = session.begin_nested()
        box.enqueue(session, interval())
        savepoint.rollback()
    drain(box, beacon)
    assert received(beacon) == once(*kept)


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
    assert received(beacon) == once(*result)


def test_a_bulk_of_new_entries_is_delivered_once(box: Outbox, engine: Engine, beacon: Simulator) -> None:
    with Session(engine) as session, session.begin():
        result = box.enqueue_many(session, (message for message in intervals(3000)))
    assert (len(result), result.duplicates) == (3000, 0)
    drain(box, beacon, timeout=30)
    assert received(beacon) == once(*result)


def test_a_bulk_that_is_rolled_back_leaves_nothing(box: Outbox, engine: Engine) -> None:
    with Session(engine) as session:
        box.enqueue_many(session, intervals(1500))
        session.rollback()
    assert stored(engine) == 0


def test_put_is_durable_when_it_returns(box: Outbox, engine: Engine, beacon: Simulator) -> None:
    ids = box.put(*intervals(2))
    assert stored(engine) == 2
    drain(box, beacon)
    assert received(beacon) == once(*ids)


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
    # PostgreSQL's sequence does not look at the table; the others go on from the largest number, so take the last.
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


def test_enqueue_uses_no_connection_but_the_callers(box: Outbox, database: Database) -> None:
    host = create_engine(database.url)
    with host.connect() as connection:
        box.enqueue(connection, interval())
        assert host.pool.checkedout() == 1  # type: ignore[attr-defined]
        connection.rollback()
    host.dispose()
