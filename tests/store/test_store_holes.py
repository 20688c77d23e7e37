"""Numbers that were not there when a claim looked: late commits are delivered, rollbacks are forgotten in time."""

from __future__ import annotations

import pytest
from sqlalchemy import Engine, select

from outbox.core.lifecycle import Status
from tests.store.driving import DELIVERED, Worker, usage

several_writers = pytest.mark.parametrize("database", ["postgresql", "mariadb"], indirect=True)
postgresql = pytest.mark.parametrize("database", ["postgresql"], indirect=True)
mariadb = pytest.mark.parametrize("database", ["mariadb"], indirect=True)


@several_writers
def test_who_takes_a_number_first_and_commits_last_is_delivered(worker: Worker, engine: Engine) -> None:
    late = usage()
    with engine.begin() as connection:
        worker.box.enqueue(connection, late)
        early = worker.put(3)
        assert worker.deliver_all() == early
        assert [(hole.lo, hole.hi) for hole in worker.holes()] == [(worker.seqs()[0] - 1,) * 2]
        assert worker.claim() is None
    assert worker.status.pending == 1
    assert worker.deliver_all() == [late.id]
    assert worker.holes() == []


@several_writers
def test_a_late_commit_is_delivered_though_later_entries_are_purged(worker: Worker, engine: Engine) -> None:
    late = usage()
    with engine.begin() as connection:
        worker.box.enqueue(connection, late)
        worker.put(2)
        worker.deliver_all()
        assert worker.purge() == 2
        assert worker.row.floor < worker.row.cursor, "the floor rose above a number that may still come"
    assert worker.deliver_all() == [late.id]
    worker.purge()
    assert worker.row.floor == worker.row.cursor


@several_writers
def test_a_rolled_back_entry_is_never_sent(worker: Worker, engine: Engine) -> None:
    gone = usage()
    with engine.connect() as connection:
        worker.box.enqueue(connection, gone)
        sent = worker.put(2)
        assert worker.deliver_all() == sent
        connection.rollback()
    assert worker.deliver_all() == []
    assert worker.box.find(gone.id) is None


@postgresql
def test_an_open_transaction_keeps_its_hole_and_its_end_lets_it_go(worker: Worker, engine: Engine) -> None:
    with engine.connect() as connection:
        worker.box.enqueue(connection, usage())
        worker.put(1)
        worker.deliver_all()
        for _ in range(5):
            worker.clock.advance(seconds=10_000)
            assert worker.claim() is None
        (hole,) = worker.holes()
        assert hole.forgotten_at is None
        connection.rollback()
    assert worker.claim() is None
    assert [hole.forgotten_at is not None for hole in worker.holes()] == [True]
    worker.purge()
    assert worker.holes() == []
    assert worker.row.floor == worker.row.cursor


@postgresql
def test_a_later_transaction_does_not_keep_an_older_hole(worker: Worker, engine: Engine) -> None:
    with engine.connect() as old, engine.connect() as young:
        worker.box.enqueue(old, usage())
        worker.put(1)
        worker.deliver_all()
        assert worker.claim() is None
        worker.box.enqueue(young, usage())
        old.rollback()
        assert worker.claim() is None
        assert [hole.forgotten_at is not None for hole in worker.holes()] == [True]
        young.commit()
    assert len(worker.deliver_all()) == 1


@mariadb
def test_where_the_database_cannot_tell_a_hole_is_forgotten_by_age(worker: Worker, engine: Engine) -> None:
    with engine.connect() as connection:
        worker.box.enqueue(connection, usage())
        worker.put(1)
        worker.deliver_all()
        connection.rollback()
    assert worker.claim() is None
    assert worker.holes()[0].forgotten_at is None
    worker.clock.advance(seconds=worker.box.store.policy.hole_age_seconds + 1)
    assert worker.claim() is None
    assert worker.holes()[0].forgotten_at is not None


@several_writers
def test_a_claim_waits_a_moment_before_a_young_gap(worker: Worker) -> None:
    before = worker.put(2)
    worker.burn(10)
    after = worker.put(2)
    worker.policy(young_hole_seconds=5)
    (written,) = worker.rows(select(worker.log.c.created_at).where(worker.log.c.id == after[0]))
    worker.box.store.clock = lambda: written.created_at + 1
    first = worker.must_claim()
    assert worker.ids(first) == before
    assert worker.claim() is None
    assert worker.holes() == []
    worker.box.store.clock = lambda: written.created_at + 6_000_000
    second = worker.must_claim()
    assert worker.ids(second) == after
    assert len(worker.holes()) == 1
    for batch in (first, second):
        worker.settle(batch, DELIVERED)


def test_burnt_numbers_are_stepped_over_and_forgotten(worker: Worker) -> None:
    ids = worker.put(1)
    worker.burn(10)
    ids += worker.put(1)
    assert worker.deliver_all() == ids
    assert [(hole.lo, hole.hi) for hole in worker.holes()] == [(worker.seqs()[0] + 1, 10)]
    worker.clock.advance(seconds=worker.box.store.policy.hole_age_seconds + 1)
    assert worker.claim() is None
    worker.purge()
    assert worker.holes() == []


def test_a_row_in_the_middle_of_a_hole_leaves_a_hole_on_either_side(worker: Worker) -> None:
    worker.burn(9)
    worker.put(1)
    worker.settle(worker.must_claim(), DELIVERED)
    assert [(hole.lo, hole.hi) for hole in worker.holes()] == [(1, 9)]
    late = worker.plant(5)
    assert worker.ids(worker.must_claim()) == [late]
    assert [(hole.lo, hole.hi) for hole in worker.holes()] == [(1, 4), (6, 9)]


@postgresql
def test_copy_counts_every_row_and_every_duplicate(worker: Worker) -> None:
    messages = [usage() for _ in range(1500)]
    assert worker.box.put(*messages[:300]).duplicates == 0
    assert worker.box.put(*messages[:1000], *messages[:10]).duplicates == 310
    assert worker.box.put(*messages).duplicates == 1000
    assert worker.box.put(*(usage() for _ in range(1000))).duplicates == 0
    assert worker.status.pending == 2500
    assert len(set(worker.deliver_all())) == 2500


def test_duplicates_are_not_added_again(worker: Worker) -> None:
    messages = [usage() for _ in range(5)]
    assert worker.box.put(*messages[:2], messages[0]).duplicates == 1
    assert worker.box.put(*messages).duplicates == 2
    assert worker.deliver_all() == [message.id for message in messages]
    assert worker.box.put(*messages).duplicates == 5
    assert worker.statuses([message.id for message in messages]) == [Status.SENT] * 5
