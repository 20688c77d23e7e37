"""The audit: finds rows that no claim would ever read.

A number at or below the cursor is read only through its batch or its hole. So a row that got there in another way (a
hole deleted by hand, an explicit seq, a sequence set back, a table restored) would wait for ever. The auditor compares
the rows present with the ledger, range by range:

    a number in no batch and no hole, or a row inside a forgotten hole     -> a hole again, so it is delivered
    a row whose number is used up (its batch is purged, or it is below the floor), or whose batch was settled before
    the row was written, in a log that lost rows                           -> renumbered above the cursor
        unless it is proven to be a restored copy of a delivered row       -> deleted again
    the sequence stands below the cursor                                   -> the lane stops until it is mended
    a batch that is not delivered has lost rows                            -> the lane stops until it is mended

This module compares and judges, ``mend`` brings rows back, and ``auditor`` runs both in order.
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
"""Numbers compared by one call of ``inspect``."""


@dataclass(slots=True)
class AuditReport:
    """What an audit of one lane found. Counts of entries."""

    lane: Lane
    strays: int = 0
    """Rows that no claim would have read; they will be delivered now."""
    renumbered: int = 0
    """Of these, rows that had to take a new number."""
    copies: int = 0
    """Rows that a restore brought back although they were delivered; deleted again."""
    missing: int = 0
    """Entries of unfinished batches whose row is gone."""
    discarded: int = 0
    """Missing entries that ``mend`` gave up; they count as ``shed`` in the lane's status."""
    problem: str | None = None
    """Why the lane is stopped, and how to mend it."""

    def add(self, move: AuditReport) -> None:
        """Add the counts of one transaction. A transaction may be repeated, so only the report of the committed run is
        added."""
        self.strays += move.strays
        self.renumbered += move.renumbered
        self.copies += move.copies
        self.missing += move.missing
        self.discarded += move.discarded


@dataclass(slots=True)
class Findings:
    """The result of comparing one range of one lane with the ledger."""

    present: Runs
    unaccounted: Runs = ()
    forgotten: Runs = ()
    """Present rows inside forgotten holes."""
    spent: Runs = ()
    """Present rows with the number of a purged batch."""
    overwritten: Runs = ()
    """Present rows of settled batches that were written after the settlement: not the rows that were settled."""
    shrunken: list[tuple[Row[Any], Runs]] = field(default_factory=list)
    """Batches that are not finished or are dead, with the members whose rows are gone."""

    @property
    def clean(self) -> bool:
        return not (self.unaccounted or self.forgotten or self.misplaced or self.shrunken)

    @property
    def misplaced(self) -> Runs:
        """Present rows whose number belonged to an earlier row, so that the ledger's account of it is not theirs."""
        return runs.union([*self.spent, *self.overwritten])

    def recheck_span(self, span: Span) -> Span:
        """The part (lo, hi] of ``span`` to compare again under the lock. The findings must not be ``clean``."""
        if self.misplaced:  # recognised by the batches around them, so all of it
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
        """What is missing, and the span to look for it again. ``version``: of the lane. None: nothing is missing."""
        if not self.shrunken:
            return None
        first = min(gone[0][0] for _, gone in self.shrunken)
        last = max(gone[-1][1] for _, gone in self.shrunken)
        return MissingRows((first - 1, last), self.missing, version)


@dataclass(frozen=True, slots=True)
class MissingRows:
    """A span in which rows of unfinished or dead batches were missing, as seen under the lane's lock."""

    span: Span
    missing: int
    version: int
    """The version that the transaction of this look gave the lane."""


@dataclass(frozen=True, slots=True)
class FullScan:
    """The findings in all ranges of a stopped lane, compared without its lock."""

    version: int
    """The lane's version before the scan."""
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
    """The largest distance between the first and the last number of a batch above the floor."""
    floor = select(LANE.c.floor).where(LANE.c.lane == str(lane)).scalar_subquery()
    above = (BATCH.c.lane == str(lane), BATCH.c.last_seq > floor)
    return int(connection.execute(select(func.max(BATCH.c.last_seq - BATCH.c.first_seq)).where(*above)).scalar() or 0)


def inspect(connection: Connection, lane: Lane, lo: int, hi: int, *, reach: int | None = None) -> Findings:
    """Compare the rows numbered (lo, hi] with the ledger. The rows are read first, so a purge between the two reads
    hides nothing.

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
    """Compare batch by batch, which also finds ``shrunken`` and ``overwritten``."""
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
    """Conditions for the batches that may have members in (lo, hi]. ``reach``: see ``inspect``."""
    live = (BATCH.c.lane == str(lane), BATCH.c.state != BatchState.SUPERSEDED)
    near = () if reach is None else (BATCH.c.last_seq <= hi + reach,)
    return (*live, BATCH.c.last_seq > lo, BATCH.c.first_seq <= hi, *near)


def _owned(connection: Connection, batches: Conditions, span: Span) -> tuple[Runs, Runs] | None:
    """The numbers in ``span`` that belong to batches whose rows are kept, and to purged ones. The database joins
    adjacent batches, for there may be as many batches as rows. None: it cannot, because batches overlap."""
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
    """The runs of numbers present in (lo, hi], computed by the database (gaps and islands)."""
    islands = text(
        "SELECT min(seq), max(seq) FROM (SELECT seq, seq - row_number() OVER (ORDER BY seq) AS island"  # noqa: S608
        f" FROM {LANES[lane].table} WHERE seq > :lo AND seq <= :hi) AS numbered GROUP BY island ORDER BY 1"
    )
    return tuple((int(a), int(b)) for a, b in connection.execute(islands, {"lo": lo, "hi": hi}))


def _newest_lost_rows(connection: Connection, lane: Lane) -> bool:
    """Whether rows left the log without a purge (TRUNCATE, a restore), so that their numbers may have been handed out
    again.

    Numbers are handed out again from below, so the newest settled batch is the last one that looks complete again.
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
    """Members written at the time that their batch was settled, or later.

    The times alone prove nothing, for a clock may have been set back between the two: called only when rows were lost.
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
    """The version of the lane if it is stopped; None: it is not."""
    says = select(LANE.c.version, LANE.c.state, LANE.c.next_probe_at).where(LANE.c.lane == str(lane))
    row = connection.execute(says).one()
    return row.version if Health(LaneState(row.state), None, row.next_probe_at).stopped else None


def judge_sequence(lane: LockedLane, report: AuditReport) -> None:
    """Stop the lane when its sequence was set back. Checked first, for renumbering would then only do harm."""
    report.problem = _sequence_set_back(lane)
    _set_health(lane, lane.health, report)


def judge(lane: LockedLane, report: AuditReport, gone: Sequence[MissingRows], scan: FullScan | None) -> bool:
    """Stop the lane at a contradiction; open a stopped lane when all of it, not only a part, is mended.

    ``gone``: what this audit found, in order. ``scan``: None opens nothing, nor does a scan after which the lane was
    changed. Returns False in that last case: a new scan is needed.
    """
    health = lane.health
    report.missing = _missing(lane, gone)
    report.problem = _sequence_set_back(lane) or _rows_missing(lane, report.missing)
    if report.problem is None and health.stopped:
        report.problem = _not_mended(lane, scan)
        if report.problem is None:
            health = Health()
    _set_health(lane, health, report)
    return scan is None or _is_of_now(lane, scan)


def _missing(lane: LockedLane, gone: Sequence[MissingRows]) -> int:
    """Entries missing now. The spans are compared again if another transaction had the lock since this audit saw them:
    an operator may have mended the lane, and if it were stopped for what is no longer true, it would stay stopped until
    the next full audit."""
    ours_alone = range(lane.version - len(gone), lane.version)
    if [each.version for each in gone] == list(ours_alone):
        return sum(each.missing for each in gone)
    return sum(inspect(lane.connection, lane.lane, *each.span).missing for each in gone)


def _not_mended(lane: LockedLane, scan: FullScan | None) -> str | None:
    """Why a stopped lane stays stopped; None: all of it is in order."""
    if scan is None or not _is_of_now(lane, scan):
        return lane.health.reason
    # In an open lane the next settled batch looks complete, and would hide that rows were lost.
    hidden = lane.health.reason if scan.misplaced else None
    return _rows_missing(lane, scan.missing) or hidden


def _is_of_now(lane: LockedLane, scan: FullScan) -> bool:
    return scan.version == lane.version - 1


def _set_health(lane: LockedLane, health: Health, report: AuditReport) -> None:
    """Set the lane's health, stopped if there is a problem and the lane is not off. A lane that does not change keeps
    its version, on which another auditor's scan may rely."""
    if report.problem and health.state is not LaneState.OFF:
        health = Health(LaneState.PAUSED, report.problem)
    lane.untouched = health == lane.health
    lane.health = health


def _sequence_set_back(lane: LockedLane) -> str | None:
    table = LANES[lane.lane].table
    dialect = dialect_of(lane.connection)
    highest = highest_number(lane)  # read before the sequence: a number taken in between moves both
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


def _rows_missing(lane: LockedLane, missing: int) -> str | None:
    if not missing:
        return None
    return (
        f"{missing} entries that were not delivered are gone from {LANES[lane.lane].table}: deleted, or the table was"
        f" restored. Put the rows back, or give them up with: outbox audit --mend --lane {lane.lane}"
    )


def highest_number(lane: LockedLane) -> int:
    log = LOGS[lane.lane]
    return max(lane.cursor, lane.connection.execute(select(func.max(log.c.seq))).scalar() or 0)
