"""What is deleted, and when: rows of settled batches, then their receipts. Never a dead letter, never a hole.

Purge deletes the members of a batch, never a range, and marks the batch under a guard in the same transaction;
then the floor rises past everything that is purged or forgotten.
"""

from __future__ import annotations

from sqlalchemy import Connection, delete, func, or_, select, update

from outbox.core import runs
from outbox.core.lane import LANES, Lane
from outbox.core.lifecycle import BatchState, Ending
from outbox.core.policy import Retention
from outbox.store.dialects import dialect_of
from outbox.store.ledger import LockedLane, add_to_totals
from outbox.store.schema import BATCH, HOLE

BATCHES_AT_ONCE = 200


def purge_batches(connection: Connection, lane: Lane, settled_before: int, now: int, chunk: int) -> int:
    """Delete the rows of settled batches, oldest first, about ``chunk`` rows. Rows deleted; 0: none left."""
    purgeable = (
        BATCH.c.lane == str(lane),
        BATCH.c.state == BatchState.SETTLED,
        BATCH.c.due_at <= settled_before,
        BATCH.c.purged_at.is_(None),
    )
    columns = (BATCH.c.id, BATCH.c.members, BATCH.c.entries)
    oldest = select(*columns).where(*purgeable).order_by(BATCH.c.due_at).limit(BATCHES_AT_ONCE)
    batches = connection.execute(oldest).all()
    deleted = 0
    for batch in batches:
        if deleted >= chunk:
            break
        mark = update(BATCH).where(BATCH.c.id == batch.id, *purgeable).values(purged_at=now, due_at=None)
        if connection.execute(mark).rowcount == 1:
            members = runs.decode(batch.members)
            dialect_of(connection).delete_runs(connection, LANES[lane].table, members)
            deleted += batch.entries
    return deleted


def oversize_before(connection: Connection, lane: Lane, retention: Retention, now: int) -> int:
    """Batches settled before this time are purged: by age, or sooner where the settled rows take too much room."""
    by_age = now - int(retention.sent_seconds * 1_000_000)
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
    at_least = now - int(retention.at_least_seconds * 1_000_000)
    return max(by_age, min(newest_to_go, at_least))


def raise_floor(lane: LockedLane) -> None:
    """The floor rises to just below the first number whose row is still needed or may still come."""
    rows_needed = select(func.min(BATCH.c.first_seq)).where(
        BATCH.c.lane == lane.key,
        BATCH.c.last_seq > lane.floor,
        BATCH.c.state != BatchState.SUPERSEDED,
        BATCH.c.purged_at.is_(None),
    )
    may_come = select(func.min(HOLE.c.lo)).where(HOLE.c.lane == lane.key, HOLE.c.forgotten_at.is_(None))
    limits = [lane.connection.execute(query).scalar() for query in (rows_needed, may_come)]
    floor = min([lane.cursor, *(limit - 1 for limit in limits if limit is not None)])
    if floor <= lane.floor:
        return
    lane.floor = floor
    forgotten = (HOLE.c.lane == lane.key, HOLE.c.forgotten_at.is_not(None))
    lane.connection.execute(delete(HOLE).where(*forgotten, HOLE.c.hi <= floor))
    lane.connection.execute(update(HOLE).where(*forgotten, HOLE.c.lo <= floor).values(lo=floor + 1))


def delete_receipts(lane: LockedLane, settled_before: int) -> int:
    """Delete batch rows that the ledger needs no more. Rows deleted."""
    old = delete(BATCH).where(
        BATCH.c.lane == lane.key,
        BATCH.c.last_seq <= lane.floor,
        or_(
            (BATCH.c.purged_at < settled_before) & (BATCH.c.settled_version <= lane.folded_version),
            (BATCH.c.state == BatchState.SUPERSEDED) & (BATCH.c.created_at < settled_before),
        ),
    )
    return lane.connection.execute(old).rowcount


_TOTAL_OF = {
    Ending.DELIVERED: "sent",
    Ending.REFUSED: "dead",
    Ending.SHED: "shed",
    Ending.DISCARDED: "shed",
}


def fold_totals(lane: LockedLane) -> None:
    """Add what settled since the last fold to the lane's totals.

    Settles carry the version of the lane that they were written under, and its lock is held here: nothing older
    can still arrive.
    """
    query = (
        select(BATCH.c.verdict, func.sum(BATCH.c.entries))
        .where(BATCH.c.lane == lane.key, BATCH.c.settled_version > lane.folded_version)
        .group_by(BATCH.c.verdict)
    )
    amounts: dict[str, int] = {}
    for verdict, entries in lane.connection.execute(query).all():
        name = _TOTAL_OF[Ending(verdict)]
        amounts[name] = amounts.get(name, 0) + int(entries)
    add_to_totals(lane, **amounts)
    lane.folded_version = lane.version
