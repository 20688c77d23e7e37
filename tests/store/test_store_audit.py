"""The auditor finds what nobody else would look at, and stops the lane rather than lose an entry."""

from __future__ import annotations

from typing import Any

from sqlalchemy import delete, text

from outbox.core.lifecycle import Status
from outbox.store.audit import AuditReport
from outbox.store.schema import HOLE
from tests.store.driving import DELIVERED, REFUSED, UNAVAILABLE, Worker


def audit(worker: Worker, **options: Any) -> AuditReport:
    (report,) = worker.box.audit(worker.lane, **options)
    return report


def set_back(worker: Worker) -> None:
    """The next number is 1 again, as after a restore or TRUNCATE ... RESTART IDENTITY."""
    table = worker.log.name
    statement = {
        "sqlite": f"UPDATE sqlite_sequence SET seq = 0 WHERE name = '{table}'",
        "postgresql": f"ALTER SEQUENCE {table}_seq_seq RESTART WITH 1",
        "mysql": f"ALTER TABLE {table} AUTO_INCREMENT = 1",
    }[worker.box.store.database.dialect.name]
    worker.run(text(statement))


def test_a_sound_ledger_is_left_alone(worker: Worker) -> None:
    worker.policy(batch_max_rows=1)
    worker.put(4)
    for receipt in (DELIVERED, UNAVAILABLE, REFUSED):
        worker.settle(worker.must_claim(), receipt)
    before = worker.batches()
    report = audit(worker)
    assert (report.strays, report.missing, report.renumbered, report.problem) == (0, 0, 0, None)
    assert worker.batches() == before
    assert worker.status.state == "open"


def test_a_row_that_nothing_accounts_for_is_found_and_delivered(worker: Worker) -> None:
    worker.burn(5)
    worker.put(1)
    worker.deliver_all()
    worker.run(delete(HOLE))
    stray = worker.plant(3)
    assert worker.claim() is None, "nobody looks there"
    assert audit(worker).strays == 1
    assert worker.status.strays == 1
    assert worker.deliver_all() == [stray]
    assert audit(worker).strays == 0


def test_a_row_inside_a_forgotten_hole_is_found_and_delivered(worker: Worker) -> None:
    worker.burn(5)
    worker.put(1)
    worker.deliver_all()
    worker.clock.advance(seconds=worker.box.store.policy.hole_age_seconds + 1)
    assert worker.claim() is None
    assert worker.holes()[0].forgotten_at is not None
    stray = worker.plant(3)
    assert audit(worker).strays == 1
    assert worker.deliver_all() == [stray]


def test_a_sequence_set_back_stops_the_lane_and_mending_loses_nothing(worker: Worker) -> None:
    worker.put(6)
    worker.deliver_all()
    worker.purge()
    set_back(worker)
    between = worker.put(3)
    assert worker.claim() is None, "the numbers are below the cursor"
    report = audit(worker)
    assert report.problem is not None
    assert "outbox audit --mend --lane usage" in report.problem
    status = worker.status
    assert (status.state, status.reason, status.next_probe_seconds) == ("paused", report.problem, None)
    more = worker.put(1)
    assert worker.claim() is None, "a stopped lane sends nothing"
    mended = audit(worker, mend=True)
    assert (mended.problem, mended.renumbered) == (None, 4)
    assert worker.status.state == "open"
    after = worker.put(1)
    assert sorted(worker.deliver_all()) == sorted([*between, *more, *after])
    assert min(worker.seqs()) > 6


def test_rows_deleted_from_a_waiting_batch_stop_the_lane_until_they_are_given_up(worker: Worker) -> None:
    ids = worker.put(3)
    worker.settle(worker.must_claim(), UNAVAILABLE)
    worker.run(delete(worker.log).where(worker.log.c.id == ids[1]))
    worker.due_now()
    assert worker.claim() is None
    status = worker.status
    assert (status.state, status.next_probe_seconds) == ("paused", None)
    assert "outbox audit --mend --lane usage" in str(status.reason)
    assert audit(worker).missing == 1
    assert worker.status.state == "paused"
    mended = audit(worker, mend=True)
    assert (mended.discarded, mended.problem) == (1, None)
    assert worker.deliver_all() == [ids[0], ids[2]]


def test_a_batch_whose_rows_are_all_gone_is_given_up_whole(worker: Worker) -> None:
    worker.put(2)
    worker.settle(worker.must_claim(), UNAVAILABLE)
    worker.run(delete(worker.log))
    assert audit(worker).missing == 2
    mended = audit(worker, mend=True)
    assert (mended.discarded, mended.problem) == (2, None)
    assert (worker.status.state, worker.status.unfinished, worker.status.shed) == ("open", 0, 2)
    ids = worker.put(1)
    assert worker.deliver_all() == ids


def test_a_dead_letter_whose_row_is_gone_is_counted_once(worker: Worker) -> None:
    worker.put(1)
    worker.settle(worker.must_claim(), REFUSED)
    worker.box.store.fold_totals(worker.lane)
    worker.run(delete(worker.log))
    audit(worker, mend=True)
    worker.box.store.fold_totals(worker.lane)
    assert (worker.status.dead, worker.status.shed) == (0, 1)


def test_a_reused_number_of_a_purged_batch_is_renumbered_and_delivered(worker: Worker) -> None:
    worker.policy(batch_max_rows=2)
    waiting = worker.put(2)
    worker.put(2)
    held = worker.must_claim()
    worker.settle(worker.must_claim(), DELIVERED)
    reused = worker.seqs()[-1]
    assert worker.purge() == 2
    assert worker.row.floor < reused, "the floor is not held"
    stray = worker.plant(reused, created_at=worker.clock.now() + 1)
    assert audit(worker).renumbered == 1
    assert worker.deliver_all() == [stray]
    assert worker.seqs()[-1] > reused
    worker.settle(held, DELIVERED)
    assert worker.statuses(waiting) == [Status.SENT] * 2


def test_a_restored_copy_of_a_sent_entry_is_purged_and_not_sent_again(worker: Worker) -> None:
    worker.policy(batch_max_rows=1)
    worker.put(2)
    held = worker.must_claim()
    worker.settle(worker.must_claim(), DELIVERED)
    number = worker.seqs()[-1]
    worker.purge()
    worker.plant(number, created_at=1)
    assert audit(worker).renumbered == 0
    assert worker.claim() is None
    assert worker.purge() == 1
    assert worker.status.sent == 1
    worker.settle(held, DELIVERED)


def test_rows_below_the_floor_are_renumbered_and_delivered(worker: Worker) -> None:
    worker.put(3)
    worker.deliver_all()
    worker.purge()
    stray = worker.plant(1)
    assert audit(worker).renumbered == 1
    assert worker.deliver_all() == [stray]
