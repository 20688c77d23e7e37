"""The auditor: looks again where nobody else would.

A number at or below the cursor is looked at only through its batch or its hole. So a row that got there by
another way (a hole row deleted by hand, an explicit seq, a sequence set back, a table restored) would wait for
ever. The auditor compares the rows present with the ledger, range by range:

    a number that nothing accounts for, or a row inside a forgotten hole   -> a hole again, so it is delivered
    a row whose number is spent (its batch is purged, or it is below the floor), or whose batch was settled before
    it was written, in a log that lost rows                                -> renumbered above the cursor
        unless it is proven to be a restored copy of a delivered row       -> deleted again
    the sequence stands below the cursor                                   -> the lane stops until it is mended
    a batch that is not delivered has lost rows                            -> the lane stops until it is mended

Here is what looks and judges; ``mend`` brings back, and ``auditor`` runs the one and the other.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import ColumnElement, Connection, Row, func, select, text

from outbox.core import runs
from outbox.core.health import Health, LaneState
from outbox.core.lane import LANES, Lane
from outbox.core.lifecycle import BatchState, Ending
from outbox.core.runs import Runs
from outbox.store.dialects import dialect_of
from outbox.store.ledger import LockedLane
from outbox.store.schema import BATCH, HOLE, LANE, LOGS

Span = tuple[int, int]
Conditions = Sequence[ColumnElement[bool]]

RANGE = 100_000
"""Numbers compared at a time."""


@dataclass(slots=True)
class AuditReport:
    """What an audit of one lane found. Counts of entries."""

    lane: Lane
    strays: int = 0
    """Rows that nobody would have looked at; they are delivered now."""
    renumbered: int = 0
    """Of these, rows that had to take a new number."""
    copies: int = 0
    """Rows that a restore brought back although they were delivered; deleted again."""
    missing: int = 0
    """Entries of unfinished batches whose row is gone."""
    discarded: int = 0
    """Entries that were missing and that mending gave up; ``shed`` in the lane's status."""
    problem: str | None = None
    """Why the lane is stopped, and how to mend it."""

    def add(self, move: AuditReport) -> None:
        """What one move under the lane's lock found and did. It may have run again: only what it committed counts."""
        self.strays += move.strays
        self.renumbered += move.renumbered
        self.copies += move.copies
        self.missing += move.missing
        self.discarded += move.discarded


@dataclass(slots=True)
class Findings:
    """One range of one lane, compared."""

    present: Runs
    unaccounted: Runs = ()
    forgotten: Runs = ()
    """Present rows inside forgotten holes."""
    spent: Runs = ()
    """Present rows whose batch is purged."""
    overwritten: Runs = ()
    """Present rows of settled batches that were written after the settlement: not what the batch was settled for."""
    shrunken: list[tuple[Row[Any], Runs]] = field(default_factory=list)
    """Unfinished batches, and the members whose rows are gone."""

    @property
    def clean(self) -> bool:
        return not (self.unaccounted or self.forgotten or self.misplaced or self.shrunken)

    @property
    def misplaced(self) -> Runs:
        """Present rows whose number says of them what is true of an earlier row."""
        return runs.union([*self.spent, *self.overwritten])

    def recheck_span(self, span: Span) -> Span:
        """The part of ``span`` (lo, hi] to look at again, where it is not clean."""
        if self.misplaced:  # what is around them tells them
            return span
        gone = (run for _, members in self.shrunken for run in members)
        numbers = runs.union([*self.unaccounted, *self.forgotten, *gone])
        return numbers[0][0] - 1, numbers[-1][1]

    @property
    def strays(self) -> int:
        return runs.count(runs.intersect(self.present, self.unaccounted)) + runs.count(self.forgotten)

    @property
    def missing(self) -> int:
        return sum(runs.count(gone) for _, gone in self.shrunken)

    def missing_rows(self, version: int) -> MissingRows | None:
        """What is missing, and around what to look for it again; None: nothing is."""
        if not self.shrunken:
            return None
        first = min(gone[0][0] for _, gone in self.shrunken)
        last = max(gone[-1][1] for _, gone in self.shrunken)
        return MissingRows((first - 1, last), self.missing, version)


@dataclass(frozen=True, slots=True)
class MissingRows:
    """Where rows of unfinished batches were gone when it was looked at under the lane's lock."""

    span: Span
    missing: int
    version: int
    """Of the lane, after the look."""


@dataclass(frozen=True, slots=True)
class FullScan:
    """What all ranges of a stopped lane had, seen without its lock."""

    version: int
    """Of the lane, before the look."""
    missing: int
    misplaced: bool


def ranges(connection: Connection, lane: Lane, newest: int | None = None) -> Iterator[tuple[int, int]]:
    """The ranges (lo, hi] of the ledger, newest first; only the ``newest`` numbers when given."""
    row = connection.execute(select(LANE.c.floor, LANE.c.cursor).where(LANE.c.lane == str(lane))).one()
    lowest = row.floor if newest is None else max(row.floor, row.cursor - newest)
    hi = row.cursor
    while hi > lowest:
        lo = max(lowest, hi - RANGE)
        yield lo, hi
        hi = lo


def longest_batch_span(connection: Connection, lane: Lane) -> int:
    """How far any batch above the floor reaches, from its first number to its last."""
    floor = select(LANE.c.floor).where(LANE.c.lane == str(lane)).scalar_subquery()
    above = (BATCH.c.lane == str(lane), BATCH.c.last_seq > floor)
    return int(connection.execute(select(func.max(BATCH.c.last_seq - BATCH.c.first_seq)).where(*above)).scalar() or 0)


def inspect(connection: Connection, lane: Lane, lo: int, hi: int, *, reach: int | None = None) -> Findings:
    """Compare the rows numbered (lo, hi] with the ledger. Rows are read first: a purge in between hides nothing.

    ``reach``: the result of ``longest_batch_span``, given when many ranges are compared; a batch that is longer, and so
    was cut since, is then left out. None: every batch above the range is read.
    """
    found = Findings(_present(connection, lane, lo, hi))
    overlapping = select(HOLE).where(HOLE.c.lane == str(lane), HOLE.c.hi > lo, HOLE.c.lo <= hi)
    holes = connection.execute(overlapping).all()
    batches = _overlapping(lane, lo, hi, reach)
    owned = _owned(connection, batches, (lo, hi))
    if owned is not None:
        kept, purged = owned
        _compare(found, (lo, hi), holes, kept, purged)
        whole = found.clean and not runs.subtract(kept, found.present)
        if whole and not (kept and _newest_lost_rows(connection, lane)):
            return found
    return _inspect_each(connection, lane, (lo, hi), found, holes, batches)


def _inspect_each(
    connection: Connection,
    lane: Lane,
    span: Span,
    found: Findings,
    holes: Sequence[Row[Any]],
    batches: Conditions,
) -> Findings:
    """Batch by batch."""
    lo, hi = span
    kept: list[Span] = []
    purged: list[Span] = []
    settled: list[tuple[Row[Any], Runs]] = []
    lost_rows = False
    for batch in connection.execute(select(BATCH).where(*batches)).all():
        members = runs.intersect(runs.decode(batch.members), ((lo + 1, hi),))
        if batch.purged_at is not None:
            purged.extend(members)
            continue
        kept.extend(members)
        gone = runs.subtract(members, found.present)
        if batch.state == BatchState.SETTLED:
            settled.append((batch, members))
            lost_rows = lost_rows or bool(gone)
        if gone and batch.verdict in (None, Ending.REFUSED):
            found.shrunken.append((batch, gone))
    _compare(found, span, holes, runs.union(kept), runs.union(purged))
    if settled and (lost_rows or _newest_lost_rows(connection, lane)):
        found.overwritten = _overwritten(connection, lane, lo, hi, settled)
    return found


def _compare(found: Findings, span: Span, holes: Sequence[Row[Any]], kept: Runs, purged: Runs) -> None:
    lo, hi = span
    owned = runs.union([*kept, *purged])
    inside = runs.union([*owned, *((hole.lo, hole.hi) for hole in holes)])
    forgotten = runs.union((hole.lo, hole.hi) for hole in holes if hole.forgotten_at is not None)
    found.unaccounted = runs.subtract(((lo + 1, hi),), inside)
    found.forgotten = runs.subtract(runs.intersect(found.present, forgotten), owned)
    found.spent = runs.intersect(found.present, purged)


def _overlapping(lane: Lane, lo: int, hi: int, reach: int | None) -> Conditions:
    """Of batches that may have members in (lo, hi]."""
    live = (BATCH.c.lane == str(lane), BATCH.c.state != BatchState.SUPERSEDED)
    near = () if reach is None else (BATCH.c.last_seq <= hi + reach,)
    return (*live, BATCH.c.last_seq > lo, BATCH.c.first_seq <= hi, *near)


def _owned(connection: Connection, batches: Conditions, span: Span) -> tuple[Runs, Runs] | None:
    """The numbers in ``span`` of batches whose rows are kept, and of purged ones, put together by the database: there
    may be as many batches as rows. None: so many have two batches that a gap does not show."""
    purged = BATCH.c.purged_at.is_not(None)
    first, last, entries = BATCH.c.first_seq, BATCH.c.last_seq, BATCH.c.entries
    neighbours = last - first + 1 == entries
    before = func.sum(entries).over(partition_by=purged, order_by=first, rows=(None, 0))
    numbered = (
        select(first, last, entries, purged.label("purged"), (last - before).label("island"))
        .where(*batches, neighbours)
        .subquery()
    )
    bounds = (func.min(numbered.c.first_seq), func.max(numbered.c.last_seq), func.sum(numbered.c.entries))
    islands = select(*bounds, numbered.c.purged).group_by(numbered.c.purged, numbered.c.island)
    parts: dict[bool, list[Span]] = {True: [], False: []}
    for start, end, count, gone in connection.execute(islands):
        if end - start + 1 != count:
            return None
        parts[bool(gone)].append((start, end))
    for members, gone in connection.execute(select(BATCH.c.members, purged).where(*batches, ~neighbours)):
        parts[bool(gone)] += runs.decode(members)
    lo, hi = span
    kept, spent = (runs.intersect(runs.union(parts[gone]), ((lo + 1, hi),)) for gone in (False, True))
    return kept, spent


def _present(connection: Connection, lane: Lane, lo: int, hi: int) -> Runs:
    """Runs of the numbers present in (lo, hi]: islands, found by the database."""
    islands = text(
        "SELECT min(seq), max(seq) FROM (SELECT seq, seq - row_number() OVER (ORDER BY seq) AS island"  # noqa: S608
        f" FROM {LANES[lane].table} WHERE seq > :lo AND seq <= :hi) AS numbered GROUP BY island ORDER BY 1"
    )
    return tuple((int(a), int(b)) for a, b in connection.execute(islands, {"lo": lo, "hi": hi}))


def _newest_lost_rows(connection: Connection, lane: Lane) -> bool:
    """Rows left the log without a purge (TRUNCATE, a restore), so their numbers may have been handed out again.

    Numbers are used again from below, so the newest settled batch is the last to look whole.
    """
    floor = select(LANE.c.floor).where(LANE.c.lane == str(lane)).scalar_subquery()
    above = BATCH.c.last_seq > floor  # below it all are purged, and there may be many
    settled = (BATCH.c.lane == str(lane), BATCH.c.state == BatchState.SETTLED, BATCH.c.purged_at.is_(None), above)
    newest = connection.execute(select(BATCH).where(*settled).order_by(BATCH.c.last_seq.desc()).limit(1)).first()
    if newest is None:
        return False
    present = _present(connection, lane, newest.first_seq - 1, newest.last_seq)
    return bool(runs.subtract(runs.decode(newest.members), present))


def _overwritten(connection: Connection, lane: Lane, lo: int, hi: int, settled: list[tuple[Row[Any], Runs]]) -> Runs:
    """Members written when their batch was settled, or later.

    The times alone prove nothing, a clock may have been set back between the two: asked only when rows were lost.
    """
    log = LOGS[lane]
    since = min(batch.settled_at for batch, _ in settled)
    within = (log.c.seq > lo, log.c.seq <= hi, log.c.created_at >= since)
    query = select(log.c.seq, log.c.created_at).where(*within).order_by(log.c.seq)
    written = {row.seq: row.created_at for row in connection.execute(query)}
    late = [
        seq for batch, members in settled for seq in runs.numbers(members) if written.get(seq, 0) >= batch.settled_at
    ]
    return runs.from_sorted(sorted(late))


def version_stopped(connection: Connection, lane: Lane) -> int | None:
    """The version of a lane that is stopped; None: it is not."""
    says = select(LANE.c.version, LANE.c.state, LANE.c.next_probe_at).where(LANE.c.lane == str(lane))
    row = connection.execute(says).one()
    return row.version if Health(LaneState(row.state), None, row.next_probe_at).stopped else None


def judge_sequence(lane: LockedLane, report: AuditReport) -> None:
    """Stop the lane when its sequence was set back. Looked at first: renumbering would only make it worse."""
    report.problem = _set_back(lane)
    _become(lane, lane.health, report)


def judge(lane: LockedLane, report: AuditReport, gone: Sequence[MissingRows], scan: FullScan | None) -> bool:
    """Stop the lane at a contradiction; open one that was stopped when all of it, not only a part, is mended.

    ``gone``: of this audit, in the order of the looks. ``scan``: None opens nothing, nor does one of a lane that has
    changed since. False: it has.
    """
    health = lane.health
    report.missing = _missing(lane, gone)
    report.problem = _set_back(lane) or _gone(lane, report.missing)
    if report.problem is None and health.stopped:
        report.problem = _not_mended(lane, scan)
        if report.problem is None:
            health = Health()
    _become(lane, health, report)
    return scan is None or _is_of_now(lane, scan)


def _missing(lane: LockedLane, gone: Sequence[MissingRows]) -> int:
    """Looked at again if others had the lock since: an operator may have mended the lane, and stopped once more, for
    what is true no longer, it would wait for the next audit of all."""
    ours_alone = range(lane.version - len(gone), lane.version)
    if [each.version for each in gone] == list(ours_alone):
        return sum(each.missing for each in gone)
    return sum(inspect(lane.connection, lane.lane, *each.span).missing for each in gone)


def _not_mended(lane: LockedLane, scan: FullScan | None) -> str | None:
    """Why a stopped lane stays so; None: all of it is as it should be."""
    if scan is None or not _is_of_now(lane, scan):
        return lane.health.reason
    hidden = lane.health.reason if scan.misplaced else None  # by the next batch to be settled, which looks whole
    return _gone(lane, scan.missing) or hidden


def _is_of_now(lane: LockedLane, scan: FullScan) -> bool:
    return scan.version == lane.version - 1


def _become(lane: LockedLane, health: Health, report: AuditReport) -> None:
    """Stopped where there is a problem. What stays as it is keeps its version: another auditor may be looking at it."""
    if report.problem and health.state is not LaneState.OFF:
        health = Health(LaneState.PAUSED, report.problem)
    lane.untouched = health == lane.health
    lane.health = health


def _set_back(lane: LockedLane) -> str | None:
    table = LANES[lane.lane].table
    dialect = dialect_of(lane.connection)
    highest = highest_number(lane)  # before the sequence: whoever takes a number in between moves it too
    position = dialect.sequence_position(lane.connection, table)
    if position >= highest:
        return None
    if position < lane.cursor:
        where = f"below the cursor {lane.cursor}: new rows would get numbers where nobody looks"
    else:
        where = f"below the highest number {highest}: new rows would get numbers that are taken"
    return (
        f"the sequence of {table} stands at {position}, {where} (a restore, TRUNCATE or setval)."
        f" Run: outbox audit --mend --lane {lane.lane} (or: {dialect.advance_sequence_sql(table, highest)})"
    )


def _gone(lane: LockedLane, missing: int) -> str | None:
    if not missing:
        return None
    return (
        f"{missing} entries that were not delivered are gone from {LANES[lane.lane].table}: deleted, or the table was"
        f" restored. Put the rows back, or give them up with: outbox audit --mend --lane {lane.lane}"
    )


def highest_number(lane: LockedLane) -> int:
    log = LOGS[lane.lane]
    return max(lane.cursor, lane.connection.execute(select(func.max(log.c.seq))).scalar() or 0)
