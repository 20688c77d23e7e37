"""The write of a step without the lane's lock that fails."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from itertools import count
from typing import Any

import pytest
from sqlalchemy import Engine, select, text, update
from sqlalchemy.exc import OperationalError

from outbox import DatabaseUnavailable, OutcomeUnknown
from outbox.core.batch import Batch
from outbox.core.lane import Lane
from outbox.store.optimistic import OptimisticSteps
from outbox.store.schema import BATCH, LANE
from tests.store.driving import Worker
from tests.support.databases import Database as Place
from tests.support.locks import waits_for_a_lock
from tests.support.strike import Operator
from tests.support.waiting import wait_until

ROWS = 3
"""Of a put, and so of a batch."""


@pytest.fixture
def sent(worker: Worker) -> Batch:
    """What the second of two steps has leased: the next one takes no lock."""
    worker.put(ROWS)
    first = worker.step()
    worker.put(ROWS)
    [batch] = worker.step(first.batches).batches
    return batch


def came_through(worker: Worker, batch: Batch, put: Sequence[object]) -> None:
    done = worker.step([batch])
    assert done.settled.sent == ROWS
    assert [worker.ids(each) for each in done.batches] == [put]


@contextmanager
def before_it_writes(monkeypatch: pytest.MonkeyPatch, strike: Callable[[Any], object]) -> Iterator[list[object]]:
    """Run ``strike`` once between the read and the write of an optimistic step; yields a list with its result."""
    struck: list[object] = []
    write = OptimisticSteps._write

    def writing(steps: OptimisticSteps, pooled: Any, *rows: Any) -> Sequence[bool] | None:
        if not struck:
            struck.append(strike(pooled))
        return write(steps, pooled, *rows)

    with monkeypatch.context() as patch:
        patch.setattr(OptimisticSteps, "_write", writing)
        yield struck
    assert struck


@contextmanager
def write_raises(
    worker: Worker, monkeypatch: pytest.MonkeyPatch, words: str, first: Callable[[Any], object] = lambda _: None
) -> Iterator[None]:
    """The driver's error, after all of it was executed, and ``first``."""
    error = worker.box.engine.dialect.loaded_dbapi.OperationalError(words)
    write = OptimisticSteps._write

    def failing(steps: OptimisticSteps, pooled: Any, *rows: Any) -> Sequence[bool] | None:
        assert write(steps, pooled, *rows) == [True]
        first(pooled)
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(OptimisticSteps, "_write", failing)
        yield


@pytest.mark.parametrize("database", ["postgresql"], indirect=True)
def test_a_write_that_is_cut_off_before_it_arrives_may_hold_for_all_it_knows_and_loses_nothing(
    worker: Worker, sent: Batch, database: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    operator, put = Operator(database.url), worker.put(ROWS)

    def cut(pooled: Any) -> int:
        pid: int = pooled.driver_connection.info.backend_pid
        operator.terminate(pid)
        return pid

    with before_it_writes(monkeypatch, cut), pytest.raises(OutcomeUnknown, match="Run it again, as a worker does"):
        worker.step([sent])
    operator.close()
    came_through(worker, sent, put)


@pytest.mark.parametrize("database", ["sqlite"], indirect=True)
def test_a_write_that_fails_anywhere_writes_nothing(
    worker: Worker, sent: Batch, monkeypatch: pytest.MonkeyPatch, locks: list[Lane]
) -> None:
    """It is interrupted after so many instructions of SQLite, and after more, until it comes through."""
    put, before = worker.put(ROWS), (worker.row, worker.rows(select(BATCH)))
    for strikes in count():
        instructions = int(10 * 1.2**strikes)
        interrupted: list[int] = []

        def interrupt(pooled: Any, after: int = instructions, once: list[int] = interrupted) -> None:
            pooled.driver_connection.set_progress_handler(lambda: once.append(after) or not once[1:], after)

        try:
            with before_it_writes(monkeypatch, interrupt):
                done = worker.step([sent])
        except OutcomeUnknown:
            assert interrupted
            assert (worker.row, worker.rows(select(BATCH))) == before
        else:
            break
    assert strikes > 20, "it was interrupted too seldom"
    assert done.settled.sent == ROWS
    assert [worker.ids(each) for each in done.batches] == [put]
    assert not locks


@pytest.mark.parametrize("database", ["postgresql"], indirect=True)
def test_a_write_whose_answer_is_lost_has_leased_what_is_sent_when_its_lease_ends(
    worker: Worker, sent: Batch, monkeypatch: pytest.MonkeyPatch
) -> None:
    put = worker.put(ROWS)
    lost = write_raises(worker, monkeypatch, "the connection is lost", lambda pooled: pooled.driver_connection.close())
    with lost, pytest.raises(OutcomeUnknown):
        worker.step([sent])
    done = worker.step([sent])
    assert (done.settled.lost, done.batches) == ([sent.id], []), "it was settled, and the new entries are leased"
    assert worker.batch(sent.id).verdict == "delivered"
    worker.due_now()
    assert worker.ids(worker.must_claim()) == put


@pytest.mark.parametrize("database", ["postgresql", "mariadb"], indirect=True)
@pytest.mark.parametrize("ends", ["commit", "rollback"])
def test_a_write_that_waits_for_somebody_else_on_the_lane_holds_only_if_they_changed_nothing(
    worker: Worker, sent: Batch, engine: Engine, locks: list[Lane], ends: str
) -> None:
    put = worker.put(ROWS)
    with engine.connect() as other:
        transaction = other.begin()
        other.execute(update(LANE).where(LANE.c.lane == str(worker.lane)).values(version=LANE.c.version + 1))
        with ThreadPoolExecutor(1) as thread:
            stepping = thread.submit(worker.step, [sent])
            wait_until(lambda: waits_for_a_lock(engine), message="nobody waits")
            assert not locks
            getattr(transaction, ends)()
            done = stepping.result(30)
    assert len(locks) == (ends == "commit")
    assert done.settled.sent == ROWS
    assert [worker.ids(each) for each in done.batches] == [put]


@pytest.mark.parametrize("database", ["mariadb"], indirect=True)
def test_a_write_of_several_statements_that_breaks_between_two_of_them_writes_nothing(
    worker: Worker, sent: Batch, monkeypatch: pytest.MonkeyPatch
) -> None:
    put, before = worker.put(ROWS), (worker.row, worker.rows(select(BATCH)))
    gone = write_raises(worker, monkeypatch, "gone", lambda pooled: pooled.driver_connection.close())
    with gone, pytest.raises(DatabaseUnavailable, match="Nothing was written"):
        worker.step([sent])
    assert (worker.row, worker.rows(select(BATCH))) == before
    came_through(worker, sent, put)


@pytest.mark.parametrize("database", ["mariadb"], indirect=True)
@pytest.mark.parametrize("holds", [True, False])
def test_a_commit_whose_answer_is_lost_may_hold_or_not_and_loses_nothing(
    worker: Worker, sent: Batch, monkeypatch: pytest.MonkeyPatch, holds: bool
) -> None:
    put, dialect = worker.put(ROWS), worker.box.store.database.engine.dialect

    def break_off(pooled: Any) -> None:
        if holds:
            pooled.commit()
        pooled.driver_connection.close()
        raise dialect.loaded_dbapi.OperationalError(2013, "Lost connection")

    with monkeypatch.context() as patch:
        patch.setattr(dialect, "do_commit", break_off)
        with pytest.raises(OutcomeUnknown):
            worker.step([sent])
    if not holds:
        came_through(worker, sent, put)
        return
    assert worker.batch(sent.id).verdict == "delivered"
    worker.due_now()
    assert worker.ids(worker.must_claim()) == put


@pytest.mark.parametrize("database", ["mariadb"], indirect=True)
def test_a_commit_that_loses_to_another_node_takes_the_lock(
    worker: Worker, sent: Batch, monkeypatch: pytest.MonkeyPatch, locks: list[Lane]
) -> None:
    """Galera certifies at the COMMIT, and undoes there."""
    put, dialect = worker.put(ROWS), worker.box.store.database.engine.dialect
    lost: list[Any] = []
    commit = dialect.do_commit

    def lose_once(pooled: Any) -> None:
        if lost:
            commit(pooled)
            return
        lost.append(pooled)
        pooled.rollback()
        raise dialect.loaded_dbapi.OperationalError(1213, "Deadlock found when trying to get lock")

    monkeypatch.setattr(dialect, "do_commit", lose_once)
    came_through(worker, sent, put)
    assert lost
    assert locks


@pytest.mark.parametrize("database", ["sqlite"], indirect=True)
def test_a_text_that_is_damaged_is_told_as_such(worker: Worker, sent: Batch) -> None:
    """The driver's own error for it has no code of SQLite."""
    worker.put(ROWS)
    worker.run(
        text(
            "UPDATE outbox_usage SET payload = CAST(x'ff' AS TEXT) WHERE seq > (SELECT max(seq) - 1 FROM outbox_usage)"
        )
    )
    with pytest.raises((DatabaseUnavailable, OperationalError), match="Could not decode to UTF-8"):
        worker.step([sent])
