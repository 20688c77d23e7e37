"""The row of a lane: locked first by whoever changes its batches or holes, saved last under its version."""

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
"""Microseconds since the epoch. Given only by tests; otherwise the database's clock rules."""


class Inside(Exception):
    """What the store raises for itself: no statement is without its answer then."""


class LostClaim(Inside):
    """Another worker changed the lane in between."""


class NeedsLock(Inside):
    """It takes the lane's lock: see ``plain.py``."""


@dataclass(slots=True)
class LockedLane:
    """The row of a lane inside a transaction that holds its lock, or of a plain step (``plain.py``)."""

    connection: Connection
    lane: Lane
    floor: int
    cursor: int
    version: int
    """Of this transaction: one above what was read."""
    folded_version: int
    health: Health
    now: int
    at: float
    """A moment of ``boottime``, at ``now`` or before it: a lease from ``now`` on lasts as long from here."""
    newest: int | None = None
    """The newest entry, if a claim has seen it."""
    untouched: bool = False
    """Nothing was written under the lock: nothing is to be saved."""
    ahead: Mapping[int, Any] = field(default_factory=dict)
    """Full batches that were read before the lock, by their first number: see ``read_ahead.py``."""
    leases: list[dict[str, Any]] = field(default_factory=list)
    """Batches to insert, all at once, when the lane's row is saved."""
    look: Callable[[int], Any] | None = None
    """Of a plain step: the row of ``RUN`` from a number on."""
    arrivals: list[dict[str, Any]] = field(default_factory=list)
    """Of ``leased_batch``: what a plain step settles when it writes."""
    clock: int | None = None
    """Of a plain step in tests: ``now``. None: what it writes has the time of the database."""

    @property
    def optimistic(self) -> bool:
        return self.look is not None

    @property
    def emptied(self) -> bool:
        """A claim saw that no entry is above the cursor, or was given all that its caller knew of."""
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
    """The update of a lane's row that is still as it was read, by parameters: see ``saving``."""
    read = [LANE.c.lane == bindparam("key")]
    read += [LANE.c[name] == bindparam(f"read_{name}") for name in ("version", "cursor")]
    return update(LANE).where(*read).values({name: bindparam(NEW + name) for name in names})


NEW = "new_"
"""Before the name of a column: the parameter that it is set to."""


LEASED = {"batch": BATCH.c.id, "token": BATCH.c.lease_token, "leased": BATCH.c.state}
"""By parameter, the columns that tell whether a batch is still ours."""


def still_leased(batch_id: Any, token: Any, leased: Any = BatchState.LEASED) -> Sequence[ColumnElement[bool]]:
    """The lease fence, as WHERE conditions: no row when the lease was lost. Values, or parameters of such values."""
    return BATCH.c.id == batch_id, BATCH.c.lease_token == token, BATCH.c.state == leased


def leased_batch(names: Iterable[str], prefix: str = "") -> Update:
    """The update of a batch whose lease is still ours, by parameters: ``batch``, ``token``, ``leased``, ``new_...``."""
    fence = still_leased(*(bindparam(prefix + name) for name in LEASED))
    changed: dict[str, Any] = {n.removeprefix(NEW): bindparam(prefix + n) for n in names if n.startswith(NEW)}
    return update(BATCH).where(*fence).values(changed)


@cache
def settling(names: tuple[str, ...]) -> CompiledStatement:
    return CompiledStatement(leased_batch(names))


@contextmanager
def locked(connection: Connection, lane: Lane, clock: Clock | None = None) -> Iterator[LockedLane]:
    """Lock the lane's row; write back what the block changed, and one version more.

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
    """Parameters of ``save_lane``. ``read``: has the version and the cursor that were read."""
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
"""The column of the lane's row that counts the entries of batches that ended so."""


def add_to_totals(lane: LockedLane, **amounts: int) -> None:
    """Add to counting columns of the lane's row; its lock is held."""
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
    """Write a batch row; the id is new unless ``columns`` has one."""
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
    """Of a batch, whatever is in it."""
    batch_id = new_id()
    return {"id": batch_id, "lane": lane.key, "root_id": batch_id, "created_at": lane.now}


@dataclass(frozen=True, slots=True)
class Waiting:
    """What a lane has besides new entries."""

    batches: int
    """Leased or waiting, those of this transaction included."""
    due: bool
    """One of them may be sent again."""
    holes: bool
    """There are some that may still be filled."""
    hole_due: bool
    """One of them is to be looked at again."""


IS_LIVE = or_(*(BATCH.c.state == state for state in LIVE))
"""Of a batch. Each state by itself, and nothing else in it: so each is a range of the index, on SQLite too."""


def overdue(column: ColumnElement[Any], now: Any, horizon: Any) -> ColumnElement[bool]:
    """``core.policy.is_due`` as a condition. ``horizon``: ``now`` and the longest wait, in µs as they all are."""
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
    """By one query. What is due more than ``max_wait_us`` (µs) from now is due: the clock was set back."""
    [row] = _WAITING.rows(lane.connection, {"key": lane.key})

    def due(*ends: int | None) -> bool:
        return any(at is not None and is_due(at, lane.now, max_wait_us) for at in ends)

    return Waiting(
        batches=row.batches + len(lane.leases),
        due=due(row.due_from, row.due_until),
        holes=row.check_from is not None,
        hole_due=due(row.check_from, row.check_until),
    )
