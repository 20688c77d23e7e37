"""Purge deletes what was settled long enough ago, and nothing else."""

from __future__ import annotations

from dataclasses import replace

import pytest
from sqlalchemy import Engine, text

from outbox import Outbox
from outbox.core.lifecycle import Status
from tests.store.driving import DELIVERED, KEEP_NOTHING, REFUSED, UNAVAILABLE, Worker, usage


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
    tracer.box.store.shed(tracer.lane, 2, "too many")
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
    for _ in range(5):
        worker.put(2000)
    size_full = _pages(worker)
    worker.deliver_all()
    worker.clock.advance(seconds=1)
    assert worker.purge(KEEP_NOTHING) == 10_000
    assert _pages(worker) < size_full / 4
    assert _pages(worker, "freelist_count") > 0


def _pages(worker: Worker, what: str = "page_count") -> int:
    [row] = worker.rows(text(f"PRAGMA {what}"))
    return int(row[0])
