"""Queries: an entry by id, dead letters, the status and outlook of a lane. Nothing here writes.

``find`` costs one index look-up a lane and then reads the batches whose span contains the number: O(1) for rows near
the end of the log, O(batches above the number) for old ones.
"""

from __future__ import annotations

import json
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from functools import cache
from itertools import islice
from typing import Any
from uuid import UUID

from sqlalchemy import Connection, Row, and_, bindparam, func, literal_column, select

from outbox.core import runs
from outbox.core.entry import DeadCounts, DeadLetter, EntryView, LaneStatus, moment
from outbox.core.health import Health, LaneState
from outbox.core.lane import Lane
from outbox.core.lifecycle import BatchState, Ending, Status, status_of
from outbox.core.policy import MICROSECONDS, is_due
from outbox.core.runs import Runs
from outbox.core.step import Outlook
from outbox.store import operate
from outbox.store.compiled import CompiledStatement
from outbox.store.dialects import now_us
from outbox.store.dialects.view import requeued
from outbox.store.ledger import IS_LIVE, TOTAL_OF, Clock, no_row
from outbox.store.operate import Named, Window, chunks, dead_letters
from outbox.store.schema import BATCH, HOLE, LANE, LOGS, REMOVED

REQUEUED: Any = literal_column(f"({requeued(BATCH.name)})")
"""Condition: the entries of the batch are pending. See ``requeued``."""

PENDING_COUNTED_EXACTLY = 10_000
"""Fewer pending rows are counted. Otherwise their number is estimated as highest number - cursor, an upper bound."""


def find(connection: Connection, entry_id: UUID) -> EntryView | None:
    for lane, log in LOGS.items():
        row = connection.execute(select(log).where(log.c.id == entry_id)).first()
        if row is not None:
            return _view(lane, row, batch_of(connection, lane, row.seq))
    return None


def batch_of(connection: Connection, lane: Lane, seq: int) -> Row[Any] | None:
    """The batch that has ``seq`` as a member, superseded ones excepted, with ``requeued``; None: it is in none."""
    spanning = (
        select(BATCH, REQUEUED.label("requeued"))
        .where(
            BATCH.c.lane == str(lane),
            BATCH.c.last_seq >= seq,
            BATCH.c.first_seq <= seq,
            BATCH.c.state != BatchState.SUPERSEDED,
        )
        .order_by(BATCH.c.last_seq)
    )
    for batch in connection.execute(spanning):
        if runs.intersect(runs.decode(batch.members), ((seq, seq),)):
            return batch
    return None


_IN_NO_BATCH: dict[str, Any] = {
    "status": Status.PENDING,
    "num_failed_send_attempts": 0,
    "settled_at": None,
    "last_error": None,
    "batch_id": None,
    "batch_state": None,
    "batch_entries": None,
    "batch_attempts": None,
    "maybe_delivered": False,
    "next_attempt_at": None,
    "receipt": None,
}


def _view(lane: Lane, row: Row[Any], batch: Row[Any] | None) -> EntryView:
    created = moment(row.created_at)
    assert created is not None
    entry = {"id": row.id, "lane": lane, "seq": row.seq, "created_at": created, "payload": row.payload}
    if batch is None:
        return EntryView(**entry, **_IN_NO_BATCH)
    state = BatchState(batch.state)
    ending = Ending(batch.verdict) if batch.verdict else None
    status = status_of(state, ending, requeued=bool(batch.requeued))
    return EntryView(
        **entry,
        status=status,
        num_failed_send_attempts=batch.attempts,
        settled_at=moment(batch.settled_at),
        last_error=batch.last_error,
        batch_id=batch.id,
        batch_state=state,
        batch_entries=batch.entries,
        batch_attempts=batch.attempts,
        maybe_delivered=bool(batch.ambiguous) and status is not Status.SENT,
        next_attempt_at=moment(batch.due_at) if state is BatchState.WAITING else None,
        receipt=json.loads(batch.receipt) if batch.receipt else None,
    )


def iterate_dead(connection: Connection, lane: Lane, window: Window) -> Iterator[DeadLetter]:
    """Dead entries of a lane in order of their batches, read in chunks: there may be as many batches as entries."""
    log = LOGS[lane]
    read = (log.c.seq, log.c.id, log.c.payload) if lane is Lane.USAGE else (log.c.seq, log.c.id)
    for some in chunks(_dead_numbers(connection, lane, window)):
        query = select(*read).where(log.c.seq.in_([number for _, number in some]))
        rows = {row.seq: row for row in connection.execute(query)}
        for batch, row in ((batch, rows[number]) for batch, number in some if number in rows):
            died = moment(batch.settled_at)
            assert died is not None, "a settled batch has its time (CHECK)"
            yield DeadLetter(
                id=row.id,
                lane=lane,
                batch_id=batch.id,
                died_at=died,
                num_failed_send_attempts=batch.attempts,
                maybe_delivered=bool(batch.ambiguous),
                last_error=batch.last_error,
                trace_count=json.loads(row.payload).get("trace_count") if lane is Lane.USAGE else None,
            )


def _dead_numbers(connection: Connection, lane: Lane, window: Window) -> Iterator[tuple[Row[Any], int]]:
    b = BATCH.c
    for batch, members in _dead(connection, lane, window, b.id, b.settled_at, b.attempts, b.ambiguous, b.last_error):
        for number in runs.numbers(members):
            yield batch, number


def _dead(connection: Connection, lane: Lane, window: Window, *columns: Any) -> Iterator[tuple[Row[Any], Runs]]:
    """Dead batches in order of ``last_seq``, which is unique among them, each with those of its members that are inside
    the window.

    Most entries died in a batch of one, which is found by its number. For other named ones the dead batches with
    several members are read once.
    """
    columns = (BATCH.c.last_seq, BATCH.c.members, *columns)
    numbers = window.numbers
    if numbers is None:
        for batch in _dead_batches(connection, lane, window, columns):
            yield batch, runs.decode(batch.members)
        return
    query = select(*columns).where(*dead_letters(str(lane), window))
    found = {
        batch.last_seq: batch
        for some in chunks(numbers)
        for batch in connection.execute(query.where(BATCH.c.last_seq.in_(some)))
    }
    rest = [number for number in numbers if number not in found]
    if rest:
        several = (BATCH.c.first_seq < BATCH.c.last_seq, BATCH.c.first_seq <= rest[-1])
        for batch in _dead_batches(connection, lane, replace(window, above=rest[0]), columns, where=several):
            if _among(rest, batch):
                found[batch.last_seq] = batch
    for last in sorted(found):
        yield found[last], _among(numbers, found[last])


def _among(numbers: Sequence[int], batch: Row[Any]) -> Runs:
    """The members of the batch that are among ``numbers``, which ascend."""
    spans = runs.decode(batch.members)
    return runs.from_sorted(
        [n for lo, hi in spans for n in numbers[bisect_left(numbers, lo) : bisect_right(numbers, hi)]]
    )


def _dead_batches(
    connection: Connection, lane: Lane, window: Window, columns: Sequence[Any], *, where: Sequence[Any] = ()
) -> Iterator[Row[Any]]:
    """Dead batches, whatever the window's ``numbers``, in order of ``last_seq``, read in chunks."""
    query = select(*columns).where(*where).order_by(BATCH.c.last_seq).limit(operate.CHUNK)
    while some := connection.execute(query.where(*dead_letters(str(lane), window))).all():
        yield from some
        window = replace(window, above=some[-1].last_seq)


def count_dead(connection: Connection, lane: Lane, window: Window) -> DeadCounts:
    if lane is not Lane.USAGE and window.numbers is None:
        total = select(func.coalesce(func.sum(BATCH.c.entries), 0)).where(*dead_letters(str(lane), window))
        return DeadCounts(int(connection.execute(total).scalar_one()), 0)
    if lane is not Lane.USAGE:
        return DeadCounts(sum(runs.count(members) for _, members in _dead(connection, lane, window)), 0)
    entries = traces = 0
    for letter in iterate_dead(connection, lane, window):
        entries += 1
        traces += letter.trace_count or 0
    return DeadCounts(entries, traces)


def numbers_of(connection: Connection, entry_ids: Iterable[UUID]) -> dict[Lane, list[int]]:
    """The numbers of the entries, ascending, by lane; ids that are in no log are left out."""
    found: dict[Lane, list[int]] = {}
    left = set(entry_ids)
    for lane, log in LOGS.items():
        numbers = {
            row.id: row.seq
            for some in chunks(sorted(left))
            for row in connection.execute(select(log.c.id, log.c.seq).where(log.c.id.in_(some)))
        }
        left -= numbers.keys()
        found[lane] = sorted(numbers.values())
    return found


def named_dead(connection: Connection, lane: Lane, window: Window) -> Named:
    """The dead batches with entries that the window names, and these entries. Of a window that names none: the first
    chunk of its batches, in order of ``last_seq``, whole."""
    most = operate.CHUNK if window.numbers is None else None
    return {batch.id: members for batch, members in islice(_dead(connection, lane, window, BATCH.c.id), most)}


def _live(state: BatchState, what: Any, *which: Any) -> Any:
    live = (BATCH.c.lane == LANE.c.lane, BATCH.c.state == state, *which)
    return select(func.coalesce(what, 0)).where(*live).scalar_subquery()


def _total(name: str) -> Any:
    """A counter of the lane's row plus the entries settled since the last fold."""
    unfolded = (
        select(func.coalesce(func.sum(BATCH.c.entries), 0))
        .where(
            BATCH.c.lane == LANE.c.lane,
            BATCH.c.settled_version > LANE.c.folded_version,
            BATCH.c.verdict.in_([ending for ending, total in TOTAL_OF.items() if total == name]),
        )
        .scalar_subquery()
    )
    return (LANE.c[name] + unfolded).label(f"all_{name}")


_STATUS = select(
    LANE,
    now_us().label("now"),
    _live(BatchState.LEASED, func.sum(BATCH.c.entries)).label("in_flight"),
    _live(BatchState.LEASED, func.count()).label("senders"),
    _live(BatchState.WAITING, func.sum(BATCH.c.entries)).label("waiting"),
    _live(BatchState.WAITING, func.sum(BATCH.c.entries), REQUEUED).label("requeued"),
    select(func.min(BATCH.c.first_seq))
    .where(BATCH.c.lane == LANE.c.lane, IS_LIVE)
    .scalar_subquery()
    .label("first_live"),
    _total("sent"),
    _total("dead"),
    _total("shed"),
    select(func.coalesce(func.sum(REMOVED.c.times), 0))
    .where(REMOVED.c.lane == LANE.c.lane)
    .scalar_subquery()
    .label("removed"),
).where(LANE.c.lane == bindparam("key"))
"""One statement, so one snapshot: a batch settled meanwhile is neither left out nor counted twice."""

# Built once, as in ledger.py: idle workers and monitoring ask often.
_NEWER = {lane: log.c.seq > bindparam("cursor") for lane, log in LOGS.items()}
_COUNT = {
    lane: select(func.count()).select_from(
        # Ordered, so by the index: PostgreSQL expects a third of the log to match, and would scan from the oldest row.
        select(LOGS[lane].c.seq).where(newer).order_by(LOGS[lane].c.seq).limit(PENDING_COUNTED_EXACTLY).subquery()
    )
    for lane, newer in _NEWER.items()
}
_HIGHEST = {lane: select(func.max(log.c.seq)) for lane, log in LOGS.items()}
_FIRST = {
    lane: select(LOGS[lane].c.created_at).where(newer).order_by(LOGS[lane].c.seq).limit(1)
    for lane, newer in _NEWER.items()
}
_WRITTEN = {lane: select(log.c.created_at).where(log.c.seq == bindparam("number")) for lane, log in LOGS.items()}
_IN_HOLES = {
    lane: select(log.c.created_at)
    .select_from(HOLE)
    .join(log, and_(log.c.seq >= HOLE.c.lo, log.c.seq <= HOLE.c.hi))
    .where(HOLE.c.lane == str(lane), HOLE.c.forgotten_at.is_(None))
    for lane, log in LOGS.items()
}


def lane_status(connection: Connection, lane: Lane, clock: Clock | None = None) -> LaneStatus:
    row = connection.execute(_STATUS, {"key": str(lane)}).one_or_none()
    if row is None:
        raise no_row(lane)
    now = row.now if clock is None else clock()
    pending, oldest = _unclaimed(connection, lane, row.cursor)
    if row.first_live is not None:
        written = connection.execute(_WRITTEN[lane], {"number": row.first_live}).scalar()
        oldest = min((time for time in (oldest, written) if time is not None), default=None)
    return LaneStatus(
        state=row.state,
        reason=row.reason,
        pending=pending + int(row.requeued),
        in_flight=int(row.in_flight),
        waiting=int(row.waiting) - int(row.requeued),
        sent=int(row.all_sent),
        dead=int(row.all_dead),
        shed=int(row.all_shed),
        oldest_pending_seconds=None if oldest is None else max(0.0, (now - oldest) / MICROSECONDS),
        failed_attempts=row.failed_attempts,
        senders=int(row.senders),
        strays=row.strays,
        removed=int(row.removed),
        next_probe_seconds=None if row.next_probe_at is None else max(0.0, (row.next_probe_at - now) / MICROSECONDS),
        rejected=row.rejected,
        shortfall=row.shortfall,
        last_warning=row.last_warning,
        last_warning_at=moment(row.last_warning_at),
    )


def unclaimed_seconds(connection: Connection, lane: Lane) -> float:
    """The age of the oldest entry in no batch; 0: there is none."""
    row = connection.execute(select(LANE.c.cursor, now_us().label("now")).where(LANE.c.lane == str(lane))).one()
    _, oldest = _unclaimed(connection, lane, row.cursor)
    return 0.0 if oldest is None else max(0.0, (row.now - oldest) / MICROSECONDS)


def newest(connection: Connection, lane: Lane) -> int:
    """The highest number in the log; 0: it is empty."""
    return connection.execute(_HIGHEST[lane]).scalar() or 0


def _unclaimed(connection: Connection, lane: Lane, cursor: int) -> tuple[int, int | None]:
    """The number of entries in no batch, and when the oldest of them was written (µs); None: there are none."""
    above = {"cursor": cursor}
    count = connection.execute(_COUNT[lane], above).scalar_one()
    if count == PENDING_COUNTED_EXACTLY:
        count = connection.execute(_HIGHEST[lane]).scalar_one() - cursor
    first = connection.execute(_FIRST[lane], above).scalar()
    late = connection.execute(_IN_HOLES[lane]).scalars().all()  # written late, inside holes
    times = [time for time in (first, *late) if time is not None]
    return int(count) + len(late), min(times, default=None)


@cache
def something_to_do(lane: Lane) -> CompiledStatement:
    """A query with one row: whether there are new rows (``newer``), the first due time of a live batch and of a hole
    (µs or NULL), and state, next probe, version and cursor of the lane."""
    log = LOGS[lane]
    key = str(lane)
    # max(), not EXISTS: PostgreSQL would scan from the oldest row as in _COUNT, and EXISTS takes no order.
    newer = select(func.coalesce(func.max(log.c.seq), 0)).scalar_subquery() > LANE.c.cursor
    due = select(func.min(BATCH.c.due_at)).where(BATCH.c.lane == key, IS_LIVE).scalar_subquery()
    hole = select(func.min(HOLE.c.next_check_at)).where(HOLE.c.lane == key).scalar_subquery()
    says = (LANE.c.state, LANE.c.next_probe_at, LANE.c.version, LANE.c.cursor)
    waits = (newer.label("newer"), due.label("due_at"), hole.label("hole_at"))
    return CompiledStatement(select(*says, *waits, now_us().label("now")).where(LANE.c.lane == key))


def first_timer(row: Any) -> int | None:
    """When the first batch or hole is due (µs), from a row of ``something_to_do``; None: none waits."""
    return min((at for at in (row.due_at, row.hole_at) if at is not None), default=None)


def outlook_of(row: Any, now: int, health: Health, max_wait_us: int) -> Outlook:
    """The outlook from a row of ``something_to_do`` for a lane with this ``health``. ``now``: µs."""
    if health.state is LaneState.OFF or health.stopped:
        return Outlook(False, None, paused=True)
    first = first_timer(row)
    if health.state is LaneState.PAUSED:
        waiting = bool(row.newer) or first is not None
        probe = health.may_send(now, max_wait_us)
        left = max(0.0, ((row.next_probe_at or now) - now) / MICROSECONDS)
        return Outlook(waiting and probe, left if waiting else None, paused=waiting and not probe)
    due = first is not None and is_due(first, now, max_wait_us)
    return Outlook(bool(row.newer) or due, None if first is None else max(0.0, (first - now) / MICROSECONDS))
