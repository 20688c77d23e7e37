"""The auditor: looks again where nobody else would.

A number at or below the cursor is looked at only through its batch or its hole. So a row that got there by
another way (a hole row deleted by hand, an explicit seq, a sequence set back, a table restored) would wait for
ever. The auditor compares the rows present with the ledger, range by range:

    a number that nothing accounts for, or a row inside a forgotten hole   -> a hole again, so it is delivered
    a row whose number is spent (its batch is purged, or it is below the floor)
        written after that batch was cut: a reused number                  -> renumbered above the cursor
        written before: a restored copy of a delivered row                 -> purged again
    the sequence stands below the cursor                                   -> the lane stops until it is mended
    a batch that is not delivered has lost rows                            -> the lane stops until it is mended
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import Connection, Row, delete, func, insert, select, text, update

from outbox.core import runs
from outbox.core.health import Health, LaneState
from outbox.core.lane import LANES, Lane
from outbox.core.lifecycle import BatchState, Ending
from outbox.core.runs import Runs
from outbox.store import holes
from outbox.store.dialects import dialect_of
from outbox.store.ledger import LockedLane, add_to_totals
from outbox.store.schema import BATCH, HOLE, LANE, LOGS
from outbox.store.settle import ended

RANGE = 100_000
"""Numbers compared at a time."""
RENUMBERED_AT_ONCE = 1000


@dataclass(slots=True)
class AuditReport:
    """What an audit of one lane found. Counts of entries."""

    lane: Lane
    strays: int = 0
    """Rows that nobody would have looked at; they are delivered now."""
    renumbered: int = 0
    """Of these, rows that had to take a new number."""
    missing: int = 0
    """Entries of unfinished batches whose row is gone."""
    discarded: int = 0
    """Of these, entries that mending gave up."""
    problem: str | None = None
    """Why the lane is stopped, and how to mend it."""


@dataclass(slots=True)
class Findings:
    """One range of one lane, compared."""

    present: Runs
    unaccounted: Runs = ()
    forgotten: Runs = ()
    """Present rows inside forgotten holes."""
    spent: Runs = ()
    """Present rows whose batch is purged."""
    shrunken: list[tuple[Row[Any], Runs]] = field(default_factory=list)
    """Unfinished batches, and the members whose rows are gone."""

    @property
    def clean(self) -> bool:
        return not (self.unaccounted or self.forgotten or self.spent or self.shrunken)

    @property
    def strays(self) -> int:
        return runs.count(runs.intersect(self.present, self.unaccounted)) + runs.count(self.forgotten)


def ranges(connection: Connection, lane: Lane, newest: int | None = None) -> Iterator[tuple[int, int]]:
    """The ranges (lo, hi] of the ledger, newest first; only the ``newest`` numbers when given."""
    row = connection.execute(select(LANE.c.floor, LANE.c.cursor).where(LANE.c.lane == str(lane))).one()
    lowest = row.floor if newest is None else max(row.floor, row.cursor - newest)
    hi = row.cursor
    while hi > lowest:
        lo = max(lowest, hi - RANGE)
        yield lo, hi
        hi = lo


def inspect(connection: Connection, lane: Lane, lo: int, hi: int) -> Findings:
    """Compare the rows numbered (lo, hi] with the ledger. Rows are read first: a purge in between hides nothing."""
    whole: Runs = ((lo + 1, hi),)
    found = Findings(_present(connection, lane, lo, hi))
    batches = connection.execute(
        select(BATCH).where(
            BATCH.c.lane == str(lane),
            BATCH.c.last_seq > lo,
            BATCH.c.first_seq <= hi,
            BATCH.c.state != BatchState.SUPERSEDED,
        )
    ).all()
    kept: list[tuple[int, int]] = []
    purged: list[tuple[int, int]] = []
    for batch in batches:
        members = runs.intersect(runs.decode(batch.members), whole)
        (kept if batch.purged_at is None else purged).extend(members)
        gone = runs.subtract(members, found.present)
        if gone and batch.purged_at is None and batch.verdict in (None, Ending.REFUSED):
            found.shrunken.append((batch, gone))
    overlapping = select(HOLE).where(HOLE.c.lane == str(lane), HOLE.c.hi > lo, HOLE.c.lo <= hi)
    all_holes = connection.execute(overlapping).all()
    inside = runs.union((hole.lo, hole.hi) for hole in all_holes)
    forgotten = runs.union((hole.lo, hole.hi) for hole in all_holes if hole.forgotten_at is not None)
    found.unaccounted = runs.subtract(whole, runs.union([*kept, *purged, *inside]))
    found.forgotten = runs.intersect(found.present, forgotten)
    found.spent = runs.intersect(found.present, runs.union(purged))
    return found


def _present(connection: Connection, lane: Lane, lo: int, hi: int) -> Runs:
    """Runs of the numbers present in (lo, hi]: islands, found by the database."""
    islands = text(
        "SELECT min(seq), max(seq) FROM (SELECT seq, seq - row_number() OVER (ORDER BY seq) AS island"  # noqa: S608
        f" FROM {LANES[lane].table} WHERE seq > :lo AND seq <= :hi) AS numbered GROUP BY island ORDER BY 1"
    )
    return tuple((int(a), int(b)) for a, b in connection.execute(islands, {"lo": lo, "hi": hi}))


def mend_range(lane: LockedLane, lo: int, hi: int, report: AuditReport) -> None:
    """Bring back the strays of one range, looked at again under the lane's lock."""
    found = inspect(lane.connection, lane.lane, max(lo, lane.floor), min(hi, lane.cursor))
    report.strays += found.strays
    report.missing += sum(runs.count(gone) for _, gone in found.shrunken)
    holes.revive(lane, found.forgotten)
    holes.record(lane, found.unaccounted, due_now=True)
    renumbered = _renumber_spent(lane, found.spent) if found.spent else 0
    report.renumbered += renumbered
    report.strays += renumbered
    add_to_totals(lane, strays=found.strays + renumbered)


def mend_below_floor(lane: LockedLane, report: AuditReport) -> int:
    """Renumber some rows at or below the floor; how many. Their numbers were spent long ago."""
    log = LOGS[lane.lane]
    below = select(log.c.seq).where(log.c.seq <= lane.floor).order_by(log.c.seq).limit(RENUMBERED_AT_ONCE)
    numbers = list(lane.connection.execute(below).scalars())
    moved = _renumber(lane, numbers)
    report.strays += moved
    report.renumbered += moved
    add_to_totals(lane, strays=moved)
    return moved


def _renumber_spent(lane: LockedLane, spent: Runs) -> int:
    log = LOGS[lane.lane]
    reused: list[int] = []
    purged = (BATCH.c.lane == lane.key, BATCH.c.purged_at.is_not(None))
    spanning = (BATCH.c.last_seq >= spent[0][0], BATCH.c.first_seq <= spent[-1][1])
    for batch in lane.connection.execute(select(BATCH).where(*purged, *spanning)).all():
        back = list(runs.numbers(runs.intersect(spent, runs.decode(batch.members))))[:RENUMBERED_AT_ONCE]
        if not back:
            continue
        written = select(log.c.seq, log.c.created_at).where(log.c.seq.in_(back))
        rows = lane.connection.execute(written).all()
        later = [row.seq for row in rows if row.created_at > batch.created_at]
        reused += later
        if len(later) < len(rows):  # restored copies of delivered rows
            again = update(BATCH).where(BATCH.c.id == batch.id).values(purged_at=None, due_at=batch.settled_at)
            lane.connection.execute(again)
    return _renumber(lane, reused)


def _renumber(lane: LockedLane, numbers: list[int]) -> int:
    """Give these rows new numbers at the end of the log. Rows that are gone by now are left out."""
    log = LOGS[lane.lane]
    columns = (log.c.id, log.c.payload, log.c.size, log.c.created_at)
    rows = lane.connection.execute(select(*columns).where(log.c.seq.in_(numbers)).with_for_update()).all()
    if not rows:
        return 0
    lane.connection.execute(delete(log).where(log.c.seq.in_(numbers)))
    lane.connection.execute(insert(log), [dict(row._mapping) for row in rows])
    return len(rows)


def contradiction(lane: LockedLane, report: AuditReport) -> str | None:
    """Why the lane must not go on, and how to mend it; None when the log and the ledger agree."""
    table = LANES[lane.lane].table
    dialect = dialect_of(lane.connection)
    position = dialect.sequence_position(lane.connection, table)
    if position < lane.cursor:
        return (
            f"the sequence of {table} stands at {position}, below the cursor {lane.cursor}: new rows would get numbers"
            f" where nobody looks (a restore, TRUNCATE or setval). Run: outbox audit --mend --lane {lane.lane}"
            f" (or: {dialect.advance_sequence_sql(table, lane.cursor)})"
        )
    if report.missing:
        return (
            f"{report.missing} entries that were not delivered are gone from {table}: deleted, or the table was"
            f" restored. Put the rows back, or give them up with: outbox audit --mend --lane {lane.lane}"
        )
    return None


def judge_sequence(lane: LockedLane, report: AuditReport) -> None:
    """Stop the lane when its sequence was set back. Looked at first: renumbering would only make it worse."""
    before = report.missing
    report.missing = 0
    report.problem = contradiction(lane, report)
    report.missing = before
    if report.problem and lane.health.state is not LaneState.OFF:
        lane.health = Health(LaneState.PAUSED, report.problem)


def judge(lane: LockedLane, report: AuditReport) -> None:
    """Stop the lane at a contradiction; open it again when it is mended."""
    report.problem = contradiction(lane, report)
    if report.problem and lane.health.state is not LaneState.OFF:
        lane.health = Health(LaneState.PAUSED, report.problem)
    elif lane.health.stopped:
        lane.health = Health()


def highest_number(lane: LockedLane) -> int:
    log = LOGS[lane.lane]
    return max(lane.cursor, lane.connection.execute(select(func.max(log.c.seq))).scalar() or 0)


def give_up_missing(lane: LockedLane, lo: int, hi: int, report: AuditReport) -> None:
    """Batches go on with the members that are left; what is gone is counted."""
    for batch, gone in inspect(lane.connection, lane.lane, lo, hi).shrunken:
        if batch.state == BatchState.LEASED and batch.due_at > lane.now:
            continue  # on the wire: its settlement or its expiry comes first
        left = runs.subtract(runs.decode(batch.members), gone)
        report.discarded += runs.count(gone)
        if left:
            values: dict[str, Any] = {
                "members": runs.encode(left),
                "first_seq": left[0][0],
                "last_seq": left[-1][1],
                "entries": runs.count(left),
            }
            holes.record_forgotten(lane, gone)
        else:  # no row is left to delete: it is purged already
            values = ended(lane, Ending.DISCARDED) | {
                "purged_at": lane.now,
                "last_error": "rows were gone from the log",
            }
        if batch.verdict == Ending.REFUSED and batch.settled_version <= lane.folded_version:
            add_to_totals(lane, dead=-runs.count(gone))
        lane.connection.execute(update(BATCH).where(BATCH.c.id == batch.id).values(values))
