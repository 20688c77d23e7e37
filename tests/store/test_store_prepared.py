"""Statements that the driver runs by itself: in and out of transactions as before, and seen by whoever listens."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress

from sqlalchemy import Connection, bindparam, select, update

from outbox import Outbox
from outbox.core.lane import Lane
from outbox.simulator import Simulator
from outbox.store.compiled import CompiledStatement
from outbox.store.schema import LANE, LOGS
from outbox.testing import drain
from tests.support.intervals import interval, intervals
from tests.support.listening import statements


class Regretted(Exception):
    pass


@contextmanager
def undone(box: Outbox) -> Iterator[Connection]:
    """A transaction that is rolled back at the end."""
    with suppress(Regretted), box.store.database.write() as connection:
        yield connection
        raise Regretted


def test_a_connection_that_has_put_one_message_still_rolls_back(box: Outbox) -> None:
    """On PostgreSQL such a put is a statement in autocommit; the pool hands the same connection to the next."""
    box.put(interval())
    with undone(box) as connection:
        box.enqueue(connection, *intervals(3))
    assert box.status().lanes["usage"].pending == 1


def test_an_id_that_is_there_is_not_added_by_a_put_of_one(box: Outbox) -> None:
    message = interval()
    assert [box.put(message).duplicates for _ in range(3)] == [0, 1, 1]
    assert box.status().lanes["usage"].pending == 1


def test_whoever_listens_to_the_engine_hears_every_statement(box: Outbox, beacon: Simulator) -> None:
    with statements(box.engine) as said:
        box.put(interval())
        drain(box, beacon)
        assert not box.store.outlook(Lane.USAGE).ready
    for statement in (
        "INSERT INTO outbox_usage",
        "INSERT INTO outbox_batch",
        "UPDATE outbox_batch",
        "UPDATE outbox_lane",
    ):
        assert any(statement in sql for sql in said), statement
    assert any("hole_at" in sql for sql in said), "the look"


def test_rows_are_the_same_whether_somebody_listens_or_not(box: Outbox) -> None:
    ids = box.put(*intervals(3))
    log = LOGS[Lane.USAGE]
    above = CompiledStatement(
        select(log.c.seq, log.c.size, log.c.payload).where(log.c.seq > bindparam("after")).order_by(log.c.seq)
    )
    with box.store.database.write() as connection:
        alone = above.rows(connection, {"after": 1})
    with statements(box.engine) as said, box.store.database.write() as connection:
        has_listeners = above.rows(connection, {"after": 1})
    assert said
    assert [tuple(row) for row in has_listeners] == [tuple(row) for row in alone]
    assert [str(id) in row.payload for id, row in zip(ids[1:], alone, strict=True)] == [True, True]


def test_as_many_changes_are_counted_as_there_are(box: Outbox) -> None:
    named = CompiledStatement(update(LANE).where(LANE.c.lane == bindparam("key")).values(reason=bindparam("why")))
    rows = [{"key": "usage", "why": "a"}, {"key": "traces", "why": "b"}, {"key": "none", "why": "c"}]
    with undone(box) as connection:
        assert named.changed(connection, rows) == 2
        assert named.changed(connection, rows[2:]) == 0
