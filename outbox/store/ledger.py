"""The row of a lane, and the SQL that changes batches under it.

A transaction that changes batches or holes of a lane locks the lane's row first, and saves it last under the version
that it read. An optimistic step (optimistic.py) takes no lock: it relies on the comparison of the version alone.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from typing import Any
from uuid import UUID

import uuid_utils
from sqlalchemy import ColumnElement, Connection, Update, bindparam, func, insert, or_, select, true, update

from outbox.boottime import boottime
from outbox.core.backoff import Backoff
from outbox.core.health import Health, LaneState
from outbox.core.lane import Lane
from outbox.core.lifecycle import LIVE, BatchState, Ending
from outbox.core.policy import Policy, is_due
from outbox.core.runs import Runs, encode
from outbox.errors import SchemaOutOfDate
from outbox.store.compiled import CompiledStatement
from outbox.store.dialects import now_us
from outbox.store.schema import BATCH, HOLE, LANE

Clock = Callable[[], int]
"""Returns microseconds since the epoch. Given only by tests; otherwise the database's clock is used."""


class Inside(Exception):
    """Base of exceptions that the store raises between statements, never while one is running: the connection stays
    usable after them."""


class LostClaim(Inside):
    """Another worker has changed the lane since its row was read."""


class NeedsLock(Inside):
    """Raised by an optimistic step (``optimistic.py``) when it needs the lane's lock."""


@dataclass(slots=True)
class LockedLane:
    """The row of a lane inside a transaction that holds its lock, or in an optimistic step (``optimistic.py``), where
    ``connection`` cannot be used. Changes to it are written at the end of either."""

    connection: Connection
    lane: Lane
    floor: int
    cursor: int
    version: int
    """The version that will be saved: one above the version read."""
    folded_version: int
    health: Health
    now: int
    at: float
    """``boottime`` (s) at ``now`` or a little before it: a lease that begins at ``now`` is counted from here, so this
    process never believes it to last longer than the database does."""
    newest: int | None = None
    """The number of the newest entry that a claim saw; None: unknown, newer ones may have been committed."""
    untouched: bool = False
    """True: nothing was written under the lock, so the row need not be saved."""
    ahead: Mapping[int, Any] = field(default_factory=dict)
    """Rows of ``RUN`` read before the lock was taken, by their first number: see ``read_ahead.py``."""
    leases: list[dict[str, Any]] = field(default_factory=list)
    """Columns of the batches to insert by one statement before the lane's row is saved."""
    look: Callable[[int], Any] | None = None
    """Set in an optimistic step only: reads the row of ``RUN`` from a number on, without the lock."""
    arrivals: list[dict[str, Any]] = field(default_factory=list)
    """Parameters of ``leased_batch``: the delivered batches that an optimistic step settles when it writes."""
    clock: int | None = None
    """In an optimistic step of tests: ``now``. None: new leases begin by the database's clock."""

    @property
    def optimistic(self) -> bool:
        return self.look is not None

    @property
    def emptied(self) -> bool:
        """Whether no entry is known above the cursor: a claim saw none, or took all that its caller handed over."""
        return self.newest == self.cursor

    @property
    def key(self) -> str:
        return str(self.lane)


_LOCK = CompiledStatement(select(LANE, now_us().label("now")).where(LANE.c.lane == bindparam("key")).with_for_update())
_INSERT_BATCH = insert(BATCH)


@cache
def leasing(names: tuple[str, ...]) -> CompiledStatement:
    return CompiledStatement(_INSERT_BATCH, *names)


@cache
def save_lane(names: tuple[str, ...]) -> CompiledStatement:
    return CompiledStatement(saved_lane(names))


def saved_lane(names: Iterable[str]) -> Update:
    """The compare-and-swap of a lane's row: an UPDATE of ``names`` if version and cursor are still those that were
    read. Its parameters: see ``saving``."""
    read = [LANE.c.lane == bindparam("key")]
    read += [LANE.c[name] == bindparam(f"read_{name}") for name in ("version", "cursor")]
    return update(LANE).where(*read).values({name: bindparam(NEW + name) for name in names})


NEW = "new_"
"""Prefix of the parameter that holds the new value of a column."""


LEASED = {"batch": BATCH.c.id, "token": BATCH.c.lease_token, "leased": BATCH.c.state}
"""The parameters of the lease fence, with the columns they are compared to."""


def still_leased(batch_id: Any, token: Any, leased: Any = BatchState.LEASED) -> Sequence[ColumnElement[bool]]:
    """The lease fence as WHERE conditions, which no row meets when the lease was lost. The arguments are values or
    bind parameters."""
    return BATCH.c.id == batch_id, BATCH.c.lease_token == token, BATCH.c.state == leased


def leased_batch(names: Iterable[str], prefix: str = "") -> Update:
    """The UPDATE of a batch under the lease fence. ``names``: of its parameters ``batch``, ``token``, ``leased`` and
    ``new_...``, each of which gets the ``prefix``."""
    fence = still_leased(*(bindparam(prefix + name) for name in LEASED))
    changed: dict[str, Any] = {n.removeprefix(NEW): bindparam(prefix + n) for n in names if n.startswith(NEW)}
    return update(BATCH).where(*fence).values(changed)


@cache
def settling(names: tuple[str, ...]) -> CompiledStatement:
    return CompiledStatement(leased_batch(names))


@contextmanager
def locked(connection: Connection, lane: Lane, clock: Clock | None = None) -> Iterator[LockedLane]:
    """Lock the lane's row; after the block save what it changed, with the version raised by one.

    Raises ``LostClaim`` when the version moved (possible on Galera, where a lock is local to a node), and
    ``SchemaOutOfDate`` when the lane has no row.
    """
    at = boottime()
    rows = _LOCK.rows(connection, {"key": str(lane)})
    if not rows:
        raise no_row(lane)
    [row] = rows
    now = row.now if clock is None else clock()
    before = _health(row)
    state = LockedLane(connection, lane, row.floor, row.cursor, row.version + 1, row.folded_version, before, now, at)
    yield state
    if state.untouched:
        return
    if state.leases:
        leasing(tuple(state.leases[0])).changed(connection, state.leases)
    values: dict[str, object] = {
        "version": state.version,
        "cursor": state.cursor,
        "floor": state.floor,
        "folded_version": state.folded_version,
    }
    if state.health != before:
        values |= _columns(state.health)
    if save_lane(tuple(values)).changed(connection, [saving(lane, row, values)]) != 1:
        raise LostClaim(lane)


def no_row(lane: Lane) -> SchemaOutOfDate:
    return SchemaOutOfDate(f"outbox_lane has no row for {lane}. Run: outbox migrate")


def saving(lane: Lane, read: Any, values: Mapping[str, object]) -> dict[str, object]:
    """Parameters of ``save_lane``. ``read``: an object with the ``version`` and ``cursor`` that were read."""
    fence = {"key": str(lane), "read_version": read.version, "read_cursor": read.cursor}
    return {NEW + name: value for name, value in values.items()} | fence


def _health(row: Any) -> Health:
    return Health(LaneState(row.state), row.reason, row.next_probe_at, row.failures, row.dead_streak)


def _columns(health: Health) -> dict[str, object]:
    return {
        "state": str(health.state),
        "reason": health.reason,
        "next_probe_at": health.next_probe_at,
        "failures": health.failures,
        "dead_streak": health.dead_streak,
    }


def backoff(policy: Policy, lane: Lane) -> Backoff:
    limited = policy.attempts_limit(lane) is not None
    return Backoff(policy.backoff_base, policy.backoff_max, random.random(), limited)  # noqa: S311 - jitter


TOTAL_OF = {
    Ending.DELIVERED: "sent",
    Ending.REFUSED: "dead",
    Ending.SHED: "shed",
    Ending.DISCARDED: "shed",
}
"""The counter in the lane's row for the entries of batches with this ending."""


def add_to_totals(lane: LockedLane, **amounts: int) -> None:
    """Add to counters in the lane's row, whose lock is held."""
    added = {name: amount for name, amount in amounts.items() if amount}
    if added:
        _adding(tuple(added)).changed(lane.connection, [{"key": lane.key} | {f"add_{n}": a for n, a in added.items()}])


@cache
def _adding(names: tuple[str, ...]) -> CompiledStatement:
    more = {name: LANE.c[name] + bindparam(f"add_{name}") for name in names}
    return CompiledStatement(update(LANE).where(LANE.c.lane == bindparam("key")).values(more))


def new_id() -> UUID:
    """A version 7 UUID: ascending, so a unique index on it grows at its end."""
    return UUID(bytes=uuid_utils.uuid7().bytes)


def insert_batch(lane: LockedLane, members: Runs, entries: int, payload_bytes: int, **columns: object) -> UUID:
    """Insert a batch and return its id, which is new unless ``columns`` has one."""
    values = batch_columns(lane, members, entries, payload_bytes, **columns)
    lane.connection.execute(_INSERT_BATCH, values)
    id: UUID = values["id"]
    return id


def batch_columns(
    lane: LockedLane, members: Runs, entries: int, payload_bytes: int, **columns: object
) -> dict[str, Any]:
    return {
        **new_columns(lane),
        "members": encode(members),
        "first_seq": members[0][0],
        "last_seq": members[-1][1],
        "entries": entries,
        "payload_bytes": payload_bytes,
        **columns,
    }


def new_columns(lane: LockedLane) -> dict[str, Any]:
    """The columns of a new batch that do not depend on its members."""
    batch_id = new_id()
    return {"id": batch_id, "lane": lane.key, "root_id": batch_id, "created_at": lane.now}


@dataclass(frozen=True, slots=True)
class Waiting:
    """What waits in a lane besides new entries."""

    batches: int
    """Batches leased or waiting, those that this transaction will insert included."""
    due: bool
    """At least one of them may be sent again."""
    holes: bool
    """There are holes that may still be filled."""
    hole_due: bool
    """At least one hole is due to be checked."""


IS_LIVE = or_(*(BATCH.c.state == state for state in LIVE))
"""Condition: a batch is live. One comparison for each state, and nothing else in the OR, so that every database,
SQLite too, turns each into a range of the index."""


def overdue(column: ColumnElement[Any], now: Any, horizon: Any) -> ColumnElement[bool]:
    """``core.policy.is_due`` in SQL. ``horizon``: ``now`` + the longest wait. All in µs."""
    return or_(column <= now, column > horizon)


def _waiting() -> Any:
    due_at, check_at = BATCH.c.due_at, HOLE.c.next_check_at
    batches = (
        select(func.count().label("batches"), func.min(due_at).label("due_from"), func.max(due_at).label("due_until"))
        .where(BATCH.c.lane == bindparam("key"), IS_LIVE)
        .subquery()
    )
    holes = (
        select(func.min(check_at).label("check_from"), func.max(check_at).label("check_until"))
        .where(HOLE.c.lane == bindparam("key"))
        .subquery()
    )
    return select(batches, holes).join_from(batches, holes, true())


_WAITING = CompiledStatement(_waiting())


def waiting_of(lane: LockedLane, max_wait_us: int) -> Waiting:
    """Read by one query. ``max_wait_us``: the longest wait, see ``is_due``."""
    [row] = _WAITING.rows(lane.connection, {"key": lane.key})

    def due(*ends: int | None) -> bool:
        return any(at is not None and is_due(at, lane.now, max_wait_us) for at in ends)

    return Waiting(
        batches=row.batches + len(lane.leases),
        due=due(row.due_from, row.due_until),
        holes=row.check_from is not None,
        hole_due=due(row.check_from, row.check_until),
    )
