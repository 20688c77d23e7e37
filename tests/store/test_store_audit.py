"""The auditor finds what nobody else would look at, and stops the lane rather than lose an entry."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
from sqlalchemy import Engine, delete, func, insert, select, text, update

from outbox import UsageInterval
from outbox.core import runs
from outbox.core.lane import LANES
from outbox.core.lifecycle import Status
from outbox.errors import DatabaseUnavailable
from outbox.store.audit import RANGE, AuditReport
from outbox.store.schema import BATCH, HOLE
from tests.store.driving import AMBIGUOUS, DELIVERED, KEEP_NOTHING, REFUSED, UNAVAILABLE, Worker, usage

servers = pytest.mark.parametrize("database", ["postgresql", "mariadb"], indirect=True)
HOUR = 3600


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
    report = worker.audit()
    assert (report.strays, report.missing, report.renumbered, report.problem) == (0, 0, 0, None)
    assert worker.batches() == before
    assert worker.status.state == "open"


def test_a_sound_ledger_is_not_read_batch_by_batch(worker: Worker, monkeypatch: pytest.MonkeyPatch) -> None:
    """There may be as many as entries: the memory of a worker does not hold them."""
    worker.policy(batch_max_rows=1)
    worker.put(5)
    for receipt in (REFUSED, DELIVERED, REFUSED, DELIVERED, UNAVAILABLE):
        worker.settle(worker.must_claim(), receipt)
    worker.clock.advance(seconds=HOUR)
    assert worker.purge() == 2
    worker.burn(8)
    worker.put(1)
    monkeypatch.setattr("outbox.store.audit._inspect_each", None)
    assert worker.audit() == AuditReport(worker.lane)
    worker.policy(batch_max_rows=2)
    worker.box.requeue()
    assert "1,3" in [batch.members for batch in worker.batches()]
    worker.must_claim()
    assert worker.audit() == AuditReport(worker.lane)


def test_a_stray_is_found_though_as_many_numbers_have_two_batches(worker: Worker) -> None:
    """Counted together the batches of 1 to 5 have five entries; nobody has the third."""
    put = worker.put(5)
    worker.deliver_all()
    worker.run(delete(BATCH))
    sent = {"state": "settled", "verdict": "delivered", "settled_at": worker.clock.now(), "settled_version": 1}
    for first, last in ((1, 2), (4, 5), (5, 5)):
        members = {"members": f"{first}-{last}", "first_seq": first, "last_seq": last, "entries": last - first + 1}
        worker.insert_batch(**sent, **members)
    assert worker.audit().strays == 1
    assert worker.deliver_all() == put[2:3]
    worker.run(delete(BATCH).where(BATCH.c.first_seq == 5))


def test_a_row_that_nothing_accounts_for_is_found_and_delivered(worker: Worker) -> None:
    worker.burn(5)
    worker.put(1)
    worker.deliver_all()
    worker.run(delete(HOLE))
    stray = worker.plant(3)
    assert worker.claim() is None, "nobody looks there"
    assert worker.audit().strays == 1
    assert worker.status.strays == 1
    assert worker.deliver_all() == [stray]
    assert worker.audit().strays == 0


def test_a_row_inside_a_forgotten_hole_is_found_and_delivered(worker: Worker) -> None:
    worker.burn(5)
    worker.put(1)
    worker.deliver_all()
    worker.clock.advance(seconds=worker.box.store.policy.hole_age_seconds + 1)
    assert worker.claim() is None
    assert worker.holes()[0].forgotten_at is not None
    stray = worker.plant(3)
    assert worker.audit().strays == 1
    assert worker.deliver_all() == [stray]


def test_a_sequence_set_back_stops_the_lane_and_mending_loses_nothing(worker: Worker) -> None:
    worker.put(6)
    worker.deliver_all()
    worker.purge()
    set_back(worker)
    between = worker.put(3)
    assert worker.claim() is None, "the numbers are below the cursor"
    report = worker.audit()
    assert report.problem is not None
    assert "outbox audit --mend --lane usage" in report.problem
    status = worker.status
    assert (status.state, status.reason, status.next_probe_seconds) == ("paused", report.problem, None)
    more = worker.put(1)
    assert worker.claim() is None, "a stopped lane sends nothing"
    mended = worker.audit(mend=True)
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
    assert worker.audit().missing == 1
    assert worker.status.state == "paused"
    mended = worker.audit(mend=True)
    assert (mended.discarded, mended.problem) == (1, None)
    assert worker.deliver_all() == [ids[0], ids[2]]


def test_a_batch_whose_rows_are_all_gone_is_given_up_whole(worker: Worker) -> None:
    worker.put(2)
    worker.settle(worker.must_claim(), UNAVAILABLE)
    worker.run(delete(worker.log))
    assert worker.audit().missing == 2
    mended = worker.audit(mend=True)
    assert (mended.discarded, mended.problem) == (2, None)
    assert (worker.status.state, worker.status.unfinished, worker.status.shed) == ("open", 0, 2)
    ids = worker.put(1)
    assert worker.deliver_all() == ids


def test_a_dead_letter_whose_row_is_gone_is_counted_once(worker: Worker) -> None:
    worker.put(1)
    worker.settle(worker.must_claim(), REFUSED)
    worker.fold_totals()
    worker.run(delete(worker.log))
    worker.audit(mend=True)
    worker.fold_totals()
    assert (worker.status.dead, worker.status.shed) == (0, 1)


def test_what_is_left_of_a_batch_goes_on_as_another_and_what_is_gone_is_shed(worker: Worker) -> None:
    ids = list(worker.box.put(usage(trace_count=1), usage(trace_count=12345), usage(trace_count=3)))
    worker.settle(worker.must_claim(), AMBIGUOUS)
    (parent,) = worker.batches("waiting")
    worker.run(delete(worker.log).where(worker.log.c.id == ids[1]))
    assert worker.audit(mend=True).discarded == 1
    (left,) = worker.batches("waiting")
    assert left.id != parent.id, "the key names a set of entries"
    assert (left.root_id, left.attempts, bool(left.ambiguous)) == (parent.id, 1, True)
    (size,) = worker.rows(select(func.sum(worker.log.c.size)))
    assert (left.entries, left.payload_bytes) == (2, size[0])
    for _ in range(2):
        assert (worker.status.waiting, worker.status.shed, worker.status.dead) == (2, 1, 0)
        worker.fold_totals()
    worker.due_now()
    assert worker.deliver_all() == [ids[0], ids[2]]
    assert (worker.status.sent, worker.status.shed, worker.status.unfinished) == (2, 1, 0)


def test_rows_missing_from_an_expired_lease_are_given_up_and_the_attempt_counts(worker: Worker) -> None:
    ids = worker.put(2)
    held = worker.must_claim()
    worker.run(delete(worker.log).where(worker.log.c.id == ids[0]))
    report = worker.audit(mend=True)
    assert (report.missing, report.discarded) == (1, 0), "it is on the wire"
    worker.clock.advance(seconds=worker.box.store.policy.lease_seconds + 1)
    assert worker.audit(mend=True).discarded == 1
    assert worker.settle(held, DELIVERED).lost == [held.id]
    view = worker.find(ids[1])
    assert (view.status, view.num_failed_send_attempts, view.maybe_delivered) == (Status.WAITING, 1, True)
    assert worker.deliver_all() == [ids[1]]


@pytest.mark.parametrize("folded", [True, False])
def test_a_dead_batch_that_lost_some_of_its_rows_keeps_the_others_dead(worker: Worker, folded: bool) -> None:
    (ours, theirs) = worker.put(2)
    for _ in range(3):
        worker.settle(worker.must_claim(), REFUSED)
    first, second = worker.batches("settled")
    worker.run(delete(BATCH).where(BATCH.c.id == second.id))
    whole = {"members": "1-2", "entries": 2, "last_seq": 2, "payload_bytes": 2 * first.payload_bytes}
    worker.run(update(BATCH).where(BATCH.c.id == first.id).values(whole))
    if folded:
        worker.fold_totals()
    assert worker.status.dead == 2
    worker.run(delete(worker.log).where(worker.log.c.id == theirs))
    assert worker.audit(mend=True).discarded == 1
    for _ in range(2):
        assert (worker.status.dead, worker.status.shed) == (1, 1)
        worker.fold_totals()
    assert worker.statuses([ours]) == [Status.DEAD]
    (left,) = [batch for batch in worker.batches("settled") if batch.verdict == "refused"]
    assert (left.entries, left.payload_bytes, left.settled_at) == (1, first.payload_bytes, first.settled_at)


def test_rows_put_back_after_they_were_given_up_are_delivered(worker: Worker) -> None:
    worker.put(1)
    worker.settle(worker.must_claim(), UNAVAILABLE)
    worker.run(delete(worker.log))
    worker.clock.advance(seconds=2 * HOUR)
    assert worker.audit(mend=True).discarded == 1
    back = worker.plant(1, created_at=1)
    report = worker.audit()
    assert (report.renumbered, report.copies) == (1, 0)
    assert worker.deliver_all() == [back]


def spent_number(worker: Worker, *, seconds_to_purge: float) -> tuple[int, int]:
    """The number of a purged batch above the floor, and when that batch was cut (µs)."""
    worker.policy(batch_max_rows=1, lease_seconds=2 * HOUR)
    worker.put(2)
    worker.must_claim()
    worker.settle(worker.must_claim(), DELIVERED)
    number = worker.seqs()[-1]
    worker.clock.advance(seconds=seconds_to_purge)
    assert worker.purge() == 1
    assert worker.row.floor < number, "the floor is held by the batch on the wire"
    (batch,) = worker.batches("settled")
    return number, batch.created_at


def test_a_reused_number_of_a_purged_batch_is_renumbered_and_delivered(worker: Worker) -> None:
    number, cut_at = spent_number(worker, seconds_to_purge=HOUR)
    stray = worker.plant(number, created_at=cut_at + 1)
    assert worker.audit().renumbered == 1
    assert worker.deliver_all() == [stray]
    assert worker.seqs()[-1] > number


@pytest.mark.parametrize(
    ("seconds_to_purge", "seconds_after_the_cut"),
    [(HOUR, 0), (60, -300)],
    ids=["in the microsecond of the cut", "soon after the clock was set back"],
)
def test_a_reused_number_is_not_taken_for_a_copy_where_the_clock_cannot_tell(
    worker: Worker, seconds_to_purge: float, seconds_after_the_cut: int
) -> None:
    number, cut_at = spent_number(worker, seconds_to_purge=seconds_to_purge)
    in_doubt = worker.plant(number, created_at=cut_at + seconds_after_the_cut * 1_000_000)
    report = worker.audit()
    assert (report.renumbered, report.copies) == (1, 0)
    assert worker.deliver_all() == [in_doubt]


def test_a_restored_copy_of_a_sent_entry_is_deleted_and_not_sent_again(worker: Worker) -> None:
    number, cut_at = spent_number(worker, seconds_to_purge=HOUR)
    worker.plant(number, created_at=cut_at - 1)
    report = worker.audit()
    assert (report.copies, report.renumbered, report.strays) == (1, 0, 0)
    assert (worker.claim(), worker.purge()) == (None, 0)
    assert number not in worker.seqs()
    assert (worker.status.sent, worker.status.strays) == (1, 0)


def plant_all(worker: Worker, numbers: Sequence[int], messages: Sequence[UsageInterval], *, created_at: int) -> None:
    rows = [
        {"seq": seq, "id": each.id, "payload": each.payload, "size": len(each.payload), "created_at": created_at}
        for seq, each in zip(numbers, messages, strict=True)
    ]
    with worker.box.store.database.write() as connection:
        connection.execute(insert(worker.log), rows)


def test_one_restored_copy_does_not_take_the_new_rows_of_its_batch_with_it(worker: Worker) -> None:
    worker.policy(batch_max_rows=1)
    (waiting,) = worker.put(1)
    held = worker.must_claim()
    worker.policy(batch_max_rows=2000)
    worker.put(1100)
    sent = worker.must_claim()
    assert sent.rows == 1100
    worker.settle(sent, DELIVERED)
    worker.clock.advance(seconds=HOUR)
    worker.settle(held, UNAVAILABLE)
    assert worker.purge() == 1100
    numbers = list(runs.numbers(sent.members))
    worker.plant(numbers[0], created_at=1)
    new = [usage() for _ in numbers[1:]]
    rows = [
        {
            "seq": seq,
            "id": each.id,
            "payload": each.payload,
            "size": len(each.payload),
            "created_at": worker.clock.now(),
        }
        for seq, each in zip(numbers[1:], new, strict=True)
    ]
    with worker.box.store.database.write() as connection:
        connection.execute(insert(worker.log), rows)
    report = worker.audit()
    assert (report.copies, report.renumbered) == (1, 1099)
    assert worker.purge() == 0
    worker.due_now()
    assert worker.deliver_all() == [waiting, *(each.id for each in new)], "in the order that they had"


def test_a_copy_below_the_floor_is_known_as_long_as_its_receipt_is_kept(worker: Worker) -> None:
    worker.put(1)
    worker.deliver_all()
    worker.clock.advance(seconds=HOUR)
    worker.box.store.purge(worker.lane, replace(KEEP_NOTHING, receipts_seconds=HOUR))
    assert worker.row.floor == 1
    worker.plant(1, created_at=1)
    assert worker.audit().copies == 1
    assert (worker.claim(), worker.seqs()) == (None, [])
    worker.clock.advance(seconds=2 * HOUR)
    worker.purge()
    in_doubt = worker.plant(1, created_at=1)
    assert worker.audit().renumbered == 1
    assert worker.deliver_all() == [in_doubt]


def test_rows_below_the_floor_are_renumbered_and_delivered(worker: Worker) -> None:
    worker.put(3)
    worker.deliver_all()
    worker.purge()
    stray = worker.plant(1)
    assert worker.audit().renumbered == 1
    assert worker.deliver_all() == [stray]


@pytest.mark.parametrize("at_a_time", [RANGE, 2])
def test_rows_written_over_a_truncated_log_are_delivered_though_their_numbers_say_sent(
    worker: Worker, monkeypatch: pytest.MonkeyPatch, at_a_time: int
) -> None:
    """All is compared at a time, or the newest numbers, whose rows are gone, apart from those that look whole."""
    monkeypatch.setattr("outbox.store.audit.RANGE", at_a_time)
    worker.policy(batch_max_rows=2)
    worker.box.store.clock = None
    worker.put(6)
    worker.deliver_all()
    worker.run(delete(worker.log))
    set_back(worker)
    over = worker.put(3)
    assert worker.statuses(over) == [Status.SENT] * 3, "so it seems"
    assert "sequence" in str(worker.audit().problem)
    assert worker.purge() == 0, "a stopped lane deletes nothing"
    mended = worker.audit(mend=True)
    assert (mended.problem, mended.renumbered) == (None, 3)
    assert sorted(worker.deliver_all()) == sorted(over)
    assert worker.audit().renumbered == 0
    worker.purge()  # the batches that lost their rows to the truncation


def test_a_lane_stays_stopped_until_what_was_written_over_older_numbers_is_brought_back(worker: Worker) -> None:
    worker.policy(batch_max_rows=2)
    worker.box.store.clock = None
    worker.put(6)
    worker.deliver_all()
    worker.run(delete(worker.log))
    set_back(worker)
    over = worker.put(2)
    reason = worker.audit().problem
    worker.burn(6)  # the operator advances the sequence by hand
    assert worker.box.store.audit(worker.lane, newest=1).problem == reason
    assert worker.status.state == "paused"
    after = worker.audit()
    assert (after.problem, after.renumbered, worker.status.state) == (None, 2, "open")
    assert worker.deliver_all() == over
    worker.purge()


def test_a_row_written_over_a_dead_letter_is_delivered_and_the_dead_letter_given_up(worker: Worker) -> None:
    worker.box.store.clock = None
    worker.put(1)
    worker.settle(worker.must_claim(), REFUSED)
    worker.put(1)
    worker.deliver_all()
    worker.run(delete(worker.log))
    set_back(worker)
    over = worker.put(1)
    mended = worker.audit(mend=True)
    assert (mended.renumbered, mended.discarded, mended.problem) == (1, 1, None)
    assert worker.deliver_all() == over
    assert (worker.status.dead, worker.status.shed, worker.status.sent) == (0, 1, 2)
    worker.purge()


def test_a_clock_set_back_before_the_settlement_makes_nothing_sent_twice(worker: Worker) -> None:
    ids = worker.put(2)
    worker.clock.advance(seconds=-2 * HOUR)
    assert worker.deliver_all() == ids
    settled_at = worker.find(ids[0]).settled_at
    assert settled_at is not None
    assert worker.find(ids[0]).created_at > settled_at
    assert worker.audit().renumbered == 0
    assert worker.claim() is None


def test_an_audit_of_the_newest_numbers_does_not_open_a_lane_that_is_stopped_for_older_ones(worker: Worker) -> None:
    worker.policy(batch_max_rows=1)
    ids = worker.put(2)
    worker.settle(worker.must_claim(), UNAVAILABLE)
    worker.settle(worker.must_claim(), DELIVERED)
    worker.run(delete(worker.log).where(worker.log.c.id == ids[0]))
    assert worker.audit().problem is not None
    newest = worker.box.store.audit(worker.lane, newest=1)
    assert (newest.missing, worker.status.state) == (0, "paused")
    assert newest.problem == worker.status.reason
    worker.audit(mend=True)
    assert worker.status.state == "open"


def test_a_thousand_strays_scattered_among_burnt_numbers_are_delivered(worker: Worker) -> None:
    worker.burn(3000)
    worker.put(1)
    worker.deliver_all()
    worker.run(delete(HOLE))
    messages = [usage() for _ in range(1200)]
    plant_all(worker, range(1, 2401, 2), messages, created_at=1)
    assert worker.audit().strays == 1200
    batch = worker.must_claim()
    worker.settle(batch, REFUSED)
    halves = worker.batches("waiting")
    assert sum(half.payload_bytes for half in halves) == batch.payload_bytes
    assert sorted(worker.deliver_all()) == sorted(each.id for each in messages)


def advance(worker: Worker, beyond: int) -> None:
    with worker.box.store.database.write() as connection:
        worker.box.store.database.dialect.advance_sequence(connection, LANES[worker.lane].table, beyond)


def position(worker: Worker) -> int:
    with worker.box.store.database.read() as connection:
        return worker.box.store.database.dialect.sequence_position(connection, LANES[worker.lane].table)


def test_advancing_the_sequence_never_sets_it_back(worker: Worker) -> None:
    worker.put(5)
    worker.run(delete(worker.log).where(worker.log.c.seq < 5))
    advance(worker, 2)
    assert position(worker) >= 5
    worker.put(1)
    assert worker.seqs() == [5, 6]
    advance(worker, 20)
    worker.put(1)
    assert worker.seqs() == [5, 6, 21]


@servers
def test_advancing_waits_a_moment_for_open_transactions_and_then_gives_way(worker: Worker, engine: Engine) -> None:
    worker.put(1)
    with engine.begin() as producer:
        worker.box.enqueue(producer, usage())
        with pytest.raises(DatabaseUnavailable, match=r"(?i)lock"):
            advance(worker, 20)
        worker.box.enqueue(producer, usage())
    assert worker.seqs() == [1, 2, 3]
    advance(worker, 20)
    worker.put(1)
    assert worker.seqs() == [1, 2, 3, 21]


@pytest.mark.parametrize("database", ["mariadb"], indirect=True)
def test_mysql_is_told_not_to_answer_from_its_cache_of_statistics(
    worker: Worker, monkeypatch: pytest.MonkeyPatch
) -> None:
    driver: Any = worker.box.store.database.engine.dialect
    worker.put(3)
    assert position(worker) == 3
    monkeypatch.setattr(driver, "is_mariadb", False)
    with pytest.raises(DatabaseUnavailable, match="information_schema_stats_expiry"):
        position(worker)
