"""What a reader is told: ``find``, the status, and the view for people with a SQL prompt."""

from __future__ import annotations

from typing import Any
from uuid import UUID

import pytest
from sqlalchemy import event, text, update

from outbox import Receipt, Verdict
from outbox.core.lifecycle import Status
from outbox.errors import OutboxFull
from outbox.store.bounds import require_room
from outbox.store.schema import BATCH
from tests.store.driving import (
    AMBIGUOUS,
    DELIVERED,
    INTERRUPTED,
    MISCONFIGURED,
    REFUSED,
    TOO_LARGE,
    UNAVAILABLE,
    Worker,
    usage,
)

UNTRIED = Receipt(Verdict.INTERRUPTED, counted=False, reason="")
VIEW = text("SELECT id, status, num_failed_send_attempts, batch_id, last_error FROM outbox_entry_status")


def view(worker: Worker) -> dict[UUID, tuple[object, ...]]:
    rows = worker.rows(VIEW)
    return {_uuid(row.id): (row.status, row.num_failed_send_attempts, _uuid(row.batch_id)) for row in rows}


def found(worker: Worker, ids: list[UUID]) -> dict[UUID, tuple[object, ...]]:
    views = [worker.find(id) for id in ids]
    return {each.id: (str(each.status), each.num_failed_send_attempts, each.batch_id) for each in views}


def _uuid(value: object) -> UUID | None:
    return UUID(bytes=value) if isinstance(value, bytes) else value  # type: ignore[return-value]


def one_in_every_state(worker: Worker) -> list[UUID]:
    """Entries in flight, waiting, sent, dead, held, exported, shed, pending: one each, in this order."""
    worker.policy(batch_max_rows=1)
    ids = worker.put(8)
    worker.must_claim()
    for receipt in (UNAVAILABLE, DELIVERED, REFUSED):
        worker.settle(worker.must_claim(), receipt)
    for state in ("held", "exported"):
        batch = worker.must_claim()
        worker.run(update(BATCH).where(BATCH.c.id == batch.id).values(state=state, lease_token=None, due_at=None))
    shed = {"state": "settled", "verdict": "shed", "lease_token": None, "settled_at": 1, "settled_version": 1}
    worker.run(update(BATCH).where(BATCH.c.id == worker.must_claim().id).values(shed))
    return ids


def test_an_entry_is_found_in_every_state(worker: Worker) -> None:
    ids = one_in_every_state(worker)
    assert worker.statuses(ids) == [
        Status.IN_FLIGHT,
        Status.WAITING,
        Status.SENT,
        Status.DEAD,
        Status.HELD,
        Status.EXPORTED,
        Status.SHED,
        Status.PENDING,
    ]
    assert worker.find(ids[-1]).batch_id is None


def test_the_view_tells_what_find_tells_in_every_state(worker: Worker) -> None:
    ids = one_in_every_state(worker)
    assert view(worker) == found(worker, ids)


def test_the_view_tells_what_find_tells_of_sparse_batches(worker: Worker) -> None:
    """Interleaved: what a batch spans is not what it holds."""
    worker.policy(batch_max_rows=1)
    ids = worker.put(6)
    for receipt in (REFUSED, DELIVERED) * 3:
        worker.settle(worker.must_claim(), receipt)
    worker.policy(batch_max_rows=100)
    assert worker.box.requeue() == 3
    sparse = worker.must_claim()
    assert len(sparse.members) == 3, "the batch is not sparse"
    assert view(worker) == found(worker, ids)
    assert worker.statuses(ids) == [Status.IN_FLIGHT, Status.SENT] * 3


def test_the_view_reads_runs_of_several_digits_and_lengths(worker: Worker) -> None:
    worker.burn(8)
    ids = worker.put(4)
    worker.burn(99)
    ids += worker.put(2)
    worker.burn(1000)
    ids += worker.put(1)
    batch = worker.must_claim()
    assert len(batch.members) == 3
    worker.burn(1005)
    ids += worker.put(1)
    assert view(worker) == found(worker, ids)


@pytest.mark.parametrize(
    "receipt",
    [INTERRUPTED, UNTRIED, MISCONFIGURED, UNAVAILABLE, TOO_LARGE],
    ids=lambda receipt: receipt.reason or "untried",
)
def test_requeued_entries_are_pending_until_they_are_leased(worker: Worker, receipt: Receipt) -> None:
    ids = worker.put(2)
    worker.policy(attempts_limits={worker.lane: 1})
    worker.settle(worker.must_claim(), AMBIGUOUS)
    worker.policy(attempts_limits={})
    assert worker.box.requeue() == 2

    def told() -> tuple[set[Status], int, int, int]:
        assert view(worker) == found(worker, ids)
        status = worker.status
        return set(worker.statuses(ids)), status.pending, status.in_flight, status.waiting

    assert told() == ({Status.PENDING}, 2, 0, 0)
    assert worker.find(ids[0]).num_failed_send_attempts == 0
    batch = worker.must_claim()
    assert told() == ({Status.IN_FLIGHT}, 0, 2, 0)
    worker.settle(batch, receipt)
    assert told() == ({Status.WAITING}, 0, 0, 2)


def test_an_unknown_id_is_not_found(worker: Worker) -> None:
    worker.put(1)
    assert worker.box.find(usage().id) is None


def test_a_halved_entry_is_found_in_the_half_that_holds_it(worker: Worker) -> None:
    ids = worker.put(2)
    worker.settle(worker.must_claim(), REFUSED)
    assert worker.statuses(ids) == [Status.WAITING] * 2
    assert worker.find(ids[0]).batch_id != worker.find(ids[1]).batch_id
    assert view(worker) == found(worker, ids)


def test_the_status_counts_every_entry_once(worker: Worker) -> None:
    one_in_every_state(worker)
    status = worker.status
    counts = (status.pending, status.in_flight, status.waiting, status.sent, status.dead, status.shed)
    assert counts == (1, 1, 1, 1, 1, 1)
    assert status.senders == 1
    assert status.oldest_pending_seconds is not None


def test_the_age_of_the_oldest_counts_until_it_is_delivered_or_dead(worker: Worker) -> None:
    def age() -> float | None:
        return worker.status.oldest_pending_seconds

    assert age() is None
    worker.policy(batch_max_rows=1)
    for _ in range(2):
        worker.clock.advance(seconds=60)
        (id,) = worker.put(1)
        worker.run(update(worker.log).where(worker.log.c.id == id).values(created_at=worker.clock.now()))
    worker.clock.advance(seconds=60)
    assert age() == 120
    first = worker.must_claim()
    assert age() == 120
    worker.settle(first, UNAVAILABLE)
    worker.clock.advance(seconds=3600)
    assert age() == 3720, "it waits after a failure"
    worker.settle(worker.must_claim(), REFUSED)
    assert age() == 3660, "a dead entry is not awaited, the other is"
    worker.settle(worker.must_claim(), DELIVERED)
    assert age() is None
    worker.box.requeue()
    assert age() == 3720


@pytest.mark.parametrize("database", ["postgresql"], indirect=True)
def test_nobody_who_looks_for_new_entries_reads_those_that_are_sent(worker: Worker) -> None:
    """PostgreSQL takes a third of the log for newer than the cursor, and would begin with the oldest."""
    worker.policy(batch_max_rows=500)
    worker.put(2000)
    while worker.claim():
        pass
    worker.run(text("ANALYZE"))
    asked: list[tuple[str, Any]] = []

    def note(_: object, __: object, statement: str, parameters: Any, *___: object) -> None:
        asked.append((statement, parameters))

    event.listen(worker.box.engine, "before_cursor_execute", note)
    try:
        worker.box.store.outlook(worker.lane)
        worker.box.status()
        assert worker.claim() is None
        with worker.box.engine.connect() as connection, pytest.raises(OutboxFull):
            require_room(connection, worker.lane, 1, bound=2000)  # so near that it counts
    finally:
        event.remove(worker.box.engine, "before_cursor_execute", note)
    assert sum(worker.log.name in statement for statement, _ in asked) >= 4, "each of them looked at the log"
    with worker.box.engine.connect() as connection:
        for statement, parameters in asked:
            plan = "\n".join(connection.exec_driver_sql(f"EXPLAIN {statement}", parameters).scalars())
            assert f"Seq Scan on {worker.log.name}" not in plan, plan
