"""Batches that are read before the lane is locked are claimed as if they had been read under its lock."""

from __future__ import annotations

import os
from collections.abc import Sequence
from uuid import UUID

import pytest
from sqlalchemy import delete, update

from outbox import DatabaseUnavailable
from outbox.core.batch import Batch
from outbox.core.lane import Lane
from outbox.store import claim as store_claim
from outbox.store import read_ahead
from outbox.store.compiled import CompiledStatement
from outbox.store.database import Database
from outbox.store.schema import LOGS
from tests.store.driving import Worker, payload_ids, usage

pytestmark = pytest.mark.parametrize("database", ["sqlite", "postgresql"], indirect=True)
ROWS = 10


@pytest.fixture
def worker(worker: Worker) -> Worker:
    worker.policy(batch_max_rows=ROWS)
    return worker


@pytest.fixture
def another(another: Worker) -> Worker:
    another.policy(batch_max_rows=ROWS)
    return another


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> dict[str, int]:
    """How many batches were read, and where."""
    counts = {"without the lock": 0, "under the lock": 0}
    look, rows = Database.look, CompiledStatement.rows
    batches = {id(each) for each in store_claim.RUN.values()}

    def looking(database: Database, statement: CompiledStatement, values: dict[str, int]) -> Sequence[object]:
        counts["without the lock"] += id(statement) in batches
        return look(database, statement, values)

    def reading(statement: CompiledStatement, connection: object, values: dict[str, int]) -> Sequence[object]:
        counts["under the lock"] += id(statement) in batches
        return rows(statement, connection, values)  # type: ignore[arg-type]

    monkeypatch.setattr(Database, "look", looking)
    monkeypatch.setattr(CompiledStatement, "rows", reading)
    monkeypatch.setattr(read_ahead, "FRESH_SECONDS", 3600)  # however slow the machine is
    return counts


def claimed(worker: Worker, want: int = 1) -> Sequence[Batch]:
    return worker.step(want=want).batches


def test_a_backlog_is_read_ahead_from_the_third_step_on_and_claimed_in_order(
    worker: Worker, reads: dict[str, int]
) -> None:
    put = worker.put(10 * ROWS)
    batches = [batch for _ in range(5) for batch in claimed(worker, 2)]
    assert payload_ids(batches) == put
    assert [batch.rows for batch in batches] == [ROWS] * 10
    assert reads == {"without the lock": 6, "under the lock": 4}


def test_what_another_worker_has_claimed_meanwhile_is_not_claimed_again(worker: Worker, another: Worker) -> None:
    put = worker.put(12 * ROWS)
    ours = [*claimed(worker), *claimed(worker)]  # from now on it reads ahead
    theirs = [*claimed(another), *claimed(another, 2)]
    ours += [batch for _ in range(4) for batch in claimed(worker, 2)]
    assert len(theirs) == 3
    assert sorted(payload_ids([*ours, *theirs])) == sorted(put)


def test_beside_another_worker_nothing_is_read_that_the_other_will_claim(
    worker: Worker, another: Worker, reads: dict[str, int]
) -> None:
    worker.put(12 * ROWS)
    for _ in range(6):
        assert len(claimed(worker)) == len(claimed(another)) == 1
    assert reads == {"without the lock": 0, "under the lock": 12}


def test_a_batch_that_is_not_full_yet_is_read_when_it_is_claimed(worker: Worker, reads: dict[str, int]) -> None:
    put = worker.put(3 * ROWS + 1)
    batches = [*claimed(worker), *claimed(worker)]
    put += worker.put(3)
    batches += [*claimed(worker), *claimed(worker)]
    assert [batch.rows for batch in batches] == [ROWS, ROWS, ROWS, 4]
    assert payload_ids(batches) == put
    assert reads == {"without the lock": 2, "under the lock": 2}


def test_a_read_that_fails_is_made_again_by_the_claim(worker: Worker, monkeypatch: pytest.MonkeyPatch) -> None:
    put = worker.put(6 * ROWS)
    failed = 0

    def broken(*_: object) -> Sequence[object]:
        nonlocal failed
        failed += 1
        raise DatabaseUnavailable("the connection broke")

    monkeypatch.setattr(Database, "look", broken)
    batches = [batch for _ in range(6) for batch in claimed(worker)]
    assert payload_ids(batches) == put
    assert failed > 0


def test_a_number_that_is_missing_among_what_is_read_ahead_is_left_out(worker: Worker) -> None:
    put = worker.put(6 * ROWS)
    batches = [*claimed(worker)]
    log = LOGS[Lane.USAGE]
    with worker.box.engine.begin() as connection:
        connection.execute(delete(log).where(log.c.id == put[35]))
    batches += [batch for _ in range(5) for batch in claimed(worker)]
    assert payload_ids(batches) == [id for id in put if id != put[35]]


def test_a_forked_child_does_not_wait_for_the_thread_of_its_parent(worker: Worker) -> None:
    put = worker.put(6 * ROWS)
    batches = [*claimed(worker), *claimed(worker)]
    child = os.fork()
    if child == 0:
        leased = 0
        try:
            leased = len(claimed(worker, 2))
        finally:
            os._exit(0 if leased == 2 else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    batches += claimed(worker, 2)
    assert payload_ids(batches) == [*put[: 2 * ROWS], *put[4 * ROWS :]]


def test_rows_that_were_replaced_by_hand_are_not_sent_as_they_were(
    worker: Worker, monkeypatch: pytest.MonkeyPatch
) -> None:
    worker.put(6 * ROWS)
    assert [*claimed(worker), *claimed(worker)]
    reading_is_over(worker)
    monkeypatch.setattr(read_ahead, "FRESH_SECONDS", 0.0)
    put = replaced(worker, 3)
    assert payload_ids(claimed(worker))[3] == put


def test_what_was_read_before_the_lane_was_mended_is_read_again(worker: Worker) -> None:
    worker.put(6 * ROWS)
    assert [*claimed(worker), *claimed(worker)]
    reading_is_over(worker)
    put = replaced(worker, 3)
    worker.box.audit(worker.lane, mend=True)
    assert payload_ids(claimed(worker))[3] == put


def replaced(worker: Worker, place: int) -> UUID:
    """The id of another entry, that somebody has put where one of the third batch was."""
    message, log = usage(), LOGS[Lane.USAGE]
    with worker.box.engine.begin() as connection:
        at = log.c.seq == 2 * ROWS + 1 + place
        values = {"id": message.id, "payload": message.payload, "size": len(message.payload)}
        assert connection.execute(update(log).where(at).values(values)).rowcount == 1
    return message.id


def test_what_is_committed_behind_a_batch_that_was_read_ahead_is_claimed_with_it(worker: Worker) -> None:
    put = worker.put(4 * ROWS)
    batches = [*claimed(worker), *claimed(worker)]  # the last two are read, and are all there is
    reading_is_over(worker)
    put += worker.put(1)
    batches += claimed(worker, 3)
    assert [batch.rows for batch in batches] == [ROWS] * 4 + [1]
    assert payload_ids(batches) == put


def reading_is_over(worker: Worker) -> None:
    worker.box.store._ahead.ready(worker.lane, worker.box.store.policy, 4)


def test_a_store_that_was_closed_meanwhile_settles_and_claims_without_reading_ahead(worker: Worker) -> None:
    put = worker.put(6 * ROWS)
    batches = [*claimed(worker), *claimed(worker)]
    worker.box.store.close()
    batches += [batch for _ in range(4) for batch in claimed(worker)]
    assert payload_ids(batches) == put
