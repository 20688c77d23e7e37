"""What an operator does to entries: requeue, discard, shed, switch a lane off."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any
from uuid import UUID

import pytest
from sqlalchemy import Connection, event

from outbox.core.entry import DeadCounts, moment
from outbox.core.lane import Lane
from outbox.core.lifecycle import Status
from outbox.core.policy import Bounds
from outbox.errors import NOTHING_WRITTEN, DatabaseUnavailable
from outbox.store import operate
from outbox.store.ledger import LockedLane
from outbox.store.operate import Window
from tests.store.driving import AMBIGUOUS, DELIVERED, REFUSED, UNAVAILABLE, Worker, shed, usage
from tests.support.listening import statements


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
    return status.sent, status.dead, status.shed, status.pending


@pytest.mark.parametrize("folded", [False, True], ids=["before the fold", "after the fold"])
def test_requeued_entries_are_merged_and_start_over(worker: Worker, folded: bool) -> None:
    ids = put_dead(worker, 3)
    if folded:
        worker.fold_totals()
    assert totals(worker) == (0, 3, 0, 0)
    assert worker.box.requeue() == 3
    assert totals(worker) == (0, 0, 0, 3)
    assert worker.box.requeue() == 0, "a second requeue finds nothing dead"
    batch = worker.must_claim()
    assert (batch.rows, batch.attempts, worker.ids(batch)) == (3, 0, ids)
    worker.settle(batch, DELIVERED)
    assert totals(worker) == (3, 0, 0, 0)
    worker.fold_totals()
    assert totals(worker) == (3, 0, 0, 0)


@pytest.mark.parametrize("folded", [False, True], ids=["before the fold", "after the fold"])
def test_discarded_entries_are_dead_no_more(worker: Worker, folded: bool) -> None:
    ids = put_dead(worker, 3)
    if folded:
        worker.fold_totals()
    assert worker.box.discard(ids[:1]) == 1
    assert worker.box.discard(ids[:1]) == 0
    assert totals(worker) == (0, 2, 1, 0)
    worker.fold_totals()
    assert totals(worker) == (0, 2, 1, 0)
    assert worker.statuses(ids) == [Status.SHED, Status.DEAD, Status.DEAD]


def test_a_requeued_entry_may_die_again_and_is_counted_once(worker: Worker) -> None:
    put_dead(worker, 1)
    worker.fold_totals()
    worker.box.requeue()
    worker.settle(worker.must_claim(), REFUSED)
    worker.fold_totals()
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
    assert worker.statuses(ids) == [Status.DEAD, Status.PENDING, Status.DEAD]
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


def test_dead_letters_are_read_some_at_a_time_in_order(worker: Worker, monkeypatch: pytest.MonkeyPatch) -> None:
    ids = put_dead(worker, 5)
    assert [letter.id for letter in worker.box.dead()] == ids
    monkeypatch.setattr(operate, "CHUNK", 2)
    letters = worker.box.dead()
    assert [letter.id for letter in letters] == ids
    assert [letter.batch_id for letter in letters] == [worker.find(id).batch_id for id in ids]
    assert [letter.trace_count for letter in letters] == [1] * 5
    assert worker.box.dead_counts()[worker.lane] == DeadCounts(5, 5)
    named = [ids[4], ids[0], ids[3], ids[0], usage().id]
    assert [letter.id for letter in worker.box.dead(named)] == [ids[0], ids[3], ids[4]]
    assert worker.box.dead_counts(named)[worker.lane] == DeadCounts(3, 3)
    assert worker.box.requeue(named) == 3
    assert worker.box.discard() == 2
    assert worker.statuses(ids) == [Status.PENDING, Status.SHED, Status.SHED, Status.PENDING, Status.PENDING]


def put_dead_together(worker: Worker, *batches: int) -> list[UUID]:
    """Entries that died in batches of these sizes."""
    ids = worker.put(sum(batches))
    for entries in batches:
        worker.policy(batch_max_rows=entries, attempts_limits={worker.lane: 1})
        assert worker.settle(worker.must_claim(), UNAVAILABLE).dead == entries
    return ids


def test_those_that_died_together_are_listed_and_counted_one_by_one(
    tracer: Worker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(operate, "CHUNK", 2)
    ids = put_dead_together(tracer, 3, 3, 2)
    assert tracer.box.dead_counts()[tracer.lane] == DeadCounts(8, 0)
    for named in (ids[:1], ids[1:2], ids[2:3], ids[:3], [ids[1], ids[2]], [ids[0], ids[2], ids[7]], ids):
        assert [letter.id for letter in tracer.box.dead(named)] == named
        assert tracer.box.dead_counts(named)[tracer.lane] == DeadCounts(len(named), 0)
    assert [letter.id for letter in tracer.box.dead(reversed(ids))] == ids


@pytest.mark.parametrize("folded", [False, True], ids=["before the fold", "after the fold"])
@pytest.mark.parametrize("verb", ["requeue", "discard"])
def test_what_died_with_the_named_entries_stays_dead(
    worker: Worker, monkeypatch: pytest.MonkeyPatch, verb: str, folded: bool
) -> None:
    monkeypatch.setattr(operate, "CHUNK", 2)
    ids = put_dead_together(worker, 4, 1, 3)
    if folded:
        worker.fold_totals()
    named = [ids[6], ids[1], ids[4], ids[2]]
    others = [id for id in ids if id not in named]
    before = {letter.id: letter for letter in worker.box.dead(others)}
    assert getattr(worker.box, verb)(named) == 4
    assert worker.statuses(others) == [Status.DEAD] * 4
    assert Status.DEAD not in worker.statuses(named)
    assert (worker.status.dead, worker.status.unfinished + worker.status.shed) == (4, 4)
    for letter in worker.box.dead():
        was = before[letter.id]
        assert replace(letter, batch_id=was.batch_id) == was, "attempts, error, time and mark are those it died with"
        receipt = worker.find(letter.id).receipt
        assert receipt is not None
        assert receipt["status"] == UNAVAILABLE.status
    assert getattr(worker.box, verb)(named) == 0
    worker.fold_totals()
    assert (worker.status.dead, worker.status.unfinished + worker.status.shed) == (4, 4)
    assert worker.audit().problem is None
    assert worker.box.requeue() == 4
    assert worker.box.dead() == []


def test_a_split_batch_keeps_its_bytes_and_its_mark(worker: Worker) -> None:
    worker.policy(attempts_limits={worker.lane: 1})
    ids = worker.put(3)
    worker.settle(worker.must_claim(), AMBIGUOUS)
    (parent,) = worker.batches("settled")
    assert worker.box.discard([ids[1]]) == 1
    rest, discarded = worker.batches("settled")
    assert [(each.members, each.verdict) for each in (rest, discarded)] == [("1,3", "refused"), ("2", "discarded")]
    assert rest.payload_bytes + discarded.payload_bytes == parent.payload_bytes
    assert discarded.payload_bytes == len(worker.find(ids[1]).payload)
    for child in (rest, discarded):
        assert (child.ambiguous, child.attempts, child.root_id) == (True, 1, parent.root_id)
    assert [each.id for each in worker.batches("superseded")] == [parent.id]


def test_only_those_that_died_inside_the_window_are_taken_by_name(worker: Worker) -> None:
    early = put_dead_together(worker, 2)
    worker.clock.advance(seconds=10)
    middle = moment(worker.clock.now())
    late = put_dead_together(worker, 2)
    named = [early[0], late[0]]
    assert [letter.id for letter in worker.box.dead(named, since=middle)] == [late[0]]
    assert worker.box.discard(named, until=middle) == 1
    assert worker.statuses([*early, *late]) == [Status.SHED, Status.DEAD, Status.DEAD, Status.DEAD]


@pytest.mark.parametrize("one", [True, False], ids=["one of the others", "all others"])
def test_an_operator_gets_the_entries_of_a_batch_that_another_takes_one_out_of_meanwhile(
    worker: Worker, another: Worker, monkeypatch: pytest.MonkeyPatch, one: bool
) -> None:
    ids = put_dead_together(worker, 3)
    store, once = worker.box.store, worker.box.store._once
    meanwhile = iter([True])

    def late(lane: Lane, move: Callable[[LockedLane], Any]) -> Any:
        if next(meanwhile, False):
            assert another.box.requeue([ids[0]]) == 1
        return once(lane, move)

    monkeypatch.setattr(store, "_once", late)
    assert worker.box.discard([ids[1]] if one else None) == (1 if one else 2)
    assert worker.statuses(ids)[1:] == [Status.SHED, Status.DEAD if one else Status.SHED]
    assert worker.status.dead == (1 if one else 0)


def test_an_entry_that_is_not_dead_names_nothing(worker: Worker) -> None:
    (dead,) = put_dead(worker, 1)
    worker.put(1)
    worker.settle(worker.must_claim(), DELIVERED)
    others = [*worker.put(1), usage().id]
    assert worker.box.dead(others) == worker.box.dead([]) == []
    assert (worker.box.requeue(others), worker.box.discard([])) == (0, 0)
    assert worker.statuses([dead]) == [Status.DEAD]


def test_more_dead_letters_take_no_more_statements(worker: Worker) -> None:
    """A chunk of them takes as many as one: at ten thousand a statement each is minutes."""

    def count(does: Callable[[list[UUID]], object], ids: list[UUID]) -> int:
        with statements(worker.box.engine) as asked:
            does(ids)
        return len(asked)

    few, many = put_dead(worker, 1), put_dead(worker, 6)
    box = worker.box
    for does in (box.dead, box.dead_counts, lambda _: box.dead(), lambda _: box.dead_counts(), box.discard):
        assert count(does, many) <= count(does, few), does


@pytest.mark.parametrize("verb", ["requeue", "discard"])
def test_what_dies_meanwhile_is_left(worker: Worker, monkeypatch: pytest.MonkeyPatch, verb: str) -> None:
    """A worker sends what was requeued while more of it is, and beacon refuses it still."""
    monkeypatch.setattr(operate, "CHUNK", 1)
    worker.policy(batch_max_rows=1)
    put_dead(worker, 3)
    worker.put(3)
    store, once = worker.box.store, worker.box.store._once
    died: list[int] = []

    def dying(lane: Lane, move: Callable[[LockedLane], Any]) -> Any:
        moved = once(lane, move)
        if isinstance(moved, int) and moved and len(died) < 3:
            died.append(moved)
            assert worker.settle(worker.must_claim(), REFUSED).dead == 1
        return moved

    monkeypatch.setattr(store, "_once", dying)
    assert getattr(worker.box, verb)() == 3
    assert len(died) == 3, "one died after each that was moved"
    assert worker.status.dead == 3


def test_what_dies_in_another_lane_meanwhile_is_left(
    worker: Worker, tracer: Worker, monkeypatch: pytest.MonkeyPatch
) -> None:
    put_dead(worker, 1)
    (late,) = tracer.put(1)
    batch, requeue = tracer.must_claim(), worker.box.store.requeue

    def dying(*windows: tuple[Lane, Window]) -> int:
        assert tracer.settle(batch, REFUSED).dead == 1
        return requeue(*windows)

    monkeypatch.setattr(worker.box.store, "requeue", dying)
    assert worker.box.requeue() == 1
    assert tracer.statuses([late]) == [Status.DEAD]


@pytest.mark.parametrize("named", [False, True], ids=["all", "by their ids"])
def test_what_was_done_before_the_database_went_away_is_told(
    worker: Worker, monkeypatch: pytest.MonkeyPatch, named: bool
) -> None:
    ids = put_dead(worker, 5)
    monkeypatch.setattr(operate, "CHUNK", 2)
    discard, chunks = operate.discard, iter([True, True, False])

    def goes_away(row: LockedLane, **given: Any) -> int:
        if not next(chunks):
            raise DatabaseUnavailable(f"the server closed the connection. {NOTHING_WRITTEN} Check that it is up.")
        return discard(row, **given)

    monkeypatch.setattr(operate, "discard", goes_away)
    with pytest.raises(DatabaseUnavailable) as told:
        worker.box.discard(ids if named else None)
    assert str(told.value) == (
        "the server closed the connection. Check that it is up."
        " 4 entries were done before that: run it again for the others."
    )
    monkeypatch.setattr(operate, "discard", discard)
    assert worker.box.discard() == 1


def test_usage_is_never_shed(worker: Worker) -> None:
    ids = worker.put(1)
    with pytest.raises(ValueError, match="never shed"):
        worker.box.store.keep_within(worker.lane, Bounds(entries=0, size=0, age_seconds=0))
    assert worker.statuses(ids) == [Status.PENDING]


def test_telemetry_sheds_its_oldest_and_counts_them(tracer: Worker) -> None:
    ids = tracer.put(4)
    assert shed(tracer.box.store, tracer.lane, 2, "too many entries") == 2
    assert tracer.statuses(ids) == [Status.SHED, Status.SHED, Status.PENDING, Status.PENDING]
    assert tracer.find(ids[0]).last_error == "too many entries"
    assert (tracer.status.shed, tracer.status.pending) == (2, 2)
    assert tracer.deliver_all() == ids[2:]


def test_shedding_leaves_a_batch_on_the_wire_alone(tracer: Worker) -> None:
    ids = tracer.put(2)
    batch = tracer.must_claim()
    assert shed(tracer.box.store, tracer.lane, 10, "too many entries") == 0
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


def test_a_lane_that_is_off_discards_what_a_worker_that_was_killed_had_in_flight(tracer: Worker) -> None:
    ids = tracer.put(2)
    batch = tracer.must_claim()
    assert tracer.box.store.switch_off(tracer.lane, "off") == 0
    tracer.due_now()
    assert tracer.box.store.switch_off(tracer.lane, "off") == 2
    assert tracer.statuses(ids) == [Status.SHED] * 2
    assert (tracer.status.shed, tracer.status.unfinished, tracer.status.oldest_pending_seconds) == (2, 0, None)
    assert tracer.find(ids[0]).maybe_delivered
    assert tracer.settle(batch, DELIVERED).lost == [batch.id], "the worker was only slow"


def test_switching_off_ends_beside_a_producer_that_goes_on(tracer: Worker, another: Worker) -> None:
    producer, ids = Worker(another.box, tracer.lane), tracer.put(3)
    others: list[UUID] = []

    def produce(_: Connection) -> None:
        assert len(others) < 30, "it goes on for as long as entries come"
        others.extend(producer.put(1))

    event.listen(tracer.box.engine, "begin", produce)
    discarded = tracer.box.store.switch_off(tracer.lane, "off")
    event.remove(tracer.box.engine, "begin", produce)
    assert discarded >= len(ids)
    assert tracer.statuses(ids) == [Status.SHED] * len(ids)
    assert tracer.box.store.switch_off(tracer.lane, "off") == len(ids) + len(others) - discarded
    assert (tracer.status.shed, tracer.status.unfinished) == (len(ids) + len(others), 0)


def test_a_lane_switched_on_again_sends_what_comes_next(tracer: Worker) -> None:
    tracer.put(1)
    tracer.box.store.switch_off(tracer.lane, "off")
    tracer.box.store.switch_on(tracer.lane)
    ids = tracer.put(1)
    assert tracer.deliver_all() == ids
