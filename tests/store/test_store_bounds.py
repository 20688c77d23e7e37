"""A lane within its bounds: telemetry sheds its oldest and counts it, usage takes no more."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from typing import Any

import pytest
from sqlalchemy import Connection, Engine, update

from outbox import Outbox, OutboxFull, Settings, UsageInterval
from outbox.core.lane import Lane
from outbox.core.lifecycle import Status
from outbox.core.policy import Bounds
from outbox.store import bounds
from outbox.store.ledger import LostClaim, locked
from tests.store.driving import DELIVERED, KEEP_NOTHING, UNAVAILABLE, Worker
from tests.support.databases import Database
from tests.support.intervals import interval, intervals
from tests.support.listening import statements

WIDE = Bounds(entries=1_000_000, size=1_000_000_000, age_seconds=86_400)


def keep_within(tracer: Worker, **bounds: float) -> int:
    return tracer.box.store.keep_within(tracer.lane, replace(WIDE, **bounds))


def test_the_oldest_entries_beyond_the_bound_are_shed_and_counted(tracer: Worker) -> None:
    ids = tracer.put(10)
    assert keep_within(tracer, entries=7) == 3
    assert tracer.statuses(ids) == [Status.SHED] * 3 + [Status.PENDING] * 7
    assert (tracer.status.shed, tracer.status.pending) == (3, 7)
    assert "more than 7 entries (OUTBOX_TELEMETRY_MAX_ENTRIES)" in str(tracer.find(ids[0]).last_error)
    assert keep_within(tracer, entries=7) == 0
    assert tracer.deliver_all() == ids[3:]


def test_the_oldest_bytes_beyond_the_bound_are_shed(tracer: Worker) -> None:
    ids = tracer.put(10)
    each = tracer.find(ids[0]).payload
    assert each is not None
    assert keep_within(tracer, size=6 * len(each)) == 4
    assert tracer.statuses(ids) == [Status.SHED] * 4 + [Status.PENDING] * 6


def test_entries_older_than_the_bound_are_shed(tracer: Worker) -> None:
    old = tracer.put(3)
    tracer.run(update(tracer.log).values(created_at=tracer.log.c.created_at - 3_600_000_000))
    young = tracer.put(2)
    assert keep_within(tracer, age_seconds=1800) == 3
    assert tracer.statuses(old + young) == [Status.SHED] * 3 + [Status.PENDING] * 2


def test_what_is_on_the_wire_or_waits_for_another_attempt_is_never_shed(tracer: Worker) -> None:
    tracer.policy(batch_max_rows=4)
    ids = tracer.put(10)
    flying = tracer.must_claim()
    assert keep_within(tracer, entries=0) == 6
    assert tracer.statuses(ids) == [Status.IN_FLIGHT] * 4 + [Status.SHED] * 6
    tracer.settle(flying, DELIVERED)
    assert (tracer.status.sent, tracer.status.shed) == (4, 6)


def test_dead_letters_that_are_requeued_do_not_take_the_place_of_newer_entries(tracer: Worker) -> None:
    tracer.policy(attempts_limits={tracer.lane: 1})
    dead = tracer.put(6)
    tracer.settle(tracer.must_claim(), UNAVAILABLE)
    assert tracer.statuses(dead) == [Status.DEAD] * 6
    new = tracer.put(4)
    assert tracer.box.requeue(lane="traces") == 6
    assert keep_within(tracer, entries=5) == 0
    assert tracer.deliver_all() == [*dead, *new]


def test_requeued_dead_letters_that_are_on_the_wire_count_again(tracer: Worker) -> None:
    tracer.policy(attempts_limits={tracer.lane: 1})
    tracer.put(6)
    tracer.settle(tracer.must_claim(), UNAVAILABLE)
    tracer.box.requeue(lane="traces")
    tracer.must_claim()
    tracer.put(4)
    assert keep_within(tracer, entries=9) == 1


def test_more_than_a_chunk_is_shed_chunk_by_chunk(tracer: Worker, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("outbox.store.bounds.SHED_AT_ONCE", 4)
    ids = tracer.put(20)
    assert keep_within(tracer, entries=5) == 15
    assert tracer.deliver_all() == ids[15:]


def test_workers_that_measure_the_same_surplus_shed_it_once(tracer: Worker, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bounds, "SHED_AT_ONCE", 2)
    ids = tracer.put(10)
    shed: list[int] = []
    after_measuring(monkeypatch, lambda: shed.append(keep_within(tracer, entries=7)))
    shed.append(keep_within(tracer, entries=7))
    assert shed == [3, 0]
    assert tracer.deliver_all() == ids[3:]


def test_what_is_delivered_after_the_measuring_is_not_shed_for(tracer: Worker, monkeypatch: pytest.MonkeyPatch) -> None:
    tracer.policy(batch_max_rows=4)
    ids = tracer.put(10)
    after_measuring(monkeypatch, lambda: tracer.settle(tracer.must_claim(), DELIVERED))
    assert keep_within(tracer, entries=7) == 0
    assert tracer.deliver_all() == ids[4:]


def test_what_is_delivered_and_forgotten_after_the_measuring_is_not_shed_for(
    tracer: Worker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without receipts nothing says what has left. The next measuring is seconds away."""
    tracer.policy(batch_max_rows=5)
    ids = tracer.put(10)

    def deliver_and_forget() -> None:
        tracer.settle(tracer.must_claim(), DELIVERED)
        for _ in range(2):  # rows first, then receipts
            tracer.clock.advance(seconds=1000)
            tracer.purge()
        assert (tracer.batches(), tracer.row.floor) == ([], 5)

    after_measuring(monkeypatch, deliver_and_forget)
    assert keep_within(tracer, entries=6) == 0
    assert keep_within(tracer, entries=4) == 1, "measured anew"
    assert tracer.deliver_all() == ids[6:]


def test_a_chunk_that_is_lost_to_another_worker_is_not_counted_off(tracer: Worker) -> None:
    """It is shed again, after what that one claimed."""
    tracer.policy(batch_max_rows=4)
    ids = tracer.put(10)
    store = tracer.box.store
    with store.database.read(snapshot=True) as connection:
        beyond = bounds.surplus(connection, tracer.lane, replace(WIDE, entries=9), lambda now: now)
    assert beyond is not None
    with suppress(LostClaim), store.database.write() as connection, locked(connection, tracer.lane) as row:
        assert bounds.shed(row, beyond) == 1
        raise LostClaim(tracer.lane)
    tracer.must_claim()
    with store.database.write() as connection, locked(connection, tracer.lane) as row:
        assert bounds.shed(row, beyond) == 1
    assert tracer.statuses(ids) == [Status.IN_FLIGHT] * 4 + [Status.SHED] + [Status.PENDING] * 5


def test_what_is_claimed_after_the_measuring_is_shed_for(tracer: Worker, monkeypatch: pytest.MonkeyPatch) -> None:
    tracer.policy(batch_max_rows=4)
    ids = tracer.put(10)
    after_measuring(monkeypatch, tracer.must_claim)
    assert keep_within(tracer, entries=7) == 3
    assert tracer.statuses(ids) == [Status.IN_FLIGHT] * 4 + [Status.SHED] * 3 + [Status.PENDING] * 3


def after_measuring(monkeypatch: pytest.MonkeyPatch, do: Callable[[], object]) -> None:
    measure = bounds.surplus

    def measured(*arguments: Any) -> Any:
        found = measure(*arguments)
        monkeypatch.setattr(bounds, "surplus", measure)
        do()
        return found

    monkeypatch.setattr(bounds, "surplus", measured)


def test_an_entry_that_commits_late_is_not_shed_unseen(tracer: Worker) -> None:
    tracer.burn(2)  # two numbers taken by somebody who has not committed
    tracer.put(3)
    assert keep_within(tracer, entries=0) == 3
    late = tracer.plant(1)
    tracer.clock.advance(seconds=60)
    assert tracer.deliver_all() == [late]


def test_what_was_shed_is_purged(tracer: Worker) -> None:
    tracer.put(5)
    keep_within(tracer, entries=0)
    tracer.clock.advance(seconds=1)
    assert tracer.purge(KEEP_NOTHING) == 5
    assert tracer.status.shed == 5


def test_usage_is_never_shed(worker: Worker) -> None:
    worker.put(3)
    with pytest.raises(ValueError, match="never shed"):
        worker.box.store.keep_within(Lane.USAGE, Bounds(0, 0, 0))
    assert worker.status.pending == 3


# --- usage ---------------------------------------------------------------------------------------------------


@pytest.fixture
def full(database: Database, box: Outbox) -> Outbox:
    """An outbox that takes three usage entries, and holds them."""
    bounded = Outbox(database.url, settings=Settings(usage_max_entries=3))
    bounded.put(*intervals(3))
    return bounded


def test_usage_beyond_its_bound_is_refused_and_says_what_to_do(full: Outbox) -> None:
    with full:
        with pytest.raises(OutboxFull, match=r"3 entries wait in lane usage and 2 more .*OUTBOX_USAGE_MAX_ENTRIES"):
            full.put(*intervals(2))
        assert full.status().lanes["usage"].pending == 3


def test_a_transaction_that_is_refused_keeps_what_else_it_did(full: Outbox, engine: Engine) -> None:
    with full, engine.begin() as connection:
        with pytest.raises(OutboxFull):
            full.enqueue(connection, interval())
        assert _is_usable(connection)


def test_telemetry_does_not_count_against_the_bound_of_usage(full: Outbox, tracer: Worker) -> None:
    with full:
        assert len(tracer.put(3)) == 3


def test_a_producer_may_wait_for_room(full: Outbox) -> None:
    with full, ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(full.put, interval(), timeout=30)
        batch = Worker(full).must_claim()
        assert not waiting.done(), "entries on the wire still fill the outbox"
        Worker(full).settle(batch, DELIVERED)
        assert len(waiting.result(30)) == 1
        full.wait_for_room(2, timeout=30)


def test_who_waits_for_room_in_vain_is_told(full: Outbox) -> None:
    with full:
        with pytest.raises(OutboxFull):
            full.put(interval(), timeout=0.1)
        with pytest.raises(OutboxFull):
            full.wait_for_room(timeout=0.1)


def test_numbers_that_were_rolled_back_take_no_room(full: Outbox, engine: Engine) -> None:
    worker = Worker(full)
    worker.settle(worker.must_claim(), DELIVERED)
    with full, engine.connect() as connection:
        full.enqueue_many(connection, intervals(3))
        connection.rollback()
        full.put(*intervals(3))


def test_what_is_there_already_takes_no_room(full: Outbox, engine: Engine) -> None:
    with full:
        batch = Worker(full).must_claim()
        there = [UsageInterval.from_json(payload) for payload in batch.payloads]
        again = full.put(*there)
        assert (list(again), again.duplicates) == ([message.id for message in there], 3)
        with engine.begin() as connection:
            assert full.enqueue(connection, there[0]).duplicates == 1
        with pytest.raises(OutboxFull, match=r"3 entries wait in lane usage and 1 more would pass"):
            full.put(*there, interval())
        Worker(full).settle(batch, DELIVERED)
        more = full.put(*there, *intervals(3))
        assert (more.duplicates, full.status().lanes["usage"].pending) == (3, 3)


def test_more_of_what_is_there_than_one_query_looks_up_takes_no_room(
    database: Database, box: Outbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("outbox.store.operate.CHUNK", 2)
    there = intervals(5)
    with Outbox(database.url, settings=Settings(usage_max_entries=6)) as bounded:
        bounded.put(*there)
        assert bounded.put(*there, interval()).duplicates == 5
        assert bounded.put(*there).duplicates == 5


def test_a_bound_that_was_lowered_below_what_waits_still_knows_what_is_there(database: Database, box: Outbox) -> None:
    there = intervals(3)
    box.put(*there)
    with Outbox(database.url, settings=Settings(usage_max_entries=1)) as bounded:
        assert bounded.put(*there).duplicates == 3
        with pytest.raises(OutboxFull, match="1 more would pass"):
            bounded.put(there[0], interval())


def test_ids_are_looked_up_only_where_there_is_no_room(database: Database, box: Outbox) -> None:
    with Outbox(database.url, settings=Settings(usage_max_entries=3)) as bounded, statements(bounded.engine) as seen:
        bounded.put(*intervals(3))
        assert not [sql for sql in seen if ".id IN (" in sql]
        with pytest.raises(OutboxFull):
            bounded.put(interval())
        assert len([sql for sql in seen if ".id IN (" in sql]) == 1


def _is_usable(connection: Connection) -> bool:
    return connection.exec_driver_sql("SELECT 1").scalar_one() == 1
