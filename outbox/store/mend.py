"""Mending: what the auditor does under the lane's lock about its findings.

A row whose number is used up is delivered under a new number unless it is *proven* to be a copy, brought back by a
restore, of a row that was delivered. The ledger does not keep the ids of purged rows, so the proof is by time: a copy
was written before its batch was cut, while a row that got the same number again was written after the purge. That
holds unless the clock was set back between cut and purge by more than the time between them. So a purge within
``CLOCK_ERROR`` of the cut proves nothing, nor does a row of the same instant (SQLite counts milliseconds), nor a batch
that ended in another way than delivered. In doubt an entry is sent twice: losing it would be worse.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from sqlalchemy import Row, delete, insert, select, update

from outbox.core import runs
from outbox.core.lifecycle import BatchState, Ending
from outbox.core.policy import MICROSECONDS
from outbox.core.runs import Runs
from outbox.store import holes
from outbox.store.audit import AuditReport, Findings, MissingRows, inspect
from outbox.store.ledger import LockedLane, add_to_totals, insert_batch
from outbox.store.schema import BATCH, LOGS
from outbox.store.settle import ended, payload_bytes

CLOCK_ERROR = 600 * MICROSECONDS
"""By how much (µs) the clocks of two servers, or one clock before and after it is set, may differ."""
ROWS_AT_ONCE = 200
"""Rows read at a time, with their payloads of up to 4 MiB."""


def mend_range(lane: LockedLane, lo: int, hi: int) -> tuple[AuditReport, MissingRows | None]:
    """Compare (lo, hi] again under the lane's lock, and bring strays back. Returns the counts and what is missing."""
    report, found = _bring_back_misplaced(lane, lo, hi)
    holes.revive(lane, found.forgotten)
    holes.record(lane, found.unaccounted, due_now=True)
    add_to_totals(lane, strays=found.strays)
    report.strays += found.strays
    report.missing += found.missing
    return report, found.missing_rows(lane.version)


def mend_below_floor(lane: LockedLane) -> AuditReport | None:
    """Bring back some rows at or below the floor, where every number is used up; None: there are none."""
    log = LOGS[lane.lane]
    below = select(log.c.seq).where(log.c.seq <= lane.floor).order_by(log.c.seq).limit(ROWS_AT_ONCE)
    numbers = lane.connection.execute(below).scalars().all()
    lane.untouched = not numbers
    return _bring_back(lane, runs.from_sorted(numbers)) if numbers else None


def give_up_missing(lane: LockedLane, lo: int, hi: int) -> AuditReport:
    """Let unfinished and dead batches go on with the members that are left; the missing ones are discarded and counted.

    A batch under a valid lease is left alone: it may be settled yet, or its lease expires.
    """
    report, found = _bring_back_misplaced(lane, lo, hi)
    for batch, gone in found.shrunken:
        if batch.state != BatchState.LEASED or batch.due_at <= lane.now:
            _split_off(lane, batch, gone)
            report.discarded += runs.count(gone)
    return report


def _bring_back_misplaced(lane: LockedLane, lo: int, hi: int) -> tuple[AuditReport, Findings]:
    """Move misplaced rows of (lo, hi] above the cursor. Returns the counts, and the findings in (lo, hi] after it."""
    lo, hi = max(lo, lane.floor), min(hi, lane.cursor)
    found = inspect(lane.connection, lane.lane, lo, hi)
    if not found.misplaced:
        return AuditReport(lane.lane), found
    report = _bring_back(lane, found.misplaced)
    return report, inspect(lane.connection, lane.lane, lo, hi)


def _bring_back(lane: LockedLane, misplaced: Runs) -> AuditReport:
    """Give the rows at these numbers new ones; delete proven copies. Rows that no longer exist are skipped."""
    report = AuditReport(lane.lane)
    log = LOGS[lane.lane]
    for numbers in _chunks(misplaced):
        query = select(log).where(log.c.seq.in_(numbers)).order_by(log.c.seq)
        rows = lane.connection.execute(query.with_for_update()).all()
        copies = _copies(lane, rows)
        again = [row for row in rows if row.seq not in copies]
        seen = [row.seq for row in rows]  # not ``numbers``: a row may have been committed at one of them since
        lane.connection.execute(delete(log).where(log.c.seq.in_(seen)))
        if again:
            columns = ("id", "payload", "size", "created_at")
            lane.connection.execute(insert(log), [{name: row._mapping[name] for name in columns} for row in again])
        add_to_totals(lane, strays=len(again))
        report.strays += len(again)
        report.renumbered += len(again)
        report.copies += len(copies)
    return report


def _chunks(members: Runs) -> Iterator[list[int]]:
    rest = members
    while rest:
        some, rest = runs.split(rest, ROWS_AT_ONCE)
        yield list(runs.numbers(some))


def _copies(lane: LockedLane, rows: Sequence[Row[Any]]) -> frozenset[int]:
    """The numbers of the rows that are proven to be copies of delivered ones."""
    if not rows:
        return frozenset()
    purged = select(BATCH).where(
        BATCH.c.lane == lane.key,
        BATCH.c.verdict == Ending.DELIVERED,
        BATCH.c.purged_at >= BATCH.c.created_at + CLOCK_ERROR,
        BATCH.c.last_seq >= rows[0].seq,
        BATCH.c.first_seq <= rows[-1].seq,
    )
    written = {row.seq: row.created_at for row in rows}
    present = runs.from_sorted(list(written))
    return frozenset(
        seq
        for batch in lane.connection.execute(purged)
        for seq in runs.numbers(runs.intersect(present, runs.decode(batch.members)))
        if written[seq] < batch.created_at
    )


def _split_off(lane: LockedLane, batch: Row[Any], gone: Runs) -> None:
    """Supersede the batch by two: one with the members left, which goes on as before, and one with the members
    ``gone``, which is discarded and purged.

    The Idempotency-Key stands for a set of entries, so another set gets another key. An expired lease counts as an
    attempt here too.
    """
    not_settled = {"verdict": None, "settled_at": None, "settled_version": None}
    lane.connection.execute(
        update(BATCH)
        .where(BATCH.c.id == batch.id)
        .values(state=BatchState.SUPERSEDED, lease_token=None, due_at=None, **not_settled)
    )
    crashed = batch.state == BatchState.LEASED
    history = {
        "attempts": batch.attempts + crashed,
        "ambiguous": bool(batch.ambiguous) or crashed,
        "root_id": batch.root_id,
    }
    left = runs.subtract(runs.decode(batch.members), gone)
    if left:
        columns = ("verdict", "due_at", "receipt", "last_error", "settled_at", "settled_version")
        went_on = {name: batch._mapping[name] for name in columns}
        went_on["state"] = BatchState.WAITING if crashed else batch.state
        went_on["crash_count"] = batch.crash_count + crashed
        insert_batch(lane, left, runs.count(left), payload_bytes(lane, left), **history, **went_on)
    if batch.verdict == Ending.REFUSED and batch.settled_version <= lane.folded_version:
        add_to_totals(lane, dead=-runs.count(gone))
    purged = {"due_at": None, "purged_at": lane.now, "last_error": "rows were gone from the log"}
    lost = ended(lane, Ending.DISCARDED) | purged
    insert_batch(lane, gone, runs.count(gone), 0, **history, **lost)
