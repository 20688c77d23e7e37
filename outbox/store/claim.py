"""What to send next, in this order: a batch that is due, rows found in holes, rows above the cursor.

Every function works inside a transaction that holds the lock of the lane's row, so no two workers decide at once; or
for an optimistic step (optimistic.py), which is written only if no other worker has changed the lane. Nothing is sent
before the commit.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from sqlalchemy import Row, Table, bindparam, func, or_, select, update

from outbox.core import batching, runs
from outbox.core.batch import Batch
from outbox.core.health import LaneState, probing
from outbox.core.lane import LANES
from outbox.core.lifecycle import BatchState
from outbox.core.policy import MICROSECONDS, Policy
from outbox.core.runs import Runs
from outbox.core.transition import Move, after_crash
from outbox.store import holes
from outbox.store.compiled import CompiledStatement
from outbox.store.dialects import dialect_of
from outbox.store.ledger import (
    IS_LIVE,
    NEW,
    Inside,
    LockedLane,
    add_to_totals,
    backoff,
    batch_columns,
    new_id,
    overdue,
    waiting_of,
)
from outbox.store.read_ahead import RUN, fits_one_read, is_complete
from outbox.store.schema import BATCH, LOGS
from outbox.store.settle import halve


@dataclass(frozen=True, slots=True)
class Entries:
    """The entries of a batch to be made. ``lines``: see ``Batch.lines``; ``size``: bytes of payload."""

    members: Runs
    count: int
    size: int
    lines: str


def _sizes_of(log: Table) -> Any:
    above = log.c.seq > bindparam("after")
    return select(log.c.seq, log.c.size).where(above).order_by(log.c.seq).limit(bindparam("count"))


def _due_of(probe: bool) -> Any:
    b = BATCH.c
    due = overdue(b.due_at, bindparam("now"), bindparam("horizon"))
    waiting = b.state == BatchState.WAITING
    return (
        select(b.id, b.state, b.members, b.entries, b.payload_bytes, b.attempts, b.crash_count, b.ambiguous)
        .add_columns(b.lease_token, b.root_id, b.last_error)
        .where(b.lane == bindparam("key"), IS_LIVE, or_(waiting, due) if probe else due)
        .order_by(b.due_at)
        .limit(bindparam("count"))
    )


def _leasing_again() -> Any:
    names = ("state", "lease_token", "due_at", "attempts", "crash_count", "ambiguous")
    return update(BATCH).where(BATCH.c.id == bindparam("batch")).values({n: bindparam(NEW + n) for n in names})


_SIZES = {lane: CompiledStatement(_sizes_of(log)) for lane, log in LOGS.items()}
_DUE = {probe: CompiledStatement(_due_of(probe)) for probe in (True, False)}
_LEASE_AGAIN = CompiledStatement(_leasing_again())


def claim(lane: LockedLane, policy: Policy, *, want: int, look_due: bool, eager_holes: bool = False) -> Sequence[Batch]:
    """Lease up to ``want`` batches, as many as can be sent now.

    ``look_due``: also look for due batches and holes. The caller asks for it by a timer and when there are no new
    entries, so that a busy claim does not walk the index entries of settled leases each time.
    ``eager_holes``: look at the newest holes too, due or not.
    """
    batches: list[Batch] = []
    while len(batches) < want:
        more = _claim(lane, policy, want - len(batches), look_due, eager_holes)
        if not more:
            break
        batches += more
        if lane.cursor == lane.newest:
            break  # nothing is due either: due batches are claimed before new entries
    return batches


def _claim(lane: LockedLane, policy: Policy, want: int, look_due: bool, eager_holes: bool) -> Sequence[Batch]:
    """Batches that are due, else one from holes, else new ones; empty: none can be sent now."""
    if not lane.health.may_send(lane.now, policy.max_wait_us):
        return []
    if lane.health.state is not LaneState.OPEN:
        return _probe(lane, policy, eager_holes)
    if look_due:
        there = waiting_of(lane, policy.max_wait_us)
        if there.due:
            batches = _due(lane, policy, want)
            if batches:
                return batches
            there = waiting_of(lane, policy.max_wait_us)  # one may have been halved: there are more
        if there.hole_due or (there.holes and eager_holes):
            batches = _from_holes(lane, policy, eager_holes)
            if batches:
                return batches
        want = min(want, policy.live_batches - there.batches)
    return _new(lane, policy, want) if want > 0 else []


def _probe(lane: LockedLane, policy: Policy, eager_holes: bool) -> Sequence[Batch]:
    """At most one batch, the probe of a paused lane: a waiting one, due or not, then holes, then new entries. While
    the endpoint refuses everything, new entries, which were never refused, come first every other time."""
    batches = _new(lane, policy, 1) if lane.health.fresh_first else []
    if not batches:
        batches = _due(lane, policy, 1, probe=True) or _from_holes(lane, policy, eager_holes)
    if not batches and waiting_of(lane, policy.max_wait_us).batches < policy.live_batches:
        batches = _new(lane, policy, 1)
    if not batches:
        return []
    lane.health = probing(lane.health, lane.now, policy.lease_us)
    return [replace(batches[0], probe_until=lane.health.next_probe_at)]


def _due(lane: LockedLane, policy: Policy, want: int, *, probe: bool = False) -> Sequence[Batch]:
    """Lease again up to ``want`` batches, those that have been due longest; a ``probe`` takes a waiting one, due or
    not."""
    values = {"key": lane.key, "now": lane.now, "horizon": lane.now + policy.max_wait_us, "count": want}
    batches: list[Batch] = []
    while not batches and (rows := _DUE[probe].rows(lane.connection, values)):
        batches = [
            _lease_again(lane, policy, row)
            for row in rows
            if row.state == BatchState.WAITING or _sends_again(lane, policy, row)
        ]
    return batches


def _sends_again(lane: LockedLane, policy: Policy, row: Row[Any]) -> bool:
    """Whether a batch whose lease has expired is sent again now; if not, it was set to wait, or halved."""
    add_to_totals(lane, failed_attempts=1)
    crashes = row.crash_count + 1
    crash = after_crash(attempts=row.attempts, crashes=crashes, entries=row.entries, backoff=backoff(policy, lane.lane))
    error = f"{crashes} leases in a row ended without an answer: the worker was killed, stalled, or lost the database"
    if crash.move is Move.HALVE:
        halve(lane, row, attempts=crash.attempts, ambiguous=crash.ambiguous, error=error)
    elif crash.wait_seconds:
        lane.connection.execute(
            update(BATCH)
            .where(BATCH.c.id == row.id)
            .values(
                state=BatchState.WAITING,
                lease_token=None,
                due_at=lane.now + int(crash.wait_seconds * MICROSECONDS),
                attempts=crash.attempts,
                crash_count=crashes,
                ambiguous=crash.ambiguous,
                last_error=error,
            )
        )
    else:
        return True
    return False


def _lease_again(lane: LockedLane, policy: Policy, row: Row[Any]) -> Batch:
    """Lease the batch with the same members and key under a new token. An expired lease counts as an attempt."""
    crashed = row.state == BatchState.LEASED
    token = new_id()
    deadline = lease_deadline(lane, policy)
    members = runs.decode(row.members)
    entries = read_entries(lane, members)
    attempts, ambiguous = row.attempts + crashed, bool(row.ambiguous) or crashed
    leased = {
        "state": BatchState.LEASED,
        "lease_token": token,
        "due_at": lane.now + policy.lease_us,
        "attempts": attempts,
        "crash_count": row.crash_count + crashed,
        "ambiguous": ambiguous,
    }
    again = {"batch": row.id} | {NEW + name: value for name, value in leased.items()}
    _LEASE_AGAIN.changed(lane.connection, [again])
    return Batch(
        id=row.id,
        lane=lane.lane,
        members=members,
        rows=row.entries,
        payload_bytes=row.payload_bytes,
        attempts=attempts,
        lease_token=token,
        lease_deadline=deadline,
        ambiguous=ambiguous,
        lines=entries.lines,
    )


def _from_holes(lane: LockedLane, policy: Policy, eager: bool) -> Sequence[Batch]:
    members = holes.check(lane, policy, eager=eager)
    if not members:
        return []
    found = read_entries(lane, members)
    sizes = [len(payload) for payload in found.lines.split("\n")]
    count = batching.cut(sizes, policy.max_batch_bytes(lane.lane))
    taken, rest = runs.split(members, count)
    holes.fill(lane, taken)
    return [_lease(lane, policy, read_entries(lane, taken) if rest else found)]


def _new(lane: LockedLane, policy: Policy, want: int) -> Sequence[Batch]:
    """Batches of the entries above the cursor, which rises past them. At most one where a number is missing."""
    batches: list[Batch] = []
    while len(batches) < want and (not batches or lane.cursor != lane.newest):
        entries = _neighbours(lane, policy)
        if entries is None:
            break
        batches.append(_lease(lane, policy, entries))
    if not batches and lane.cursor != lane.newest:
        closer = _above_cursor(lane, policy)
        return [] if closer is None else [_lease(lane, policy, closer)]
    return batches


def _neighbours(lane: LockedLane, policy: Policy) -> Entries | None:
    """The entries of the next batch by one query, if no number is missing and they fit. None: ``_above_cursor``
    has to look row by row, unless the query found nothing above the cursor."""
    limit, most = policy.max_batch_bytes(lane.lane), policy.batch_max_rows
    if not fits_one_read(lane.lane, policy):
        return None
    first = lane.cursor + 1
    row = lane.ahead.get(first)
    if row is None or (row.entries != most and not lane.optimistic):
        row = lane.look(first) if lane.look else _run(lane, first, most)
        newest = row.newest
    else:
        newest = newest_seen(row, most)
    if (row.newest or 0) <= lane.cursor:
        lane.newest = lane.cursor
        return None
    if not row.entries or row.last - lane.cursor != row.entries or row.size > limit or not is_complete(row):
        return None
    if row.entries < most and row.last != row.newest:
        return None  # more entries follow behind a gap, and fit this batch
    lane.cursor, lane.newest = row.last, newest
    return Entries(((first, row.last),), row.entries, row.size, row.lines)


def newest_seen(row: Any, most: int) -> int | None:
    """The newest number in the log, from a row of ``RUN`` that was read earlier. None: the row held a full batch and
    nothing beyond it, so newer entries may have been committed since."""
    newest: int = row.newest
    return newest if row.entries < most or newest > row.last else None


def _run(lane: LockedLane, first: int, count: int) -> Any:
    [row] = RUN[lane.lane].rows(lane.connection, {"first": first, "last": first + count - 1})
    return row


def _above_cursor(lane: LockedLane, policy: Policy) -> Entries | None:
    """The entries of the next batch; the numbers that are missing before them become holes."""
    values = {"after": lane.cursor, "count": policy.batch_max_rows}
    rows = _SIZES[lane.lane].rows(lane.connection, values)
    if not rows:
        return None
    numbers, sizes = zip(*rows, strict=True)
    count = batching.cut(sizes, policy.max_batch_bytes(lane.lane))
    gaps = batching.gaps(lane.cursor, numbers[:count])
    if gaps and not dialect_of(lane.connection).single_writer:
        count = _before_young_gap(lane, policy, numbers[:count], gaps)
    if count == 0:
        return None
    holes.record(lane, [gap for gap in gaps if gap[1] < numbers[count - 1]])
    lane.cursor = numbers[count - 1]
    return read_entries(lane, runs.from_sorted(numbers[:count]))


def _before_young_gap(lane: LockedLane, policy: Policy, numbers: Sequence[int], gaps: Runs) -> int:
    """How many of ``numbers`` come before the first gap whose next row is young.

    The transaction that took a missing number took it before the next row's was taken, and commits about now: waiting
    a moment costs nothing and saves a hole. A row dated more than a second ahead is not young: the clock was set back.
    """
    log = LOGS[lane.lane]
    young_from = lane.now - int(policy.young_hole_seconds * MICROSECONDS)
    following = [hi + 1 for _, hi in gaps]
    first_young = lane.connection.execute(
        select(func.min(log.c.seq)).where(
            log.c.seq.in_(following), log.c.created_at > young_from, log.c.created_at < lane.now + MICROSECONDS
        )
    ).scalar()
    if first_young is None:
        return len(numbers)
    return sum(1 for number in numbers if number < first_young)


def read_entries(lane: LockedLane, members: Runs) -> Entries:
    """The entries at ``members``. Raises ``MembersMissing`` when the log has not all of them."""
    wanted = runs.count(members)
    if len(members) == 1:
        [row] = RUN[lane.lane].rows(lane.connection, {"first": members[0][0], "last": members[0][1]})
        if row.entries == wanted and is_complete(row):
            return Entries(members, row.entries, row.size, row.lines)
    payloads = _payloads(lane, members, wanted)
    if len(payloads) != wanted:
        raise MembersMissing(lane, wanted, len(payloads))
    # Stored payloads are compact JSON. A line break is white space between tokens, written into the table by hand.
    lines = "\n".join([payload.replace("\n", " ") for payload in payloads])
    return Entries(members, wanted, sum(map(len, payloads)), lines)


def _payloads(lane: LockedLane, members: Runs, entries: int) -> Sequence[str]:
    """Their payloads in order, read row by row; fewer than ``entries`` when rows are gone."""
    log = LOGS[lane.lane]
    first, last = members[0][0], members[-1][1]
    query = select(log.c.seq, log.c.payload).order_by(log.c.seq)
    if last - first < 4 * entries:
        wanted = frozenset(runs.numbers(members))
        rows = lane.connection.execute(query.where(log.c.seq.between(first, last))).all()
        return [payload for seq, payload in rows if seq in wanted]
    rows = lane.connection.execute(query.where(log.c.seq.in_(list(runs.numbers(members))))).all()
    return [payload for _, payload in rows]


class MembersMissing(Inside):
    """The log has lost rows of a batch: they were deleted by hand, or the table was restored."""

    def __init__(self, lane: LockedLane, entries: int, present: int) -> None:
        super().__init__(
            f"a batch of {entries} entries has only {present} rows left in {LANES[lane.lane].table}: they were deleted"
            f" or the table was restored. To send what is left, run: outbox audit --mend --lane {lane.lane}"
        )


def lease_deadline(lane: LockedLane, policy: Policy) -> float:
    """The latest start of a POST, by ``boottime``: one that starts later may still run when the lease ends."""
    return lane.at + policy.lease_seconds - policy.request_timeout


def lease_columns() -> dict[str, Any]:
    """The columns of a new lease except ``due_at``, its end."""
    token = new_id()  # not uuid4, which releases the interpreter lock to ask the kernel for 16 bytes
    return {"state": BatchState.LEASED, "lease_token": token}


def _lease(lane: LockedLane, policy: Policy, found: Entries) -> Batch:
    ends = (
        {"lease_us": policy.lease_us, "clock": lane.clock}
        if lane.optimistic
        else {"due_at": lane.now + policy.lease_us}
    )
    lease = lease_columns() | ends
    columns = batch_columns(lane, found.members, found.count, found.size, **lease)
    lane.leases.append(columns)
    return new_batch(lane, policy, found, columns)


def new_batch(lane: LockedLane, policy: Policy, found: Entries, columns: Mapping[str, Any]) -> Batch:
    """The batch in memory. ``columns``: those of its row, as it is inserted with its lease."""
    return Batch(
        id=columns["id"],
        lane=lane.lane,
        members=found.members,
        rows=found.count,
        payload_bytes=found.size,
        attempts=0,
        lease_token=columns["lease_token"],
        lease_deadline=lease_deadline(lane, policy),
        ambiguous=False,
        lines=found.lines,
    )
