"""Steps of a worker that has its lane to itself: without the lane's lock, and as right as under it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from uuid import uuid4

import pytest
from sqlalchemy import delete, select, update

from outbox import Outbox, Receipt
from outbox.boottime import boottime
from outbox.core.batch import Batch
from outbox.core.lane import Lane
from outbox.core.step import Committed, Outlook, Settlement, Step
from outbox.store import claim as store_claim
from outbox.store import optimistic as store_optimistic
from outbox.store.database import Database
from outbox.store.dialects import now_us
from outbox.store.read_ahead import FEW, ReadAhead
from outbox.store.schema import BATCH, LANE
from tests.store.driving import DELIVERED, INTERRUPTED, REFUSED, UNAVAILABLE, Worker, payload_ids

ROWS = 3
"""Of a put, and so of a batch."""
CLOCK_US = 30_000
"""How far two clocks may be apart. One that was asked may be ahead for as long as its answer took, besides."""


def since_us(began: float) -> int:
    return int((time.monotonic() - began) * 1_000_000)


@pytest.fixture
def alone(worker: Worker, locks: list[Lane]) -> Worker:
    """It has made two steps in a row: the lane is as it knows it."""
    for _ in range(2):
        worker.put(ROWS)
        assert worker.step(worker.leased).batches
    locks.clear()
    return worker


def test_the_third_step_in_a_row_takes_no_lock_and_does_the_same(alone: Worker, locks: list[Lane]) -> None:
    before = alone.leased
    put = alone.put(ROWS)
    done = alone.step(before)
    assert not locks
    assert payload_ids(done.batches) == put
    assert (done.settled.batches, done.settled.sent) == (1, ROWS)
    [batch], row = done.batches, alone.row
    written = alone.batch(batch.id)
    assert (row.cursor, row.version) == (written.last_seq, alone.batch(before[0].id).settled_version)
    assert (written.state, written.lease_token, written.entries) == ("leased", batch.lease_token, ROWS)
    assert alone.batch(before[0].id).verdict == "delivered"
    assert written.due_at - alone.clock.now() == alone.box.store.policy.lease_us


def test_several_batches_are_settled_and_leased_at_once(alone: Worker, locks: list[Lane]) -> None:
    alone.policy(batch_max_rows=ROWS)
    put = alone.put(3 * ROWS + 1)
    first = alone.step(alone.leased, want=3)
    second = alone.step(alone.leased, want=3)
    assert not locks
    assert payload_ids([*first.batches, *second.batches]) == put
    assert [batch.rows for batch in first.batches] == [ROWS] * 3
    assert (second.settled.batches, second.settled.sent) == (3, 3 * ROWS)
    assert {alone.batch(batch.id).state for batch in first.batches} == {"settled"}


@pytest.mark.parametrize("entries", [1, FEW - 1, FEW, FEW + 1])
def test_few_entries_are_read_as_many_are(alone: Worker, locks: list[Lane], entries: int) -> None:
    put = alone.put(entries)
    [batch] = alone.step(alone.leased).batches
    assert not locks
    assert payload_ids([batch]) == put
    written = alone.batch(batch.id)
    assert (batch.rows, written.last_seq - written.first_seq + 1, alone.row.cursor) == (
        entries,
        entries,
        written.last_seq,
    )
    assert batch.payload_bytes == written.payload_bytes == sum(map(len, batch.payloads))


def test_entries_that_are_too_large_for_one_batch_are_cut_under_the_lock(alone: Worker, locks: list[Lane]) -> None:
    put = alone.put(ROWS)
    [[size]] = alone.rows(select(alone.log.c.size).where(alone.log.c.id == put[0]))
    alone.policy(batch_max_bytes=2 * size + 1)
    done = alone.step(alone.leased)
    assert locks
    assert payload_ids(done.batches) == put[:2]
    assert done.settled.sent == ROWS


def test_a_payload_of_several_lines_is_mended_under_the_lock(alone: Worker, locks: list[Lane]) -> None:
    put = alone.put(ROWS)
    payload = f'{{"id":\n"{put[1]}"}}'
    alone.run(update(alone.log).where(alone.log.c.id == put[1]).values(payload=payload, size=len(payload)))
    [batch] = alone.step(alone.leased).batches
    assert locks
    assert payload_ids([batch]) == put


def test_more_entries_than_a_batch_takes_are_several(alone: Worker, locks: list[Lane]) -> None:
    alone.policy(batch_max_rows=ROWS)
    put = alone.put(2 * ROWS + 1)
    done = alone.step(alone.leased, want=3)
    assert not locks
    assert payload_ids(done.batches) == put
    assert done.emptied


@pytest.mark.parametrize("read", [True, False], ids=["read", "handed over"])
def test_a_lease_lasts_by_the_databases_clock_whatever_this_machine_thinks_of_the_time(
    box: Outbox, worker: Worker, locks: list[Lane], read: bool
) -> None:
    """As after its host was suspended, and its monotonic clock with it."""
    box.store.clock = None
    for _ in range(3):
        worker.put(ROWS)
        worker.step(worker.leased)
    box.store._optimistic._left[worker.lane].now -= 2 * box.store.policy.lease_us
    locks.clear()
    told: list[Committed | None] = []
    box.wake.listen(lambda _lanes, committed=None, /: told.append(committed))
    worker.put(ROWS)
    [[before]] = worker.rows(select(now_us()))
    settlements = [Settlement(batch, DELIVERED) for batch in worker.leased]
    [committed] = [None] if read else told
    done = box.store.step(worker.lane, settlements, want=1, look_due=False, committed=committed)
    [batch] = done.batches
    assert not locks
    [[now]] = worker.rows(select(now_us()))
    assert before <= worker.batch(batch.id).due_at - box.store.policy.lease_us <= now
    if read:
        worker.step([batch], want=0)
        assert worker.batch(batch.id).settled_at >= before, "the next one, which does not ask, knows what this one read"
        assert not locks


@pytest.mark.parametrize("size", [2**31, 2**63 - 1])
def test_a_batch_may_be_allowed_any_size(alone: Worker, locks: list[Lane], size: int) -> None:
    alone.policy(batch_max_bytes=size)
    put = alone.put(ROWS)
    assert payload_ids(alone.step(alone.leased).batches) == put
    assert not locks


@pytest.mark.parametrize("database", ["postgresql"], indirect=True)
def test_few_entries_are_leased_by_the_statement_that_finds_them(
    alone: Worker, locks: list[Lane], looks: list[Any]
) -> None:
    put = alone.put(ROWS)
    done = alone.step(alone.leased)
    assert payload_ids(done.batches) == put
    assert alone.step(done.batches).settled.sent == ROWS
    assert alone.step() == Step(emptied=True)
    assert not looks
    assert not locks


def test_with_nothing_to_do_it_writes_nothing(alone: Worker, locks: list[Lane]) -> None:
    alone.step(alone.leased)
    before = alone.row.version
    assert alone.step() == Step(emptied=True)
    assert alone.row.version == before
    assert not locks


@pytest.mark.parametrize("database", ["sqlite", "mariadb"], indirect=True)
def test_a_look_in_vain_is_one_statement_and_now_and_then_asks_for_the_time(
    box: Outbox, worker: Worker, locks: list[Lane], looks: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    box.store.clock, began = None, time.monotonic()
    for _ in range(3):
        worker.put(ROWS)
        worker.step(worker.leased)
    worker.step(worker.leased, want=0)
    worker.put(ROWS)
    [batch] = worker.step().batches
    locks.clear()
    looks.clear()
    assert worker.step() == Step(emptied=True)
    assert len(looks) == 1
    with monkeypatch.context() as patched:
        patched.setattr(store_optimistic, "FRESH_SECONDS", 0)
        box.store._optimistic._left[worker.lane].now -= 2 * box.store.policy.lease_us  # as after its host was suspended
        assert worker.step() == Step(emptied=True)
    [[before]] = worker.rows(select(now_us()))
    worker.step([batch], want=0)
    [[after]] = worker.rows(select(now_us()))
    assert not locks
    assert before - CLOCK_US <= worker.batch(batch.id).settled_at <= after + CLOCK_US + since_us(began)


def test_what_another_worker_claims_between_its_look_and_its_write_is_not_claimed_twice(
    alone: Worker, another: Worker, locks: list[Lane], monkeypatch: pytest.MonkeyPatch
) -> None:
    alone.policy(batch_max_rows=ROWS)
    another.policy(batch_max_rows=ROWS)
    before, put = alone.leased, alone.put(2 * ROWS)
    theirs: list[Batch] = []
    with not_under_sqlites_lock(alone, lambda: theirs.append(another.must_claim()), monkeypatch):
        done = alone.step(before)
    assert payload_ids([*theirs, *done.batches]) == put
    assert done.settled.sent == ROWS
    assert len(locks) == 2, "theirs, and its own, as the lane was not as it had left it"


@contextmanager
def not_under_sqlites_lock(
    worker: Worker, strike: Callable[[], object], monkeypatch: pytest.MonkeyPatch
) -> Iterator[None]:
    """After the read of an optimistic step, and before its transaction begins."""
    struck = 0
    alone = Database.alone

    def writing(database: Database, work: Any, **options: Any) -> Any:
        nonlocal struck
        if database is worker.box.store.database and not struck:
            struck += 1
            strike()
        return alone(database, work, **options)

    with monkeypatch.context() as patch:
        patch.setattr(Database, "alone", writing)
        yield
    assert struck


def test_beside_another_worker_each_takes_the_lock(
    alone: Worker, another: Worker, locks: list[Lane], monkeypatch: pytest.MonkeyPatch
) -> None:
    alone.policy(batch_max_rows=ROWS)
    another.policy(batch_max_rows=ROWS)
    put, sent, tried = alone.put(6 * ROWS), [], []
    without_the_lock = Database.alone
    monkeypatch.setattr(Database, "alone", lambda *a, **b: tried.append(a) or without_the_lock(*a, **b))
    for _ in range(3):
        for worker in (another, alone):
            sent += payload_ids(worker.step().batches)
    assert sent == put
    assert len(locks) == 6
    assert len(tried) == 1, "once, and from then on it knows that it is not alone"


def test_a_lease_that_was_lost_settles_nothing_and_loses_nothing_else(alone: Worker, locks: list[Lane]) -> None:
    lost = alone.leased[0]
    alone.run(update(BATCH).where(BATCH.c.id == lost.id).values(lease_token=uuid4()))
    put = alone.put(ROWS)
    done = alone.step([lost])
    assert bool(locks) is (alone.box.engine.name == "sqlite"), "there a trigger undoes all"
    assert (done.settled.lost, done.settled.batches, done.settled.sent) == ([lost.id], 0, 0)
    assert payload_ids(done.batches) == put
    assert alone.batch(lost.id).state == "leased"


def test_one_lost_lease_does_not_lose_the_others_of_its_step(alone: Worker, locks: list[Lane]) -> None:
    alone.put(ROWS)
    alone.step()
    lost, kept = alone.leased
    alone.run(update(BATCH).where(BATCH.c.id == lost.id).values(lease_token=uuid4()))
    done = alone.step([lost, kept])
    assert bool(locks) is (alone.box.engine.name == "sqlite"), "there a trigger undoes all"
    assert (done.settled.lost, done.settled.batches, done.settled.sent) == ([lost.id], 1, ROWS)
    assert alone.batch(kept.id).verdict == "delivered"


@pytest.mark.parametrize("receipt", [UNAVAILABLE, INTERRUPTED], ids=["unavailable", "interrupted"])
def test_what_did_not_arrive_is_settled_under_the_lock(alone: Worker, locks: list[Lane], receipt: Receipt) -> None:
    batch = alone.leased[0]
    alone.step([batch], receipt)
    assert locks
    assert alone.batch(batch.id).state == "waiting"


def test_what_a_delivery_says_of_the_lane_is_written_under_the_lock(alone: Worker, locks: list[Lane]) -> None:
    alone.put(1)
    [refused] = alone.step(alone.leased).batches
    alone.put(ROWS)
    arrived = alone.step([refused], REFUSED).batches
    assert alone.row.dead_streak == 1
    alone.put(ROWS)
    alone.step()
    locks.clear()
    alone.step(arrived)
    assert alone.row.dead_streak == 0
    assert locks


def test_a_number_that_is_missing_is_looked_at_under_the_lock(alone: Worker, locks: list[Lane]) -> None:
    put = alone.put(ROWS)
    alone.run(delete(alone.log).where(alone.log.c.id == put[1]))
    done = alone.step(alone.leased)
    assert locks
    assert payload_ids(done.batches) == [put[0], put[2]]
    assert [(hole.lo, hole.hi) for hole in alone.holes()] == [(3 * ROWS - 1, 3 * ROWS - 1)]


def test_a_lane_that_was_stopped_meanwhile_leases_nothing(
    alone: Worker, another: Worker, monkeypatch: pytest.MonkeyPatch
) -> None:
    alone.put(ROWS)

    def stop() -> None:
        stopped = {"state": "paused", "reason": "its log contradicts its ledger", "version": LANE.c.version + 1}
        another.run(update(LANE).where(LANE.c.lane == str(alone.lane)).values(stopped))

    batch = alone.leased[0]
    with not_under_sqlites_lock(alone, stop, monkeypatch):
        done = alone.step([batch])
    assert not done.batches
    assert done.settled.sent == ROWS


def test_a_post_under_a_lease_ends_before_it_wherever_the_step_stalls(
    alone: Worker, monkeypatch: pytest.MonkeyPatch
) -> None:
    alone.box.store.clock = None
    alone.put(ROWS)
    policy = alone.box.store.policy

    def stall() -> None:
        until = time.monotonic() + 0.05
        while time.monotonic() < until:
            pass

    for name, module in (("look", ReadAhead), ("settle", store_optimistic), ("_lease", store_claim)):
        stalling(monkeypatch, module, name, stall)
    began = boottime()
    [batch] = alone.step(alone.leased).batches
    [[now]] = alone.rows(select(now_us()))
    at = boottime()
    left_to_post = batch.lease_deadline + policy.request_timeout - at
    left_of_lease = (alone.batch(batch.id).due_at - now) / 1_000_000
    assert policy.lease_seconds - (at - began) <= left_to_post <= left_of_lease + 0.005


def stalling(monkeypatch: pytest.MonkeyPatch, owner: Any, name: str, stall: Callable[[], None]) -> None:
    """Before and after."""
    function = getattr(owner, name)

    def stalled(*arguments: Any, **options: Any) -> Any:
        stall()
        done = function(*arguments, **options)
        stall()
        return done

    monkeypatch.setattr(owner, name, stalled)


def test_its_writes_name_every_column_that_a_step_under_the_lock_writes(alone: Worker, locks: list[Lane]) -> None:
    under_the_lock = alone.leased[0]
    alone.box.store.step(alone.lane, [Settlement(under_the_lock, DELIVERED)], want=0, look_due=True)
    assert locks
    alone.put(ROWS)
    alone.step()
    locks.clear()
    alone.put(ROWS)
    [_, optimistic] = [*alone.leased[1:], *alone.step().batches]
    alone.step([optimistic])
    first, second = (alone.batch(batch.id)._asdict() for batch in (under_the_lock, optimistic))
    assert {name for name, value in first.items() if value is None} == {
        name for name, value in second.items() if value is None
    }
    assert not locks


# --- what is told of a lane afterwards ------------------------------------------------------------------------


@pytest.fixture
def looks(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """A statement for each read outside of a transaction."""
    seen: list[Any] = []
    look = Database.look

    def looking(database: Database, statement: Any, values: Any) -> Any:
        seen.append(statement)
        return look(database, statement, values)

    monkeypatch.setattr(Database, "look", looking)
    monkeypatch.setattr(store_optimistic, "FRESH_SECONDS", 3600)  # however slow the machine is, the clock is known
    return seen


def test_after_optimistic_steps_the_outlook_of_before_is_not_read_again(alone: Worker, looks: list[Any]) -> None:
    [waits] = alone.leased
    assert alone.step([waits], UNAVAILABLE).settled.failed == ROWS
    _alone_again(alone)
    store = alone.box.store
    before = store.outlook(alone.lane)
    assert not before.ready
    assert before.next_seconds
    _deliver_one(alone)
    alone.clock.advance(seconds=before.next_seconds / 2)
    looks.clear()
    assert store.outlook(alone.lane, stepped=True).next_seconds == pytest.approx(before.next_seconds / 2, abs=0.001)
    assert not looks
    assert store.outlook(alone.lane).next_seconds == pytest.approx(before.next_seconds / 2, abs=0.001)
    alone.clock.advance(seconds=before.next_seconds)
    assert store.outlook(alone.lane, stepped=True).ready


def test_what_a_step_under_the_lock_left_waiting_is_told(alone: Worker) -> None:
    alone.step(alone.leased)
    assert alone.box.store.outlook(alone.lane) == Outlook(False, None)
    alone.put(ROWS)
    alone.step()
    alone.step(alone.leased, UNAVAILABLE)
    _alone_again(alone)
    _deliver_one(alone)
    assert alone.box.store.outlook(alone.lane, stepped=True).next_seconds


def test_entries_that_the_last_step_did_not_claim_are_told(alone: Worker) -> None:
    alone.policy(batch_max_rows=ROWS)
    alone.step(alone.leased)
    assert not alone.box.store.outlook(alone.lane).ready
    alone.put(3 * ROWS)
    alone.step()
    alone.step(alone.leased)
    assert alone.box.store.outlook(alone.lane, stepped=True).ready


def _alone_again(worker: Worker) -> None:
    """Steps until the lane's lock is not taken any more, and nothing is left."""
    for _ in range(store_optimistic.LOCKED_STEPS + 2):
        _deliver_one(worker)


def _deliver_one(worker: Worker) -> None:
    worker.put(ROWS)
    worker.step()
    worker.step(worker.leased)


# --- what only settles ----------------------------------------------------------------------------------------


def test_what_only_settles_takes_no_lock_and_reads_nothing(alone: Worker, locks: list[Lane], looks: list[Any]) -> None:
    [batch] = alone.leased
    alone.clock.advance(seconds=5)
    looks.clear()
    assert alone.step([batch], want=0).settled.sent == ROWS
    assert not locks
    assert not looks
    assert alone.batch(batch.id).verdict == "delivered"
    assert alone.batch(batch.id).settled_at == alone.clock.now()
    assert alone.batch(batch.id).settled_version == alone.row.version


def test_its_clock_is_the_databases_and_is_asked_again(
    box: Outbox, worker: Worker, looks: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """However many steps only settle, one after the other."""
    box.store.clock = None
    monkeypatch.setattr(store_optimistic, "FRESH_SECONDS", 0.05)
    for _ in range(3):
        worker.put(ROWS)
        worker.step(worker.leased)
    worker.policy(batch_max_rows=1)
    worker.put(4)
    began = time.monotonic()
    worker.step(worker.leased, want=4)
    slowest = since_us(began)
    looks.clear()
    for batch in worker.leased:
        until = time.monotonic() + 0.04
        while time.monotonic() < until:
            pass
        [[before]] = worker.rows(select(now_us()))
        began = time.monotonic()
        worker.step([batch], want=0)
        slowest = max(slowest, since_us(began))
        [[after]] = worker.rows(select(now_us()))
        assert before - CLOCK_US <= worker.batch(batch.id).settled_at <= after + CLOCK_US + slowest
    assert looks
