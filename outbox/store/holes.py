"""Holes: numbers at or below the cursor that were not there when a claim looked.

A hole stands for a slower transaction that commits later, a rollback, or a burnt number. It is checked again after half
its age, filled when its rows appear, and forgotten only when no transaction can fill it any more: the *first* query
finds that no such transaction is left, the *second* that the hole is still empty. The other order loses a row that is
committed between the two.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from sqlalchemy import ColumnElement, Row, delete, insert, or_, select, update

from outbox.core import runs
from outbox.core.lane import LANES
from outbox.core.policy import MICROSECONDS, Policy
from outbox.core.runs import Runs
from outbox.store.dialects import dialect_of
from outbox.store.ledger import LockedLane, overdue
from outbox.store.schema import HOLE, LOGS

FIRST_CHECK_US = 20_000
LAST_CHECK_US = 60 * MICROSECONDS
_AT_ONCE = 50
"""Holes checked in one transaction."""


def record(lane: LockedLane, gaps: Sequence[tuple[int, int]], *, due_now: bool = False) -> None:
    """Record ``gaps`` as holes, due now or in ``FIRST_CHECK_US``."""
    if gaps:
        check_at = lane.now if due_now else lane.now + FIRST_CHECK_US
        columns = {"lane": lane.key, "seen_at": lane.now, "next_check_at": check_at}
        lane.connection.execute(insert(HOLE), [{"lo": lo, "hi": hi, **columns} for lo, hi in gaps])


def check(lane: LockedLane, policy: Policy, *, eager: bool) -> Runs:
    """Check the holes that are due (``eager``: the newest too). The numbers found in them, at most a batch.

    Holes that are still empty are forgotten or get a new due time; for the numbers found the caller calls ``fill``.
    """
    due = _due(lane, policy, eager)
    if not due:
        return ()
    table = LANES[lane.lane].table
    writers = dialect_of(lane.connection).writers(lane.connection, table)  # first
    found = _present(lane, [(hole.lo, hole.hi) for hole in due], policy.batch_max_rows)  # second
    full = runs.count(found) == policy.batch_max_rows
    for hole in due:
        looked_at = not full or hole.hi <= found[-1][1]
        if looked_at and not runs.intersect(found, ((hole.lo, hole.hi),)):
            _recheck_or_forget(lane, policy, hole, writers)
    return found


def _due(lane: LockedLane, policy: Policy, eager: bool) -> Sequence[Row[Any]]:
    """Holes that are due, the longest due first; ``eager``: the newest in addition, never in place of a due one."""
    live = select(HOLE).where(HOLE.c.lane == lane.key, HOLE.c.next_check_at.is_not(None)).limit(_AT_ONCE)
    late = overdue(HOLE.c.next_check_at, lane.now, lane.now + policy.max_wait_us)
    queries = [live.where(late).order_by(HOLE.c.next_check_at)]
    if eager:
        queries.append(live.order_by(HOLE.c.lo.desc()))
    return list({hole.lo: hole for query in queries for hole in lane.connection.execute(query)}.values())


def _present(lane: LockedLane, ranges: Sequence[tuple[int, int]], limit: int) -> Runs:
    log = LOGS[lane.lane]
    query = select(log.c.seq).where(or_(*(log.c.seq.between(lo, hi) for lo, hi in ranges)))
    return runs.from_sorted(lane.connection.execute(query.order_by(log.c.seq).limit(limit)).scalars().all())


def _recheck_or_forget(lane: LockedLane, policy: Policy, hole: Row[Any], writers: frozenset[str] | None) -> None:
    seen_at = min(hole.seen_at, lane.now)  # a time ahead of now: the clock was set back, and the age starts at 0
    age = lane.now - seen_at
    again = min(max(age // 2, FIRST_CHECK_US), LAST_CHECK_US)
    values: dict[str, object] = {"seen_at": seen_at, "next_check_at": lane.now + again}
    if writers is None:
        closed = age > policy.hole_age_seconds * MICROSECONDS
    elif hole.blockers is None:
        closed = not writers
        values["blockers"] = json.dumps(sorted(writers))
    else:
        # A transaction that may fill the hole was running at its first check; later ones take higher numbers.
        left = writers & (frozenset(json.loads(hole.blockers)) | {"prepared"})
        closed = not left
        values["blockers"] = json.dumps(sorted(left))
    if closed:
        values = {"seen_at": seen_at, "next_check_at": None, "blockers": None, "forgotten_at": lane.now}
    lane.connection.execute(update(HOLE).where(HOLE.c.lane == lane.key, HOLE.c.lo == hole.lo).values(values))


def fill(lane: LockedLane, taken: Runs) -> None:
    """Take the numbers of a new batch out of their holes, in the transaction that inserts the batch."""
    _take_out(lane, taken, HOLE.c.forgotten_at.is_(None))


def revive(lane: LockedLane, present: Runs) -> None:
    """Make numbers of forgotten holes, in which rows turned up, live holes again, due now."""
    if present:
        _take_out(lane, present, HOLE.c.forgotten_at.is_not(None))
        record(lane, present, due_now=True)


def _take_out(lane: LockedLane, numbers: Runs, which: ColumnElement[bool]) -> None:
    """Shrink, split or delete the holes that meet ``which``, so that none of ``numbers`` is left in them."""
    # Selected by the whole span: a thousand scattered runs in one WHERE are too deep an expression for SQLite.
    span = (HOLE.c.lo <= numbers[-1][1], HOLE.c.hi >= numbers[0][0])
    for hole in lane.connection.execute(select(HOLE).where(HOLE.c.lane == lane.key, which, *span)).all():
        whole = ((hole.lo, hole.hi),)
        rest = runs.subtract(whole, numbers)
        if rest == whole:
            continue
        gone = lane.connection.execute(delete(HOLE).where(HOLE.c.lane == lane.key, HOLE.c.lo == hole.lo))
        assert gone.rowcount == 1, "the lane's row is locked: nobody else changes its holes"
        for lo, hi in rest:
            lane.connection.execute(insert(HOLE), {**hole._mapping, "lo": lo, "hi": hi})
