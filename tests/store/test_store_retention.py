"""Purge deletes what was settled long enough ago, and nothing else."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from sqlalchemy import Engine, delete, text

from outbox import Outbox, Receipt, SchemaOutOfDate
from outbox.core.lifecycle import Status
from outbox.store import retention
from outbox.store.schema import HOLE, LANE
from tests.store.driving import DELIVERED, KEEP_NOTHING, REFUSED, UNAVAILABLE, Worker, shed, usage


def test_purge_deletes_settled_rows_and_raises_the_floor(worker: Worker) -> None:
    worker.put(3)
    worker.deliver_all()
    assert worker.purge() == 3
    assert worker.seqs() == []
    assert worker.row.floor == worker.row.cursor


def test_purge_leaves_every_unfinished_entry(worker: Worker) -> None:
    worker.policy(batch_max_rows=1)
    ids = worker.put(4)
    worker.settle(worker.must_claim(), DELIVERED)
    worker.settle(worker.must_claim(), UNAVAILABLE)
    worker.must_claim()
    worker.clock.advance(seconds=1)
    assert worker.purge() == 1
    assert worker.box.find(ids[0]) is None
    assert worker.statuses(ids[1:]) == [Status.WAITING, Status.IN_FLIGHT, Status.PENDING]


def test_purge_keeps_dead_letters_however_old(worker: Worker) -> None:
    worker.policy(batch_max_rows=1)
    ids = worker.put(3)
    for receipt in (DELIVERED, REFUSED, DELIVERED):
        worker.settle(worker.must_claim(), receipt)
    worker.clock.advance(seconds=10 * 365 * 86_400)
    assert worker.purge() == 2
    assert worker.statuses([ids[1]]) == [Status.DEAD]
    assert worker.row.floor == worker.seqs()[0] - 1
    worker.box.requeue()
    assert worker.deliver_all() == [ids[1]]
    assert worker.purge() == 1
    assert worker.row.floor == worker.row.cursor


def test_sent_entries_are_kept_for_their_retention(worker: Worker) -> None:
    ids = worker.put(2)
    worker.deliver_all()
    rules = replace(KEEP_NOTHING, sent_seconds=3600)
    assert worker.purge(rules) == 0
    assert worker.statuses(ids) == [Status.SENT] * 2
    worker.clock.advance(seconds=3601)
    assert worker.purge(rules) == 2


def test_sent_entries_go_sooner_when_they_take_too_much_room_but_not_under_the_least_time(worker: Worker) -> None:
    worker.put(2)
    worker.deliver_all()
    rules = replace(KEEP_NOTHING, sent_seconds=1e6, max_bytes=0, at_least_seconds=3600)
    assert worker.purge(rules) == 0
    worker.clock.advance(seconds=3601)
    assert worker.purge(rules) == 2


def test_receipts_outlive_their_rows_and_are_dropped_later(worker: Worker) -> None:
    worker.put(2)
    worker.deliver_all()
    rules = replace(KEEP_NOTHING, receipts_seconds=3600)
    worker.purge(rules)
    assert [row.purged_at is not None for row in worker.batches()] == [True]
    worker.clock.advance(seconds=3601)
    worker.purge(rules)
    assert worker.batches() == []


def test_totals_survive_the_purge_of_rows_and_receipts(worker: Worker) -> None:
    worker.put(3)
    worker.deliver_all()
    assert worker.status.sent == 3
    worker.purge()
    assert worker.status.sent == 3
    worker.clock.advance(seconds=1)
    worker.purge()
    assert worker.batches() == []
    assert worker.status.sent == 3


def test_superseded_batches_are_dropped_too(worker: Worker) -> None:
    worker.put(2)
    worker.settle(worker.must_claim(), REFUSED)
    worker.deliver_all()
    worker.clock.advance(seconds=1)
    worker.purge()
    worker.clock.advance(seconds=1)
    worker.purge()
    assert worker.batches() == []


def test_shed_rows_are_purged_like_sent_ones(tracer: Worker) -> None:
    tracer.put(2)
    shed(tracer.box.store, tracer.lane, 2, "too many")
    assert tracer.purge() == 2
    assert tracer.status.shed == 2


def test_an_id_is_new_again_after_its_purge(worker: Worker) -> None:
    message = usage()
    worker.box.put(message)
    worker.deliver_all()
    assert worker.box.put(message).duplicates == 1
    worker.purge()
    assert worker.box.put(message).duplicates == 0
    assert worker.deliver_all() == [message.id]


# --- a little at a time: on SQLite producers wait meanwhile ----------------------------------------------------


def one_by_one(worker: Worker, *receipts: Receipt) -> None:
    """A batch for each entry."""
    worker.policy(batch_max_rows=1)
    worker.put(len(receipts))
    for receipt in receipts:
        worker.settle(worker.must_claim(), receipt)
        worker.clock.advance(seconds=1)


def noted(monkeypatch: pytest.MonkeyPatch, function: str) -> list[Any]:
    """What a function of ``retention`` has returned."""
    returned: list[Any] = []
    does = getattr(retention, function)

    def noting(*arguments: Any) -> Any:
        returned.append(does(*arguments))
        return returned[-1]

    monkeypatch.setattr(retention, function, noting)
    return returned


def test_a_transaction_purges_some_batches_however_small_they_are(
    worker: Worker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker.box.store.database.dialect, "purge_chunk", 2 * retention.ROWS_A_BATCH)
    one_by_one(worker, *[DELIVERED] * 5)
    deleted = noted(monkeypatch, "purge_batches")
    assert worker.purge() == 5
    assert deleted == [(2, True), (2, True), (1, False)]


def test_a_transaction_purges_some_rows_or_one_batch_however_large_it_is(
    worker: Worker, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = retention.ROWS_A_BATCH
    monkeypatch.setattr(worker.box.store.database.dialect, "purge_chunk", 3 * rows)
    for size in (rows, rows, 2 * rows, 4 * rows):
        worker.put(size)
        worker.deliver_all()
    deleted = noted(monkeypatch, "purge_batches")
    worker.purge()
    assert deleted == [(2 * rows, True), (2 * rows, True), (4 * rows, False)]


def test_totals_are_added_up_a_few_at_a_time(worker: Worker, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retention, "FOLDED_AT_ONCE", 2)
    one_by_one(worker, DELIVERED, DELIVERED, REFUSED, DELIVERED, DELIVERED)
    more = noted(monkeypatch, "fold_totals")
    worker.fold_totals()
    assert more == [True, True, False]
    assert (worker.row.sent, worker.row.dead) == (4, 1)
    assert (worker.status.sent, worker.status.dead) == (4, 1)


def test_receipts_are_dropped_a_few_at_a_time(worker: Worker, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retention, "RECEIPTS_AT_ONCE", 2)
    one_by_one(worker, *[DELIVERED] * 5)
    worker.purge()
    worker.clock.advance(seconds=1)
    deleted = noted(monkeypatch, "delete_receipts")
    worker.purge()
    assert deleted == [2, 2, 1]
    assert worker.batches() == []


def test_receipts_that_are_kept_do_not_keep_those_that_follow_them(
    worker: Worker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every other entry was refused, and delivered long after the rest."""
    monkeypatch.setattr(retention, "RECEIPTS_AT_ONCE", 2)
    one_by_one(worker, *[REFUSED, DELIVERED] * 3)
    worker.purge()
    worker.clock.advance(seconds=3600)
    worker.box.requeue()
    worker.deliver_all()
    worker.purge(replace(KEEP_NOTHING, receipts_seconds=1800))
    worker.purge(replace(KEEP_NOTHING, receipts_seconds=1800))
    assert [batch.purged_at is not None for batch in worker.batches()] == [True] * 3


# --- the floor ---------------------------------------------------------------------------------------------------


def test_the_floor_stays_below_a_batch_that_reaches_over_others(worker: Worker) -> None:
    """The first entry and the third are one batch now, the second is sent and not yet purged."""
    one_by_one(worker, REFUSED, DELIVERED, REFUSED)
    worker.policy(batch_max_rows=2)
    worker.box.requeue()
    assert [batch.members for batch in worker.batches("waiting")] == ["1,3"]
    worker.purge(replace(KEEP_NOTHING, sent_seconds=1e6))
    assert worker.row.floor == 0
    assert len(worker.deliver_all()) == 2


@pytest.mark.parametrize("goes_on", ["hole", "leased", "sent"])
def test_the_floor_stays_below_what_an_audit_has_found_meanwhile(
    worker: Worker, monkeypatch: pytest.MonkeyPatch, goes_on: str
) -> None:
    """A number that was stepped over and then forgotten by hand, and whose row commits after all."""
    worker.burn(1)
    worker.put(1)
    worker.deliver_all()
    worker.run(delete(HOLE))
    look = retention.rise_of_floor

    def found_meanwhile(*arguments: Any) -> retention.Rise:
        rise = look(*arguments)
        worker.box.audit(worker.lane)
        if goes_on != "hole":
            worker.plant(1)
            batch = worker.must_claim()
            if goes_on == "sent":
                worker.settle(batch, DELIVERED)
        return rise

    with monkeypatch.context() as patch:
        patch.setattr(retention, "rise_of_floor", found_meanwhile)
        assert worker.purge(replace(KEEP_NOTHING, sent_seconds=0)) == 1
    assert worker.row.floor == 0
    assert [(hole.lo, hole.hi) for hole in worker.holes()] == [(1, 1)] * (goes_on == "hole")


def test_receipts_from_the_future_keep_no_others(worker: Worker, monkeypatch: pytest.MonkeyPatch) -> None:
    """The clock was a year ahead for a while."""
    monkeypatch.setattr(retention, "RECEIPTS_AT_ONCE", 2)
    year = 365 * 86_400
    worker.clock.advance(seconds=year)
    one_by_one(worker, *[DELIVERED] * 2)
    worker.purge()
    worker.clock.advance(seconds=-year)
    one_by_one(worker, DELIVERED)
    worker.purge(replace(KEEP_NOTHING, receipts_seconds=3600))
    worker.clock.advance(seconds=3601)
    worker.purge(replace(KEEP_NOTHING, receipts_seconds=3600))
    assert worker.batches() == []


def test_a_lane_without_a_row_is_told_as_such(worker: Worker) -> None:
    worker.run(delete(LANE).where(LANE.c.lane == str(worker.lane)))
    for act in (worker.purge, lambda: worker.box.store.outlook(worker.lane)):
        with pytest.raises(SchemaOutOfDate, match="no row for usage"):
            act()
    worker.box.migrate()


@pytest.mark.parametrize("database", ["postgresql", "mariadb"], indirect=True)
def test_purge_does_not_wait_for_a_producer_whose_row_is_next(worker: Worker, box: Outbox, engine: Engine) -> None:
    worker.put(1000)
    worker.deliver_all()
    worker.clock.advance(seconds=1)
    with engine.begin() as connection:
        box.enqueue(connection, usage())
        assert worker.purge() == 1000


@pytest.mark.parametrize("database", ["sqlite"], indirect=True)
def test_the_file_gives_back_the_room_of_purged_rows_and_keeps_some_for_the_next(worker: Worker) -> None:
    size_full = _full_of_rows(worker)
    assert worker.purge(KEEP_NOTHING) == 10_000
    while worker.box.store.give_back():
        pass
    assert _pages(worker) < size_full / 4
    assert _pages(worker, "freelist_count") > 0


@pytest.mark.parametrize("database", ["sqlite"], indirect=True)
def test_the_room_of_rows_that_were_just_purged_is_there_for_the_next_ones(worker: Worker) -> None:
    size_full = _full_of_rows(worker)
    assert not worker.box.store.give_back()
    assert worker.purge(KEEP_NOTHING) == 10_000
    assert _full_of_rows(worker) <= size_full + 50, "a few for what is remembered of the purged batches"


def _full_of_rows(worker: Worker) -> int:
    """Deliver 10,000 rows, and let a second pass. The file's size in pages."""
    for _ in range(5):
        worker.put(2000)
    size = _pages(worker)
    worker.deliver_all()
    worker.clock.advance(seconds=1)
    return size


def _pages(worker: Worker, what: str = "page_count") -> int:
    [row] = worker.rows(text(f"PRAGMA {what}"))
    return int(row[0])
