"""Operations on entries by an operator or a bound: requeue, discard, end pending entries, switch a lane off.

Each works on a chunk, in a short transaction of its own; the caller repeats it until it returns 0. All are safe to run
again.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, TypeVar
from uuid import UUID

from sqlalchemy import Row, func, insert, select, update

from outbox.core import batching, runs
from outbox.core.health import Health, LaneState
from outbox.core.lifecycle import BatchState, Ending
from outbox.core.policy import MICROSECONDS, Policy
from outbox.core.runs import Runs
from outbox.errors import NOTHING_WRITTEN, DatabaseUnavailable, OutcomeUnknown
from outbox.store import holes
from outbox.store.ledger import LockedLane, add_to_totals, batch_columns, insert_batch, overdue
from outbox.store.schema import BATCH, LANE, LOGS
from outbox.store.settle import ended

T = TypeVar("T")

CHUNK = 500
"""Dead letters moved in one transaction, or named in one statement: databases bound its parameters."""


Named = Mapping[UUID, Runs]
"""Dead batches by id, each with those of its members that an operator named."""

SUPERSEDED = {"state": BatchState.SUPERSEDED, "verdict": None, "settled_at": None, "settled_version": None}
"""The columns of a dead batch whose members other batches have taken over."""


@dataclass(frozen=True, slots=True)
class Window:
    """Which dead letters: by number, and by the time they died. Times in microseconds; None: no bound."""

    numbers: Sequence[int] | None = None
    """Those of the named entries, ascending. None: any entry."""
    since: int | None = None
    until: int | None = None
    version: int | None = None
    """A version of the lane: batches that die after it are left out."""
    above: int | None = None
    """Only batches whose last number is above this one. None: all, for they are above the floor."""


def chunks(items: Iterable[T]) -> Iterator[list[T]]:
    rest = iter(items)
    while some := list(islice(rest, CHUNK)):
        yield some


def total(chunks_done: Iterable[int]) -> int:
    """The sum of the entries of each chunk. The text of an error tells how many were done before it."""
    done = 0
    try:
        for moved in chunks_done:
            done += moved
    except (DatabaseUnavailable, OutcomeUnknown) as error:
        if not done:
            raise
        text = str(error).replace(f" {NOTHING_WRITTEN}", "")
        raise type(error)(f"{text} {done:,} entries were done before that: run it again for the others.") from error
    return done


def dead_letters(lane_key: str, window: Window) -> Any:
    """WHERE conditions for the dead batches of a lane inside a window, whatever their ``numbers``.

    One lower bound of ``last_seq``, never two: SQLite would begin at the lower one, and read all for each chunk.
    """
    floor = select(LANE.c.floor).where(LANE.c.lane == lane_key).scalar_subquery()
    conditions = [
        BATCH.c.lane == lane_key,
        BATCH.c.state == BatchState.SETTLED,
        BATCH.c.verdict == Ending.REFUSED,
        BATCH.c.last_seq > (floor if window.above is None else window.above),
    ]
    if window.since is not None:
        conditions.append(BATCH.c.settled_at >= window.since)
    if window.until is not None:
        conditions.append(BATCH.c.settled_at < window.until)
    if window.version is not None:
        conditions.append(BATCH.c.settled_version <= window.version)
    return conditions


def requeue(lane: LockedLane, policy: Policy, named: Named) -> int:
    """Merge dead batches into new waiting ones with 0 attempts. Entries moved: those that are dead still.

    ``named``: at most a chunk of batches, and these of their members."""
    dead = _chunk(lane, named)
    lane.untouched = not dead
    for group in _groups(dead, policy.batch_max_rows):
        insert_batch(
            lane,
            runs.union(run for row in group for run in runs.decode(row.members)),
            sum(row.entries for row in group),
            sum(row.payload_bytes for row in group),
            state=BatchState.WAITING,
            due_at=lane.now - MICROSECONDS,  # before it was made: the mark that ``dialects.view.requeued`` looks for
            ambiguous=any(row.ambiguous for row in group),
        )
    _leave_dead(lane, dead, SUPERSEDED)
    return sum(row.entries for row in dead)


def discard(lane: LockedLane, named: Named) -> int:
    """End dead batches for good, of which retention deletes the rows later; otherwise as ``requeue``."""
    dead = _chunk(lane, named)
    lane.untouched = not dead
    _leave_dead(lane, dead, ended(lane, Ending.DISCARDED))
    return sum(row.entries for row in dead)


def _chunk(lane: LockedLane, named: Named) -> Sequence[Row[Any]]:
    """The dead batches that are ``named``, in order of ``last_seq``. Those that are named in part are split first."""
    dead = _still_dead(lane, named)
    parted = [row for row in dead if runs.count(named[row.id]) < row.entries]
    if not parted:
        return dead
    ids = {row.id for row in dead}.difference(row.id for row in parted).union(_split(lane, parted, named))
    return _still_dead(lane, ids)


def _still_dead(lane: LockedLane, ids: Collection[UUID]) -> Sequence[Row[Any]]:
    """Those of the batches that are dead, by ``last_seq``. By their ids alone, for a batch never dies twice: SQLite
    would take an index of any other condition, and read the lane's whole ledger under the lock."""
    query = select(BATCH).where(BATCH.c.id.in_(ids), BATCH.c.verdict == Ending.REFUSED)
    return sorted(lane.connection.execute(query), key=lambda row: row.last_seq)


def _split(lane: LockedLane, parents: Sequence[Row[Any]], named: Named) -> list[UUID]:
    """Supersede each dead batch by two that are dead as it is: of its named members, and of the others. The ids of the
    former. Attempts, answer, times and marks are the parent's, and so is the version it was settled under: the totals
    count the two as they counted it."""
    sizes = _sizes(lane, [number for row in parents for number in runs.numbers(named[row.id])])
    children, ids = [], []
    for row in parents:
        taken = named[row.id]
        others = runs.subtract(runs.decode(row.members), taken)
        size = sum(sizes.get(number, 0) for number in runs.numbers(taken))
        for members, payload_bytes in ((taken, size), (others, row.payload_bytes - size)):
            children.append({**row._mapping, **_members_of(lane, members, payload_bytes)})
        ids.append(children[-2]["id"])
    _move_dead(lane, parents, SUPERSEDED)
    lane.connection.execute(insert(BATCH), children)
    return ids


def _members_of(lane: LockedLane, members: Runs, payload_bytes: int) -> dict[str, Any]:
    columns = batch_columns(lane, members, runs.count(members), payload_bytes)
    return {name: columns[name] for name in ("id", "members", "first_seq", "last_seq", "entries", "payload_bytes")}


def _sizes(lane: LockedLane, numbers: Sequence[int]) -> dict[int, int]:
    """Bytes of payload by number."""
    log = LOGS[lane.lane]
    sizes = select(log.c.seq, log.c.size)
    return {
        row.seq: row.size
        for some in chunks(numbers)
        for row in lane.connection.execute(sizes.where(log.c.seq.in_(some)))
    }


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


def _move_dead(lane: LockedLane, dead: Sequence[Row[Any]], values: Mapping[str, Any]) -> None:
    still_dead = (BATCH.c.id.in_([row.id for row in dead]), BATCH.c.verdict == Ending.REFUSED)
    moved = lane.connection.execute(update(BATCH).where(*still_dead).values(values))
    assert moved.rowcount == len(dead), "the lane's row is locked: nobody else moves its dead letters"


def _leave_dead(lane: LockedLane, dead: Sequence[Row[Any]], values: Mapping[str, Any]) -> None:
    if not dead:
        return
    _move_dead(lane, dead, values)
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


def switch_off(lane: LockedLane, policy: Policy, reason: str, newest: int) -> int:
    """Switch the lane off and discard what waits up to the number ``newest``, counted, up to a chunk a call. Entries
    discarded; 0: none left.

    A leased batch is left alone. If it is not delivered it becomes waiting, or its lease expires, and the next call
    discards it.
    """
    lane.health = Health(LaneState.OFF, reason)
    overdue_lease = (
        BATCH.c.state == BatchState.LEASED,
        overdue(BATCH.c.due_at, lane.now, lane.now + policy.max_wait_us),
    )
    expired = update(BATCH).where(BATCH.c.lane == lane.key, *overdue_lease)
    lane.connection.execute(expired.values(state=BatchState.WAITING, lease_token=None, ambiguous=True))
    waiting = (BATCH.c.lane == lane.key, BATCH.c.state == BatchState.WAITING)
    count = lane.connection.execute(select(func.coalesce(func.sum(BATCH.c.entries), 0)).where(*waiting)).scalar_one()
    if count:
        values = ended(lane, Ending.DISCARDED) | {"last_error": reason}
        lane.connection.execute(update(BATCH).where(*waiting).values(values))
    late = holes.check(lane, policy, eager=True)
    if late:
        holes.fill(lane, late)
        _end(lane, late, 0, Ending.DISCARDED, reason)
    pending = [row for row in oldest_pending(lane, 10 * policy.batch_max_rows) if row.seq <= newest]
    return int(count) + runs.count(late) + end_pending(lane, pending, Ending.DISCARDED, reason)


def switch_on(lane: LockedLane) -> None:
    """Open the lane if it is off; a lane in any other state is not changed."""
    if lane.health.state is LaneState.OFF:
        lane.health = Health()
