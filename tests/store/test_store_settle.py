"""A receipt moves a batch once, under the token of its lease; otherwise it changes nothing."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from uuid import UUID

from outbox import Receipt
from outbox.core.batch import Batch
from outbox.core.lifecycle import BatchState, Status
from outbox.core.step import Settlement
from tests.store.driving import (
    AMBIGUOUS,
    DELIVERED,
    INTERRUPTED,
    MISCONFIGURED,
    REFUSED,
    TOO_LARGE,
    UNAVAILABLE,
    Worker,
)


def run_until_idle(worker: Worker, answer: Callable[[Batch], Receipt]) -> None:
    """Claim and settle what is due now, and what becomes due by halving."""
    while batch := worker.claim():
        worker.settle(batch, answer(batch))


def test_a_delivered_batch_is_sent(worker: Worker) -> None:
    ids = worker.put(3)
    done = worker.settle(worker.must_claim(), replace(DELIVERED, inserted_count=3))
    assert (done.sent, done.batches, done.lost) == (3, 1, [])
    view = worker.find(ids[0])
    assert (view.status, view.num_failed_send_attempts, view.last_error) == (Status.SENT, 0, None)
    assert view.settled_at is not None
    assert view.receipt is not None
    assert (view.receipt["status"], view.receipt["inserted_count"]) == (200, 3)
    assert (worker.status.sent, worker.status.unfinished) == (3, 0)


def test_an_unavailable_beacon_leaves_the_batch_waiting_and_counts(worker: Worker) -> None:
    ids = worker.put(2)
    batch = worker.must_claim()
    assert worker.settle(batch, UNAVAILABLE).failed == 2
    view = worker.find(ids[0])
    assert (view.status, view.num_failed_send_attempts, view.last_error) == (Status.WAITING, 1, "beacon answered 503")
    assert view.next_attempt_at is not None
    assert not view.maybe_delivered
    assert worker.claim() is None, "it is not due yet"


def test_what_waited_leaves_with_the_same_members_under_the_same_key(worker: Worker) -> None:
    worker.put(2)
    batch = worker.must_claim()
    worker.settle(batch, UNAVAILABLE)
    worker.put(2)
    worker.due_now()
    again = worker.must_claim()
    assert (again.id, again.members, list(again.payloads)) == (batch.id, batch.members, list(batch.payloads))
    assert again.attempts == 1
    assert again.lease_token != batch.lease_token


def test_a_lost_answer_is_remembered_until_the_batch_is_sent(worker: Worker) -> None:
    ids = worker.put(1)
    worker.settle(worker.must_claim(), AMBIGUOUS)
    assert worker.find(ids[0]).maybe_delivered
    worker.due_now()
    again = worker.must_claim()
    assert again.ambiguous
    worker.settle(again, UNAVAILABLE)
    assert worker.find(ids[0]).maybe_delivered
    worker.due_now()
    worker.settle(worker.must_claim(), DELIVERED)
    assert not worker.find(ids[0]).maybe_delivered


def test_an_entry_refused_after_a_lost_answer_is_dead_and_may_have_been_delivered(worker: Worker) -> None:
    ids = worker.put(1)
    worker.settle(worker.must_claim(), AMBIGUOUS)
    worker.due_now()
    worker.settle(worker.must_claim(), REFUSED)
    view = worker.find(ids[0])
    assert (view.status, view.maybe_delivered, view.num_failed_send_attempts) == (Status.DEAD, True, 2)
    assert worker.box.dead()[0].maybe_delivered


def test_an_interrupted_batch_waits_uncounted_and_is_due_at_once(worker: Worker) -> None:
    ids = worker.put(1)
    batch = worker.must_claim()
    worker.settle(batch, INTERRUPTED)
    assert worker.find(ids[0]).num_failed_send_attempts == 0
    assert worker.must_claim().id == batch.id


def test_a_batch_whose_turn_did_not_come_keeps_what_is_known_of_it(worker: Worker) -> None:
    ids = worker.put(1)
    worker.settle(worker.must_claim(), UNAVAILABLE)
    worker.due_now()
    worker.must_claim()  # and its worker dies
    worker.due_now()
    batch = worker.must_claim()
    before = worker.find(ids[0])
    worker.settle(batch, replace(INTERRUPTED, reason=""))
    after = worker.find(ids[0])
    told = {"status": Status.WAITING, "batch_state": BatchState.WAITING, "next_attempt_at": after.next_attempt_at}
    assert after == replace(before, **told)
    assert [batch.crash_count for batch in worker.batches()] == [1]
    assert worker.must_claim().attempts == batch.attempts == 2


def test_a_stale_token_changes_nothing(worker: Worker) -> None:
    worker.put(2)
    stale = worker.must_claim()
    worker.due_now()
    fresh = worker.must_claim()
    before, lane = worker.batches(), worker.row
    for receipt in (DELIVERED, UNAVAILABLE, AMBIGUOUS, REFUSED, MISCONFIGURED, INTERRUPTED):
        done = worker.settle(stale, receipt)
        assert (done.lost, done.batches, done.sent, done.failed, done.dead) == ([stale.id], 0, 0, 0, 0)
    assert worker.batches() == before
    assert {**worker.row._mapping, "version": 0} == {**lane._mapping, "version": 0}
    assert worker.settle(fresh, DELIVERED).sent == 2


def test_a_receipt_that_comes_twice_counts_once(worker: Worker) -> None:
    worker.put(2)
    batch = worker.must_claim()
    assert worker.settle(batch, DELIVERED).sent == 2
    assert worker.settle(batch, UNAVAILABLE).lost == [batch.id]
    assert (worker.status.sent, worker.status.failed_attempts) == (2, 0)


def test_one_lost_lease_does_not_lose_the_group(worker: Worker) -> None:
    worker.policy(batch_max_rows=1)
    worker.put(2)
    stale = worker.must_claim()
    good = worker.must_claim()
    worker.settle(stale, DELIVERED)
    group = [Settlement(stale, DELIVERED), Settlement(good, DELIVERED)]
    done = worker.box.store.step(worker.lane, group, want=False, look_due=False).settled
    assert (done.lost, done.sent) == ([stale.id], 1)


def test_a_refused_batch_is_halved_down_to_the_guilty_entry(worker: Worker) -> None:
    ids = worker.put(7)
    guilty = ids[4]
    run_until_idle(worker, lambda batch: REFUSED if guilty in worker.ids(batch) else DELIVERED)
    assert worker.statuses(ids) == [Status.DEAD if id == guilty else Status.SENT for id in ids]
    dead = worker.find(guilty)
    assert (dead.num_failed_send_attempts, dead.last_error) == (1, "beacon answered 422")
    assert worker.status.state == "open"
    assert (worker.status.sent, worker.status.dead) == (6, 1)


def test_children_inherit_the_attempts_and_get_keys_of_their_own(worker: Worker) -> None:
    worker.put(4)
    parent = worker.must_claim()
    worker.settle(parent, AMBIGUOUS)
    worker.due_now()
    worker.settle(worker.must_claim(), REFUSED)
    children = worker.batches("waiting")
    assert [(child.entries, child.attempts, bool(child.ambiguous)) for child in children] == [(2, 1, True)] * 2
    assert {child.root_id for child in children} == {parent.id}
    assert len({parent.id, *(child.id for child in children)}) == 3


def test_a_batch_too_large_is_halved_uncounted(worker: Worker) -> None:
    ids = worker.put(2)
    worker.settle(worker.must_claim(), TOO_LARGE)
    assert [view.num_failed_send_attempts for view in map(worker.find, ids)] == [0, 0]
    worker.settle(worker.must_claim(), TOO_LARGE)
    assert sorted(worker.statuses(ids)) == [Status.DEAD, Status.WAITING]


def test_halving_an_uneven_set_of_numbers_keeps_every_member(worker: Worker) -> None:
    first = worker.put(2)
    worker.burn(20)
    second = worker.put(3)
    batch = worker.must_claim()
    assert batch.rows == 5
    worker.settle(batch, REFUSED)
    assert sum(child.payload_bytes for child in worker.batches("waiting")) == batch.payload_bytes
    assert sorted(worker.deliver_all()) == sorted([*first, *second])


def test_the_halves_of_scattered_numbers_count_none_of_the_rows_between(worker: Worker) -> None:
    worker.burn(10)
    worker.put(1)
    worker.settle(worker.must_claim(), DELIVERED)
    for number in (2, 4, 6, 8):
        worker.plant(number)
    scattered = worker.must_claim()
    assert scattered.members == ((2, 2), (4, 4), (6, 6), (8, 8))
    for number in (3, 7):
        worker.plant(number)
    worker.settle(scattered, REFUSED)
    halves = worker.batches("waiting")
    assert [half.members for half in halves] == ["2,4", "6,8"]
    assert sum(half.payload_bytes for half in halves) == scattered.payload_bytes


def test_telemetry_is_dead_at_its_limit_of_attempts(tracer: Worker) -> None:
    tracer.policy(attempts_limits={tracer.lane: 2})
    ids = tracer.put(2)
    tracer.settle(tracer.must_claim(), UNAVAILABLE)
    assert tracer.statuses(ids) == [Status.WAITING] * 2
    tracer.due_now()
    assert tracer.settle(tracer.must_claim(), UNAVAILABLE).dead == 2
    assert tracer.statuses(ids) == [Status.DEAD] * 2
    assert tracer.find(ids[0]).num_failed_send_attempts == 2


def test_usage_has_no_limit_of_attempts(worker: Worker) -> None:
    ids = worker.put(1)
    for attempt in range(1, 31):
        worker.clock.advance(seconds=600)
        worker.settle(worker.must_claim(), UNAVAILABLE)
        assert worker.find(ids[0]).num_failed_send_attempts == attempt
    assert worker.statuses(ids) == [Status.WAITING]


def test_failed_attempts_add_up_in_the_status(worker: Worker) -> None:
    worker.put(2)
    worker.settle(worker.must_claim(), UNAVAILABLE)
    worker.due_now()
    worker.settle(worker.must_claim(), AMBIGUOUS)
    assert worker.status.failed_attempts == 2


def test_what_beacon_did_not_take_of_delivered_batches_adds_up_and_is_never_resent(tracer: Worker) -> None:
    assert (tracer.status.rejected, tracer.status.last_warning, tracer.status.last_warning_at) == (0, None, None)
    partly = replace(DELIVERED, rejected=2, warning="too old")
    ids = tracer.put(2)
    assert tracer.settle(tracer.must_claim(), partly).sent == 2
    assert tracer.statuses(ids) == [Status.SENT] * 2
    receipt = tracer.find(ids[0]).receipt
    assert receipt is not None
    assert (receipt["rejected"], receipt["warning"]) == (2, "too old")

    tracer.put(1)
    tracer.clock.advance(seconds=5)
    tracer.settle(tracer.must_claim(), replace(DELIVERED, rejected=3))
    tracer.put(1)
    tracer.settle(tracer.must_claim(), DELIVERED)
    status = tracer.status
    assert (status.rejected, status.shortfall, status.last_warning) == (5, 0, "beacon took it")
    assert status.last_warning_at == tracer.find(ids[0]).settled_at + timedelta(seconds=5)
    assert tracer.claim() is None


def test_usage_rows_that_beacon_did_not_count_add_up(worker: Worker) -> None:
    for shortfall in (1, 0, 2):
        worker.put(3)
        worker.settle(worker.must_claim(), replace(DELIVERED, inserted_count=3 - shortfall, shortfall=shortfall))
    assert (worker.status.shortfall, worker.status.rejected, worker.status.sent) == (3, 0, 9)


def test_a_lost_lease_adds_nothing_to_what_beacon_did_not_take(tracer: Worker) -> None:
    tracer.put(1)
    batch = tracer.must_claim()
    tracer.settle(batch, replace(DELIVERED, rejected=1))
    assert tracer.settle(batch, replace(DELIVERED, rejected=1)).lost == [batch.id]
    assert tracer.status.rejected == 1


def test_ids_of_entries_never_change(worker: Worker) -> None:
    ids: list[UUID] = worker.put(4)
    worker.settle(worker.must_claim(), REFUSED)
    assert sorted(worker.deliver_all()) == sorted(ids)
