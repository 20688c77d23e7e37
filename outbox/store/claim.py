"""What to send next, in this order: a batch that is due, rows found in holes, rows above the cursor.

Every function works inside a transaction that holds the lane's row, so no two workers decide at once. Nothing
is sent before that transaction commits.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any
from uuid import UUID, uuid4

from sqlalchemy import Row, Select, and_, func, or_, select, update

from outbox.core import batching, runs
from outbox.core.batch import Batch
from outbox.core.health import LaneState, probing
from outbox.core.lane import LANES
from outbox.core.lifecycle import BatchState
from outbox.core.policy import MICROSECONDS, Policy
from outbox.core.runs import Runs
from outbox.core.transition import Move, after_crash
from outbox.store import holes
from outbox.store.dialects import dialect_of
from outbox.store.ledger import LockedLane, add_to_totals, backoff, insert_batch, live_batches
from outbox.store.schema import BATCH, LOGS
from outbox.store.settle import halve

_READ_AT_ONCE_BYTES = 8 * 1024 * 1024
"""Where a full batch of the largest entries fits this, payloads are read with the numbers: one query for two."""


@dataclass(frozen=True, slots=True)
class Found:
    """Entries to cut a batch from: numbers ascending, and their payloads."""

    numbers: Sequence[int]
    payloads: Sequence[str]


def claim(lane: LockedLane, policy: Policy, *, look_due: bool, eager_holes: bool = False) -> Batch | None:
    """Lease one batch, or None when nothing can be sent now.

    ``look_due``: also look for due batches and holes; the caller does so by a timer and when nothing is new, so
    that a busy claim does not walk the index of settled leases each time.
    """
    if not lane.health.may_send(lane.now, policy.max_wait_us):
        return None
    if lane.health.state is not LaneState.OPEN:
        return _probe(lane, policy, eager_holes)
    batch = None
    if look_due:
        batch = _due(lane, policy, probe=False) or _from_holes(lane, policy, eager_holes)
        if batch is None and live_batches(lane) >= policy.live_batches:
            return None
    return batch or _new(lane, policy)


def _probe(lane: LockedLane, policy: Policy, eager_holes: bool) -> Batch | None:
    """Whatever waits, due or not; while everything is refused, every other time what was never refused."""
    batch = _new(lane, policy) if lane.health.fresh_first else None
    batch = batch or _due(lane, policy, probe=True) or _from_holes(lane, policy, eager_holes)
    if batch is None and live_batches(lane) < policy.live_batches:
        batch = _new(lane, policy)
    if batch is None:
        return None
    lane.health = probing(lane.health, lane.now, policy.lease_us)
    return replace(batch, probe_until=lane.health.next_probe_at)


def _due(lane: LockedLane, policy: Policy, probe: bool) -> Batch | None:
    """Lease the batch that has been due longest; a probe takes any waiting one."""
    while True:
        row = lane.connection.execute(_due_query(lane, policy, probe)).first()
        if row is None:
            return None
        if row.state == BatchState.WAITING or _again_at_once(lane, policy, row):
            return _lease_again(lane, policy, row)


def _again_at_once(lane: LockedLane, policy: Policy, row: Row[Any]) -> bool:
    """Whether a batch whose lease has expired is sent again now; if not, it waits or is halved."""
    add_to_totals(lane, failed_attempts=1)
    jitter = backoff(policy)
    crashes = row.crash_count + 1
    crash = after_crash(
        attempts=row.attempts,
        crashes=crashes,
        entries=row.entries,
        backoff_base=jitter.base,
        backoff_max=jitter.maximum,
        draw=jitter.draw,
    )
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


def _due_query(lane: LockedLane, policy: Policy, probe: bool) -> Select[Any]:
    overdue = or_(BATCH.c.due_at <= lane.now, BATCH.c.due_at > lane.now + policy.max_wait_us)
    waiting = BATCH.c.state == BatchState.WAITING
    expired = and_(BATCH.c.state == BatchState.LEASED, overdue)
    return (
        select(BATCH)
        .where(BATCH.c.lane == lane.key, or_(waiting if probe else and_(waiting, overdue), expired))
        .order_by(BATCH.c.due_at)
        .limit(1)
    )


def _lease_again(lane: LockedLane, policy: Policy, row: Row[Any]) -> Batch:
    """The same members under the same key and a new token. An expired lease counts as an attempt."""
    crashed: bool = row.state == BatchState.LEASED
    token = uuid4()
    deadline = lease_deadline(policy)
    members = runs.decode(row.members)
    payloads = read_payloads(lane, members, row.entries)
    lane.connection.execute(
        update(BATCH)
        .where(BATCH.c.id == row.id)
        .values(
            state=BatchState.LEASED,
            lease_token=token,
            due_at=lane.now + policy.lease_us,
            attempts=row.attempts + crashed,
            crash_count=row.crash_count + crashed,
            ambiguous=bool(row.ambiguous) or crashed,
        )
    )
    return Batch(
        id=row.id,
        lane=lane.lane,
        members=members,
        rows=row.entries,
        payload_bytes=row.payload_bytes,
        attempts=row.attempts + crashed,
        lease_token=token,
        lease_deadline=deadline,
        ambiguous=bool(row.ambiguous) or crashed,
        payloads=payloads,
    )


def _from_holes(lane: LockedLane, policy: Policy, eager: bool) -> Batch | None:
    members = holes.check(lane, policy, eager=eager)
    if not members:
        return None
    numbers = list(runs.numbers(members))
    payloads = read_payloads(lane, members, len(numbers))
    count = batching.cut([len(payload) for payload in payloads], policy.max_batch_bytes(lane.lane))
    taken, _ = runs.split(members, count)
    holes.fill(lane, taken)
    return _lease(lane, policy, taken, payloads[:count])


def _new(lane: LockedLane, policy: Policy) -> Batch | None:
    found = _above_cursor(lane, policy)
    count = len(found.numbers)
    gaps = batching.gaps(lane.cursor, found.numbers)
    if gaps and not dialect_of(lane.connection).single_writer:
        count = _before_young_gap(lane, policy, found.numbers, gaps)
    if count == 0:
        return None
    numbers = found.numbers[:count]
    holes.record(lane, [gap for gap in gaps if gap[1] < numbers[-1]])
    lane.cursor = numbers[-1]
    return _lease(lane, policy, runs.from_sorted(numbers), found.payloads[:count])


def _above_cursor(lane: LockedLane, policy: Policy) -> Found:
    log = LOGS[lane.lane]
    limit = policy.max_batch_bytes(lane.lane)
    above = (log.c.seq > lane.cursor,)
    if policy.batch_max_rows * LANES[lane.lane].max_payload_bytes <= _READ_AT_ONCE_BYTES:
        query = select(log.c.seq, log.c.payload).where(*above).order_by(log.c.seq).limit(policy.batch_max_rows)
        rows = lane.connection.execute(query).all()
        numbers, payloads = zip(*rows, strict=True) if rows else ((), ())
        count = batching.cut(list(map(len, payloads)), limit)
        return Found(numbers[:count], payloads[:count])
    query = select(log.c.seq, log.c.size).where(*above).order_by(log.c.seq).limit(policy.batch_max_rows)
    rows = lane.connection.execute(query).all()
    if not rows:
        return Found((), ())
    numbers, sizes = zip(*rows, strict=True)
    numbers = numbers[: batching.cut(sizes, limit)]
    return Found(numbers, read_payloads(lane, runs.from_sorted(numbers), len(numbers)))


def _before_young_gap(lane: LockedLane, policy: Policy, numbers: Sequence[int], gaps: Runs) -> int:
    """How many of ``numbers`` come before the first gap whose next row is young.

    Whoever took a missing number did so before the next row's was taken, and commits about now: waiting a moment
    costs nothing and saves a hole. A row from the future is not young: the clock was set back.
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


def read_payloads(lane: LockedLane, members: Runs, entries: int) -> Sequence[str]:
    """The payloads of ``members`` in order. Raises ``MembersMissing`` when the log has not all of them."""
    log = LOGS[lane.lane]
    first, last = members[0][0], members[-1][1]
    query = select(log.c.seq, log.c.payload).order_by(log.c.seq)
    if last - first < 4 * entries:
        rows = lane.connection.execute(query.where(log.c.seq.between(first, last))).all()
        if len(rows) > entries:
            wanted = frozenset(runs.numbers(members))
            rows = [row for row in rows if row[0] in wanted]
    else:
        rows = lane.connection.execute(query.where(log.c.seq.in_(list(runs.numbers(members))))).all()
    if len(rows) != entries:
        raise MembersMissing(lane, entries, len(rows))
    return [row[1] for row in rows]


class MembersMissing(Exception):
    """The log lost rows that a batch holds: somebody deleted or restored them."""

    def __init__(self, lane: LockedLane, entries: int, present: int) -> None:
        super().__init__(
            f"a batch of {entries} entries has only {present} rows left in {LANES[lane.lane].table}: they were deleted"
            f" or the table was restored. To send what is left, run: outbox audit --mend --lane {lane.lane}"
        )


def lease_deadline(policy: Policy) -> float:
    """On the monotonic clock of this process: a POST that starts later might still run when the lease is over."""
    return time.monotonic() + policy.lease_seconds - policy.request_timeout


def _lease(lane: LockedLane, policy: Policy, members: Runs, payloads: Sequence[str]) -> Batch:
    token: UUID = uuid4()
    deadline = lease_deadline(policy)
    payload_bytes = sum(map(len, payloads))
    batch_id = insert_batch(
        lane,
        members,
        len(payloads),
        payload_bytes,
        state=BatchState.LEASED,
        lease_token=token,
        due_at=lane.now + policy.lease_us,
    )
    return Batch(
        id=batch_id,
        lane=lane.lane,
        members=members,
        rows=len(payloads),
        payload_bytes=payload_bytes,
        attempts=0,
        lease_token=token,
        lease_deadline=deadline,
        ambiguous=False,
        payloads=payloads,
    )
