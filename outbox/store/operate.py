"""Operations on entries by an operator or a bound: requeue, discard, end pending entries, switch a lane off.

Each works on a chunk, in a short transaction of its own; the caller repeats it until it returns 0. All are safe to run
again.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any, TypeVar
from uuid import UUID

from sqlalchemy import Row, func, select, update

from outbox.core import batching, runs
from outbox.core.health import Health, LaneState
from outbox.core.lifecycle import BatchState, Ending
from outbox.core.policy import Policy
from outbox.store import holes
from outbox.store.ledger import LockedLane, add_to_totals, insert_batch
from outbox.store.schema import BATCH, LANE, LOGS
from outbox.store.settle import ended

T = TypeVar("T")

CHUNK = 500
"""Dead letters moved in one transaction, or named in one statement: databases bound its parameters."""


@dataclass(frozen=True, slots=True)
class Window:
    """Which dead letters: by batch, and by the time they died. Times in microseconds; None: no bound."""

    batch_ids: Sequence[UUID] | None = None
    """In order of ``last_seq``. None: any batch."""
    since: int | None = None
    until: int | None = None
    version: int | None = None
    """A version of the lane: batches that die after it are left out."""

    def parts(self) -> Iterator[Window]:
        """Windows with few enough ``batch_ids`` for one statement."""
        if self.batch_ids is None:
            yield self
        else:
            yield from (replace(self, batch_ids=some) for some in chunks(self.batch_ids))


def chunks(items: Iterable[T]) -> Iterator[list[T]]:
    rest = iter(items)
    while some := list(islice(rest, CHUNK)):
        yield some


def dead_letters(lane_key: str, window: Window) -> Any:
    """WHERE conditions for the dead letters of a lane inside a window. They are all above the floor."""
    conditions = [
        BATCH.c.lane == lane_key,
        BATCH.c.state == BatchState.SETTLED,
        BATCH.c.verdict == Ending.REFUSED,
        BATCH.c.last_seq > select(LANE.c.floor).where(LANE.c.lane == lane_key).scalar_subquery(),
    ]
    if window.batch_ids is not None:
        conditions.append(BATCH.c.id.in_(window.batch_ids))
    if window.since is not None:
        conditions.append(BATCH.c.settled_at >= window.since)
    if window.until is not None:
        conditions.append(BATCH.c.settled_at < window.until)
    if window.version is not None:
        conditions.append(BATCH.c.settled_version <= window.version)
    return conditions


def requeue(lane: LockedLane, policy: Policy, window: Window) -> int:
    """Merge up to a chunk of dead letters into new waiting batches with 0 attempts. Entries moved; 0: none left."""
    dead = _chunk(lane, window)
    lane.untouched = not dead
    for group in _groups(dead, policy.batch_max_rows):
        insert_batch(
            lane,
            runs.union(run for row in group for run in runs.decode(row.members)),
            sum(row.entries for row in group),
            sum(row.payload_bytes for row in group),
            state=BatchState.WAITING,
            due_at=lane.now,
            ambiguous=any(row.ambiguous for row in group),
        )
    _leave_dead(lane, dead, state=BatchState.SUPERSEDED, verdict=None, settled_at=None, settled_version=None)
    return sum(row.entries for row in dead)


def discard(lane: LockedLane, window: Window) -> int:
    """End up to a chunk of dead letters for good; retention deletes them later. Entries ended; 0: none left."""
    dead = _chunk(lane, window)
    lane.untouched = not dead
    _leave_dead(lane, dead, **ended(lane, Ending.DISCARDED))
    return sum(row.entries for row in dead)


def _chunk(lane: LockedLane, window: Window) -> Sequence[Row[Any]]:
    query = select(BATCH).where(*dead_letters(lane.key, window)).order_by(BATCH.c.last_seq).limit(CHUNK)
    return lane.connection.execute(query).all()


def _groups(rows: Sequence[Row[Any]], max_entries: int) -> Iterable[list[Row[Any]]]:
    group: list[Row[Any]] = []
    entries = 0
    for row in rows:
        if group and entries + row.entries > max_entries:
            yield group
            group, entries = [], 0
        group.append(row)
        entries += row.entries
    if group:
        yield group


def _leave_dead(lane: LockedLane, dead: Sequence[Row[Any]], **values: Any) -> None:
    if not dead:
        return
    still_dead = (BATCH.c.id.in_([row.id for row in dead]), BATCH.c.verdict == Ending.REFUSED)
    moved = lane.connection.execute(update(BATCH).where(*still_dead).values(values))
    assert moved.rowcount == len(dead), "the lane's row is locked: nobody else moves its dead letters"
    counted = sum(row.entries for row in dead if row.settled_version <= lane.folded_version)
    add_to_totals(lane, dead=-counted)


def oldest_pending(lane: LockedLane, at_most: int) -> Sequence[Any]:
    """Rows ``seq, size, created_at`` (µs) of the first entries above the cursor, in order."""
    log = LOGS[lane.lane]
    above = select(log.c.seq, log.c.size, log.c.created_at).where(log.c.seq > lane.cursor)
    return lane.connection.execute(above.order_by(log.c.seq).limit(at_most)).all()


def end_pending(lane: LockedLane, rows: Sequence[Any], verdict: Ending, reason: str) -> int:
    """End entries without sending them. ``rows``: a result of ``oldest_pending``, or its beginning. Entries ended.

    Only the rows that one statement saw end, never a range of numbers: the number of a row that commits later becomes a
    hole, and the row is delivered. Entries in live batches are not touched.
    """
    if rows:
        numbers = [row.seq for row in rows]
        holes.record(lane, batching.gaps(lane.cursor, numbers))
        lane.cursor = numbers[-1]
        _end(lane, runs.from_sorted(numbers), sum(row.size for row in rows), verdict, reason)
    return len(rows)


def _end(lane: LockedLane, members: runs.Runs, payload_bytes: int, verdict: Ending, reason: str) -> None:
    """Insert a settled batch of entries that were in none; retention deletes them."""
    columns = ended(lane, verdict)
    insert_batch(lane, members, runs.count(members), payload_bytes, last_error=reason, **columns)


def switch_off(lane: LockedLane, policy: Policy, reason: str) -> int:
    """Switch the lane off and discard what waits, counted, up to a chunk a call. Entries discarded; 0: none left.

    A leased batch is left alone. If it is not delivered it becomes waiting, and the next call discards it.
    """
    lane.health = Health(LaneState.OFF, reason)
    waiting = (BATCH.c.lane == lane.key, BATCH.c.state == BatchState.WAITING)
    count = lane.connection.execute(select(func.coalesce(func.sum(BATCH.c.entries), 0)).where(*waiting)).scalar_one()
    if count:
        values = ended(lane, Ending.DISCARDED) | {"last_error": reason}
        lane.connection.execute(update(BATCH).where(*waiting).values(values))
    late = holes.check(lane, policy, eager=True)
    if late:
        holes.fill(lane, late)
        _end(lane, late, 0, Ending.DISCARDED, reason)
    pending = oldest_pending(lane, 10 * policy.batch_max_rows)
    return int(count) + runs.count(late) + end_pending(lane, pending, Ending.DISCARDED, reason)


def switch_on(lane: LockedLane) -> None:
    """Open the lane if it is off; a lane in any other state is not changed."""
    if lane.health.state is LaneState.OFF:
        lane.health = Health()
