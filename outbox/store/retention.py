"""Retention: the rows of settled batches are deleted, then their receipts. Never a dead letter, never a hole.

Purge deletes the members of a batch, never a range of numbers, and locks and marks the batch in the same transaction.
Then the floor rises past everything that is purged or forgotten.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any
from uuid import UUID

from sqlalchemy import ColumnElement, Connection, bindparam, delete, func, null, or_, select, update

from outbox.core import runs
from outbox.core.lane import LANES, Lane
from outbox.core.lifecycle import BatchState, Ending
from outbox.core.policy import MICROSECONDS, Retention
from outbox.errors import DatabaseUnavailable, OutcomeUnknown
from outbox.store.compiled import CompiledStatement
from outbox.store.database import Database
from outbox.store.dialects import dialect_of
from outbox.store.ledger import IS_LIVE, TOTAL_OF, LockedLane, add_to_totals
from outbox.store.mend import CLOCK_ERROR
from outbox.store.schema import BATCH, HOLE, LANE

ROWS_A_BATCH = 10
"""Purging a batch costs about as much as deleting this many rows: its own row changes, and an index."""
BATCHES_AT_ONCE = 200
RECEIPTS_AT_ONCE = 100
FOLDED_AT_ONCE = 1000
"""Batches added to the totals in one transaction (``RECEIPTS_AT_ONCE``: receipts deleted): a few ms on SQLite."""


def _purgeable() -> Any:
    settled = (BATCH.c.lane == bindparam("key"), BATCH.c.state == BatchState.SETTLED, BATCH.c.purged_at.is_(None))
    return (
        select(BATCH.c.id, BATCH.c.members, BATCH.c.entries)
        .where(*settled, BATCH.c.due_at <= bindparam("before"))
        .order_by(BATCH.c.due_at)
        .limit(bindparam("count"))
        .with_for_update()
    )


_PURGEABLE = CompiledStatement(_purgeable())
_MARK = CompiledStatement(
    update(BATCH).where(BATCH.c.id == bindparam("batch")).values(purged_at=bindparam("now"), due_at=null())
)


def purge_batches(connection: Connection, lane: Lane, settled_before: int, now: int, chunk: int) -> tuple[int, bool]:
    """Delete the rows of the oldest batches settled until ``settled_before`` (µs): of one, or of as many as have
    ``chunk`` rows at most.

    Returns the rows deleted, and whether there may be more.
    """
    most = min(max(1, chunk // ROWS_A_BATCH), BATCHES_AT_ONCE)
    found = _PURGEABLE.rows(connection, {"key": str(lane), "before": settled_before, "count": most})
    rows: list[int] = list(accumulate(batch.entries for batch in found))
    batches = found[: max(1, bisect_right(rows, chunk))]
    if not batches:
        return 0, False
    _MARK.changed(connection, [{"batch": batch.id, "now": now} for batch in batches])
    members = runs.union(run for batch in batches for run in runs.decode(batch.members))
    dialect_of(connection).delete_runs(connection, LANES[lane].table, members)
    return rows[len(batches) - 1], len(batches) < len(found) or len(found) == most


def purge_rows(database: Database, lane: Lane, settled_before: int, now: int) -> int:
    """Delete the rows of all batches settled until ``settled_before`` (µs), in chunks; rows deleted.

    On a full disk the smallest chunk may still fit, after ``make_room``, and what it frees takes the next rows.
    """
    chunk, total, more, failed = database.dialect.purge_chunk, 0, True, False
    while more:
        try:
            with database.write(in_turn=True) as connection:
                deleted, more = purge_batches(connection, lane, settled_before, now, chunk)
        except (DatabaseUnavailable, OutcomeUnknown):
            if failed:
                raise
            chunk, more, failed = 1, True, True
            database.make_room()
        else:
            total, failed = total + deleted, False
    if chunk == 1:
        database.make_room()  # for what the caller writes next
    return total


def oversize_before(connection: Connection, lane: Lane, retention: Retention, now: int) -> int:
    """The time (µs) up to which settled batches are purged: by age, or later when the settled rows exceed
    ``max_bytes``."""
    by_age = now - int(retention.sent_seconds * MICROSECONDS)
    unpurged = (BATCH.c.lane == str(lane), BATCH.c.state == BatchState.SETTLED, BATCH.c.due_at.is_not(None))
    total = connection.execute(select(func.sum(BATCH.c.payload_bytes)).where(*unpurged)).scalar() or 0
    excess = int(total) - retention.max_bytes
    if excess <= 0:
        return by_age
    newest_to_go = by_age
    query = select(BATCH.c.due_at, BATCH.c.payload_bytes).where(*unpurged).order_by(BATCH.c.due_at)
    for settled_at, size in connection.execute(query):
        if excess <= 0:
            break
        newest_to_go = settled_at
        excess -= size
    if not retention.at_least_seconds:  # entries settled while the clock was ahead go by size all the same
        return max(by_age, newest_to_go)
    at_least = now - int(retention.at_least_seconds * MICROSECONDS)
    return max(by_age, min(newest_to_go, at_least))


@dataclass(frozen=True, slots=True)
class Rise:
    """How far the floor may rise, computed without the lane's lock, and the lane's version at that moment."""

    floor: int
    version: int


def rise_of_floor(connection: Connection, lane: Lane) -> Rise:
    """The floor may rise to just below the first number whose row is still needed or may still be committed.
    ``connection`` reads a snapshot."""
    says = select(LANE.c.floor, LANE.c.cursor, LANE.c.version).where(LANE.c.lane == str(lane))
    floor, cursor, version = connection.execute(says).one()
    needed = _needed(lane)
    # First the batch with the lowest last_seq, by the index: mostly it is near the floor. Then batches that end after
    # it, and yet begin before it.
    ends = select(BATCH.c.first_seq, BATCH.c.last_seq).where(*needed, BATCH.c.last_seq > floor)
    first = connection.execute(ends.order_by(BATCH.c.last_seq).limit(1)).one_or_none()
    limits = [cursor, *_first_hole(connection, lane)]
    if first is not None:
        limits.append(first.first_seq - 1)
    if first is not None and first.first_seq - 1 > floor:
        limits += _below(connection, *needed, BATCH.c.last_seq >= first.last_seq, BATCH.c.first_seq < first.first_seq)
    return Rise(min(limits), version)


def raise_floor(lane: LockedLane, rise: Rise) -> None:
    """Raise the floor under the lane's lock. Batches made since ``rise`` was computed are live or were settled at a
    later version, so only those, and the holes, are checked again."""
    if rise.floor <= lane.floor:
        return
    since = [IS_LIVE, BATCH.c.settled_version > rise.version]
    new = [below for which in since for below in _below(lane.connection, *_needed(lane.lane), which)]
    floor = min([rise.floor, *new, *_first_hole(lane.connection, lane.lane)])
    if floor <= lane.floor:
        return
    lane.floor = floor
    forgotten = (HOLE.c.lane == lane.key, HOLE.c.forgotten_at.is_not(None))
    lane.connection.execute(delete(HOLE).where(*forgotten, HOLE.c.hi <= floor))
    lane.connection.execute(update(HOLE).where(*forgotten, HOLE.c.lo <= floor).values(lo=floor + 1))


def _needed(lane: Lane) -> Sequence[ColumnElement[bool]]:
    return BATCH.c.lane == str(lane), BATCH.c.state != BatchState.SUPERSEDED, BATCH.c.purged_at.is_(None)


def _below(connection: Connection, *which: ColumnElement[bool]) -> Sequence[int]:
    """The number below the first one of the batches that meet ``which``, as a list of one; empty: there are none."""
    first = connection.execute(select(func.min(BATCH.c.first_seq)).where(*which)).scalar()
    return [] if first is None else [first - 1]


def _first_hole(connection: Connection, lane: Lane) -> Sequence[int]:
    """The number below the first hole that is not forgotten, as a list of one; empty: there is none."""
    may_come = select(func.min(HOLE.c.lo)).where(HOLE.c.lane == str(lane), HOLE.c.forgotten_at.is_(None))
    first = connection.execute(may_come).scalar()
    return [] if first is None else [first - 1]


@dataclass(frozen=True, slots=True)
class Receipts:
    """``old``: ids of batches to delete. ``until``: ``last_seq`` of the last batch examined."""

    old: Sequence[UUID]
    until: int


def old_receipts(connection: Connection, lane: Lane, settled_before: int, now: int, above: int) -> Receipts:
    """Examine the next batches ``above`` a number; ``old`` are those that the ledger needs no more. Times far ahead of
    now count as old: the clock was set back. The caller stops at a chunk without an old one, so receipts after batches
    that were purged late wait for these."""

    def old(time: ColumnElement[int]) -> ColumnElement[bool]:
        return or_(time < settled_before, time > now + CLOCK_ERROR)

    purged = old(BATCH.c.purged_at) & (BATCH.c.settled_version <= LANE.c.folded_version)
    superseded = (BATCH.c.state == BatchState.SUPERSEDED) & old(BATCH.c.created_at)
    batches = (
        select(BATCH.c.id, BATCH.c.last_seq, or_(purged, superseded).label("old"))
        .join(LANE, LANE.c.lane == BATCH.c.lane)
        .where(BATCH.c.lane == str(lane), BATCH.c.last_seq <= LANE.c.floor, BATCH.c.last_seq > above)
        .order_by(BATCH.c.last_seq)
        .limit(RECEIPTS_AT_ONCE)
    )
    rows = connection.execute(batches).all()
    return Receipts([row.id for row in rows if row.old], rows[-1].last_seq if rows else above)


def delete_receipts(connection: Connection, old: Sequence[UUID]) -> int:
    """Delete the batches, which no other transaction changes any more. Rows deleted."""
    return connection.execute(delete(BATCH).where(BATCH.c.id.in_(old))).rowcount


def fold_totals(lane: LockedLane) -> bool:
    """Add batches settled since the last fold to the lane's totals, about ``FOLDED_AT_ONCE`` at a time. Returns whether
    there are more.

    A settled batch carries the version of the lane it was settled under, and the lane's lock is held here: no batch
    with an older version can still be committed.
    """
    new = (BATCH.c.lane == lane.key, BATCH.c.settled_version > lane.folded_version)
    version = BATCH.c.settled_version
    some = lane.connection.execute(select(version).where(*new).order_by(version).limit(FOLDED_AT_ONCE)).scalars().all()
    until = some[-1] if len(some) == FOLDED_AT_ONCE else lane.version
    query = select(BATCH.c.verdict, func.sum(BATCH.c.entries)).where(*new, version <= until).group_by(BATCH.c.verdict)
    amounts: dict[str, int] = {}
    for verdict, entries in lane.connection.execute(query).all():
        name = TOTAL_OF[Ending(verdict)]
        amounts[name] = amounts.get(name, 0) + int(entries)
    add_to_totals(lane, **amounts)
    lane.folded_version = until
    return len(some) == FOLDED_AT_ONCE
