"""Batches that are read before the lane is locked are claimed as if they had been read under its lock."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import replace
from uuid import UUID

import pytest
from sqlalchemy import delete

from outbox import DatabaseUnavailable, Outbox
from outbox.core.batch import Batch
from outbox.core.lane import Lane
from outbox.store import claim as store_claim
from outbox.store.database import Database
from outbox.store.prepared import Prepared
from outbox.store.schema import LOGS
from tests.store.driving import Worker
from tests.support.databases import Database as Place

pytestmark = pytest.mark.parametrize("database", ["sqlite", "postgresql"], indirect=True)
ROWS = 10


@pytest.fixture
def worker(box: Outbox) -> Worker:
    return _small(box)


@pytest.fixture
def another(box: Outbox, database: Place) -> Iterator[Worker]:
    """A worker of another process."""
    with Outbox(database.url) as other:
        yield _small(other)


def _small(box: Outbox) -> Worker:
    box.store.policy = replace(box.store.policy, batch_max_rows=ROWS)
    return Worker(box)


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> dict[str, int]:
    """How many batches were read, and where."""
    counts = {"ahead": 0, "under the lock": 0}
    look, rows = Database.look, Prepared.rows
    batches = {id(each) for each in store_claim.RUN.values()}

    def looking(database: Database, statement: Prepared, values: dict[str, int]) -> Sequence[object]:
        counts["ahead"] += id(statement) in batches
        return look(database, statement, values)

    def reading(statement: Prepared, connection: object, values: dict[str, int]) -> Sequence[object]:
        counts["under the lock"] += id(statement) in batches
        return rows(statement, connection, values)  # type: ignore[arg-type]

    monkeypatch.setattr(Database, "look", looking)
    monkeypatch.setattr(Prepared, "rows", reading)
    return counts


def claimed(worker: Worker, want: int = 1) -> Sequence[Batch]:
    return worker.box.store.step(worker.lane, [], want=want, look_due=False).batches


def ids(worker: Worker, batches: Sequence[Batch]) -> list[UUID]:
    return [id for batch in batches for id in worker.ids(batch)]


def test_a_backlog_is_read_ahead_from_the_third_step_on_and_claimed_in_order(
    worker: Worker, reads: dict[str, int]
) -> None:
    put = worker.put(10 * ROWS)
    batches = [batch for _ in range(5) for batch in claimed(worker, 2)]
    assert ids(worker, batches) == put
    assert [batch.rows for batch in batches] == [ROWS] * 10
    assert reads == {"ahead": 6, "under the lock": 4}


def test_what_another_worker_has_claimed_meanwhile_is_not_claimed_again(worker: Worker, another: Worker) -> None:
    put = worker.put(12 * ROWS)
    ours = [*claimed(worker), *claimed(worker)]  # from now on it reads ahead
    theirs = [*claimed(another), *claimed(another, 2)]
    ours += [batch for _ in range(4) for batch in claimed(worker, 2)]
    assert len(theirs) == 3
    assert sorted(ids(worker, [*ours, *theirs])) == sorted(put)


def test_beside_another_worker_nothing_is_read_that_the_other_will_claim(
    worker: Worker, another: Worker, reads: dict[str, int]
) -> None:
    worker.put(12 * ROWS)
    for _ in range(6):
        assert len(claimed(worker)) == len(claimed(another)) == 1
    assert reads == {"ahead": 0, "under the lock": 12}


def test_a_batch_that_is_not_full_yet_is_read_when_it_is_claimed(worker: Worker, reads: dict[str, int]) -> None:
    put = worker.put(3 * ROWS + 1)
    batches = [*claimed(worker), *claimed(worker)]
    put += worker.put(3)
    batches += [*claimed(worker), *claimed(worker)]
    assert [batch.rows for batch in batches] == [ROWS, ROWS, ROWS, 4]
    assert ids(worker, batches) == put
    assert reads["ahead"] == 1


def test_a_read_that_fails_is_made_again_by_the_claim(worker: Worker, monkeypatch: pytest.MonkeyPatch) -> None:
    put = worker.put(6 * ROWS)
    failed = 0

    def broken(*_: object) -> Sequence[object]:
        nonlocal failed
        failed += 1
        raise DatabaseUnavailable("the connection broke")

    monkeypatch.setattr(Database, "look", broken)
    batches = [batch for _ in range(6) for batch in claimed(worker)]
    assert ids(worker, batches) == put
    assert failed > 0


def test_a_number_that_is_missing_among_what_is_read_ahead_is_left_out(worker: Worker) -> None:
    put = worker.put(6 * ROWS)
    batches = [*claimed(worker)]
    log = LOGS[Lane.USAGE]
    with worker.box.engine.begin() as connection:
        connection.execute(delete(log).where(log.c.id == put[35]))
    batches += [batch for _ in range(5) for batch in claimed(worker)]
    assert ids(worker, batches) == [id for id in put if id != put[35]]


def test_a_forked_child_does_not_wait_for_the_thread_of_its_parent(worker: Worker) -> None:
    put = worker.put(6 * ROWS)
    batches = [*claimed(worker), *claimed(worker)]
    child = os.fork()
    if child == 0:
        os._exit(0 if len(claimed(worker, 2)) == 2 else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    batches += claimed(worker, 2)
    assert ids(worker, batches) == [*put[: 2 * ROWS], *put[4 * ROWS :]]
