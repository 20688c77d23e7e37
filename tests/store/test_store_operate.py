"""What an operator does to entries: requeue, discard, shed, switch a lane off."""

from __future__ import annotations

from uuid import UUID

import pytest

from outbox.core.lifecycle import Status
from tests.store.driving import AMBIGUOUS, DELIVERED, REFUSED, UNAVAILABLE, Worker


def put_dead(worker: Worker, count: int) -> list[UUID]:
    """Entries that died one by one."""
    limit = worker.box.store.policy.batch_max_rows
    worker.policy(batch_max_rows=1)
    ids = worker.put(count)
    for _ in ids:
        assert worker.settle(worker.must_claim(), REFUSED).dead == 1
    worker.policy(batch_max_rows=limit)
    return ids


def totals(worker: Worker) -> tuple[int, int, int, int]:
    status = worker.status
    return status.sent, status.dead, status.shed, status.waiting


@pytest.mark.parametrize("folded", [False, True], ids=["before the fold", "after the fold"])
def test_requeued_entries_are_merged_and_start_over(worker: Worker, folded: bool) -> None:
    ids = put_dead(worker, 3)
    if folded:
        worker.box.store.fold_totals(worker.lane)
    assert totals(worker) == (0, 3, 0, 0)
    assert worker.box.requeue() == 3
    assert totals(worker) == (0, 0, 0, 3)
    assert worker.box.requeue() == 0, "a second requeue finds nothing dead"
    batch = worker.must_claim()
    assert (batch.rows, batch.attempts, worker.ids(batch)) == (3, 0, ids)
    worker.settle(batch, DELIVERED)
    assert totals(worker) == (3, 0, 0, 0)
    worker.box.store.fold_totals(worker.lane)
    assert totals(worker) == (3, 0, 0, 0)


@pytest.mark.parametrize("folded", [False, True], ids=["before the fold", "after the fold"])
def test_discarded_entries_are_dead_no_more(worker: Worker, folded: bool) -> None:
    ids = put_dead(worker, 3)
    if folded:
        worker.box.store.fold_totals(worker.lane)
    assert worker.box.discard(ids[:1]) == 1
    assert worker.box.discard(ids[:1]) == 0
    assert totals(worker) == (0, 2, 1, 0)
    worker.box.store.fold_totals(worker.lane)
    assert totals(worker) == (0, 2, 1, 0)
    assert worker.statuses(ids) == [Status.SHED, Status.DEAD, Status.DEAD]


def test_a_requeued_entry_may_die_again_and_is_counted_once(worker: Worker) -> None:
    put_dead(worker, 1)
    worker.box.store.fold_totals(worker.lane)
    worker.box.requeue()
    worker.settle(worker.must_claim(), REFUSED)
    worker.box.store.fold_totals(worker.lane)
    assert totals(worker) == (0, 1, 0, 0)


def test_requeue_keeps_in_mind_that_an_entry_may_have_arrived(worker: Worker) -> None:
    worker.put(1)
    worker.settle(worker.must_claim(), AMBIGUOUS)
    worker.due_now()
    worker.settle(worker.must_claim(), REFUSED)
    worker.box.requeue()
    assert worker.must_claim().ambiguous


def test_requeue_takes_only_the_entries_that_were_named(worker: Worker) -> None:
    ids = put_dead(worker, 3)
    assert worker.box.requeue([ids[1]]) == 1
    assert worker.statuses(ids) == [Status.DEAD, Status.WAITING, Status.DEAD]
    assert [letter.id for letter in worker.box.dead()] == [ids[0], ids[2]]


def test_requeued_batches_keep_to_the_row_limit(worker: Worker) -> None:
    put_dead(worker, 3)
    worker.policy(batch_max_rows=2)
    assert worker.box.requeue() == 3
    assert sorted(row.entries for row in worker.batches("waiting")) == [1, 2]


def test_dead_letters_are_counted_with_their_traces(worker: Worker) -> None:
    put_dead(worker, 3)
    counts = worker.box.dead_counts()[worker.lane]
    assert (counts.entries, counts.trace_count) == (3, 3)


def test_usage_is_never_shed(worker: Worker) -> None:
    ids = worker.put(1)
    with pytest.raises(ValueError, match="never shed"):
        worker.box.store.shed(worker.lane, 1, "too many")
    assert worker.statuses(ids) == [Status.PENDING]


def test_telemetry_sheds_its_oldest_and_counts_them(tracer: Worker) -> None:
    ids = tracer.put(4)
    assert tracer.box.store.shed(tracer.lane, 2, "too many entries") == 2
    assert tracer.statuses(ids) == [Status.SHED, Status.SHED, Status.PENDING, Status.PENDING]
    assert tracer.find(ids[0]).last_error == "too many entries"
    assert (tracer.status.shed, tracer.status.pending) == (2, 2)
    assert tracer.deliver_all() == ids[2:]


def test_shedding_leaves_a_batch_on_the_wire_alone(tracer: Worker) -> None:
    ids = tracer.put(2)
    batch = tracer.must_claim()
    assert tracer.box.store.shed(tracer.lane, 10, "too many entries") == 0
    tracer.settle(batch, DELIVERED)
    assert tracer.statuses(ids) == [Status.SENT] * 2


def test_a_lane_switched_off_discards_what_waits_and_counts_it(tracer: Worker) -> None:
    tracer.policy(batch_max_rows=1)
    ids = tracer.put(4)
    tracer.settle(tracer.must_claim(), UNAVAILABLE)
    flying = tracer.must_claim()
    assert tracer.box.store.switch_off(tracer.lane, "OUTBOX_TELEMETRY_TRACES=false") == 3
    assert tracer.statuses(ids) == [Status.SHED, Status.IN_FLIGHT, Status.SHED, Status.SHED]
    assert (tracer.status.state, tracer.status.shed) == ("off", 3)
    assert tracer.claim() is None
    tracer.settle(flying, UNAVAILABLE)
    assert tracer.box.store.switch_off(tracer.lane, "OUTBOX_TELEMETRY_TRACES=false") == 1
    assert (tracer.status.shed, tracer.status.unfinished) == (4, 0)


def test_a_lane_switched_on_again_sends_what_comes_next(tracer: Worker) -> None:
    tracer.put(1)
    tracer.box.store.switch_off(tracer.lane, "off")
    tracer.box.store.switch_on(tracer.lane)
    ids = tracer.put(1)
    assert tracer.deliver_all() == ids
