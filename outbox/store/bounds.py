"""Bounds of a lane: telemetry sheds its oldest entries, usage refuses new ones.

Only entries above the cursor are shed, never those of a live batch. They become a settled batch, and are counted.
Dead letters that an operator requeued do not count until they are leased: newer entries would be shed in their place.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple
from uuid import UUID

from sqlalchemy import ColumnElement, Connection, func, not_, select

from outbox.core.entry import state_and_reason
from outbox.core.lane import Lane
from outbox.core.lifecycle import LIVE, BatchState, Ending
from outbox.core.policy import MICROSECONDS, Bounds
from outbox.errors import OutboxFull
from outbox.store.age import Steadied
from outbox.store.dialects import Row as LogRow
from outbox.store.dialects import now_us
from outbox.store.ledger import LockedLane
from outbox.store.operate import chunks, end_pending, oldest_pending
from outbox.store.queries import REQUEUED
from outbox.store.schema import BATCH, LANE, LOGS, UNTRANSLATED

SHED_AT_ONCE = 5_000
"""Entries shed in one transaction."""


_COUNTED = (BATCH.c.state.in_(LIVE), not_(REQUEUED))
"""Conditions: a live batch counts against the bounds."""


class Load(NamedTuple):
    """Entries, and the bytes of their payloads."""

    entries: int
    size: int


@dataclass(frozen=True, slots=True)
class Surplus:
    """By how much a lane exceeded its bounds when it was measured. ``size`` in bytes, times in µs."""

    entries: int
    size: int
    before: int
    """Entries written before this time are too old."""
    cursor: int
    live: Load
    """What live batches held. Together with the entries above the cursor this is all that counts."""
    reason: str

    def now(self, lane: LockedLane) -> Load:
        """The surplus that is left now, after this process and others have shed, claimed and delivered; it may be
        negative.

        0 if the floor has passed the cursor of the measurement: receipts below the floor may have been deleted, and
        with them the count of what left the lane. Nothing more is shed before the next measurement.
        """
        if lane.floor > self.cursor:
            return Load(0, 0)
        live = _held_by(lane.connection, lane.lane, *_COUNTED)
        left = _held_by(lane.connection, lane.lane, BATCH.c.first_seq > self.cursor, BATCH.c.last_seq > self.cursor)
        return Load(
            self.entries + live.entries - self.live.entries - left.entries,
            self.size + live.size - self.live.size - left.size,
        )


def surplus(connection: Connection, lane: Lane, bounds: Bounds, clock: Steadied) -> Surplus | None:
    """Measure the lane; all in the snapshot of ``connection``. None: it is within its bounds, or has no entry above the
    cursor to shed."""
    log = LOGS[lane]
    row = connection.execute(select(LANE.c.cursor, now_us().label("now")).where(LANE.c.lane == str(lane))).one()
    cursor, now = row.cursor, clock(row.now)
    pending = select(func.count(), func.coalesce(func.sum(log.c.size), 0), func.min(log.c.created_at))
    entries, size, oldest = connection.execute(pending.where(log.c.seq > cursor)).one()
    if not entries:
        return None
    live = _held_by(connection, lane, *_COUNTED)
    more = Load(int(entries) + live.entries - bounds.entries, int(size) + live.size - bounds.size)
    before = now - int(bounds.age_seconds * MICROSECONDS)
    limits = [
        (more.entries > 0, f"more than {bounds.entries} entries (OUTBOX_TELEMETRY_MAX_ENTRIES)"),
        (more.size > 0, f"more than {bounds.size} bytes (OUTBOX_TELEMETRY_MAX_BYTES)"),
        (oldest < before, f"older than {bounds.age_seconds:g} s (OUTBOX_TELEMETRY_MAX_AGE)"),
    ]
    reasons = [reason for holds, reason in limits if holds]
    return Surplus(*more, before, cursor, live, "shed: " + ", ".join(reasons)) if reasons else None


def _held_by(connection: Connection, lane: Lane, *which: ColumnElement[bool]) -> Load:
    """What the batches of a lane that meet the conditions ``which`` hold, superseded ones excepted."""
    sums = [func.coalesce(func.sum(column), 0) for column in (BATCH.c.entries, BATCH.c.payload_bytes)]
    held = select(*sums).where(BATCH.c.lane == str(lane), BATCH.c.state != BatchState.SUPERSEDED, *which)
    return Load(*map(int, connection.execute(held).one()))


def shed(lane: LockedLane, beyond: Surplus) -> int:
    """Shed the oldest pending entries beyond the bounds, up to a chunk. Entries shed; 0: none left."""
    over = beyond.now(lane)
    oldest = oldest_pending(lane, SHED_AT_ONCE)
    count = size = 0
    for row in oldest:
        if over.entries <= count and over.size <= size and row.created_at >= beyond.before:
            break
        count += 1
        size += row.size
    return end_pending(lane, oldest[:count], Ending.SHED, beyond.reason)


def require_room(connection: Connection, lane: Lane, entries: int, bound: int, rows: Sequence[LogRow] = ()) -> None:
    """Raise ``OutboxFull`` unless ``entries`` more fit below ``bound``. ``rows``: the entries, where they are known;
    those whose id is there already take no room.

    First by the distance between the highest number and the cursor, which is never too low but includes numbers that
    were rolled back. Only if that exceeds the bound the waiting entries are counted, up to the bound, and only if they
    do the ids are looked up.
    """
    log = LOGS[lane]
    live = (
        select(func.coalesce(func.sum(BATCH.c.entries), 0))
        .where(BATCH.c.lane == str(lane), BATCH.c.state.in_(LIVE))
        .scalar_subquery()
    )
    newest = select(func.coalesce(func.max(log.c.seq), 0)).scalar_subquery()
    row = connection.execute(
        select(LANE.c.state, LANE.c.reason, LANE.c.cursor, newest.label("newest"), live.label("live")).where(
            LANE.c.lane == str(lane)
        ),
        execution_options=UNTRANSLATED,
    ).one()
    if max(row.newest - row.cursor, 0) + int(row.live) + entries <= bound:
        return
    # Ordered, so that PostgreSQL uses the index: see _COUNT in queries.py.
    above = select(log.c.seq).where(log.c.seq > row.cursor).order_by(log.c.seq).limit(bound + 1).subquery()
    counted = connection.execute(select(func.count()).select_from(above), execution_options=UNTRANSLATED)
    held = counted.scalar_one() + int(row.live)
    beyond = min(held + entries - bound, entries)
    there = _there(connection, lane, rows, beyond)
    if there >= beyond:
        return
    why = state_and_reason(row.state, row.reason)
    raise OutboxFull(
        f"{held} entries wait in lane {lane} and {entries - there} more would pass OUTBOX_{lane.upper()}_MAX_ENTRIES"
        f" ({bound}); none was written. The lane is {why}. Let a worker deliver (outbox status says what it waits"
        " for), or raise the bound."
    )


def _there(connection: Connection, lane: Lane, rows: Sequence[LogRow], wanted: int) -> int:
    """How many of the ``rows`` are in the log by their ids; counted only while ``wanted`` of them may be."""
    log, found, left = LOGS[lane], 0, len(rows)
    for some in chunks(rows):
        if found >= wanted or found + left < wanted:
            break
        there = select(func.count()).select_from(log).where(log.c.id.in_([UUID(bytes=id) for id, _, _ in some]))
        found += connection.execute(there, execution_options=UNTRANSLATED).scalar_one()
        left -= len(some)
    return found
