"""Steps of a worker that has its lane to itself: decided without the lane's lock, written by one short transaction.

    read     the entries above the cursor, as the last step of this worker left it; nobody waits meanwhile
    decide   settle and claim as always, in memory
    write    the lane's row, if its version is still the one of the last step; receipts and leases with it

A step under the lock is six or seven statements, one after the other: on SQLite producers wait for it, elsewhere each
is a round trip. What is not plain takes the lock, and nothing is written before that: something is due, a number is
missing, a batch did not arrive, somebody else has changed the lane.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cache, partial
from typing import Any, cast

from sqlalchemy import Connection, PoolProxiedConnection, bindparam, func, insert, literal, select
from sqlalchemy.exc import DBAPIError

from outbox.core.health import LaneState
from outbox.core.lane import Lane
from outbox.core.policy import Policy
from outbox.core.step import Settled, Settlement, Step
from outbox.errors import OutboxError
from outbox.store.claim import claim
from outbox.store.database import Database
from outbox.store.ledger import (
    Clock,
    LockedLane,
    NotPlain,
    columns_to_save,
    leased_batch,
    leasing,
    save_lane,
    saved_lane,
    saving,
)
from outbox.store.prepared import Prepared, heard
from outbox.store.reading import RUN, Ahead, at_once, timed
from outbox.store.schema import BATCH, LANE
from outbox.store.settle import settle, settling

Names = tuple[str, ...]

AT_MOST = 4
"""Batches that a plain step settles, and that it leases: as many as are leased at once."""


class _NoConnection:
    """Of a lane that is not locked."""

    def __getattr__(self, name: str) -> Any:
        raise NotPlain(name)


_NO_CONNECTION = cast(Connection, _NoConnection())


class PlainSteps:
    """Of one worker: each lane as it left it."""

    def __init__(self, database: Database, ahead: Ahead) -> None:
        self._database = database
        self._ahead = ahead
        self._left: dict[Lane, LockedLane] = {}

    def step(
        self, lane: Lane, policy: Policy, settlements: Sequence[Settlement], want: int, clock: Clock | None
    ) -> Step | None:
        """None, and nothing is written: the step takes the lock. Raises as ``Database.write``."""
        left = self._left.get(lane)
        if left is None or not 0 < want <= AT_MOST or len(settlements) > AT_MOST or heard(self._database.engine):
            return None
        try:
            row = self._read(left, policy, want, clock)
            settled = settle(row, policy, settlements)
            batches = claim(row, policy, want=want, look_due=False)
        except (NotPlain, OutboxError, DBAPIError):
            del self._left[lane]  # nor is the next one, hardly; what the database has to say it says under the lock
            return None
        if not (settlements or batches):
            return Step()
        if row.health != left.health:
            return None
        arrived = self._database.alone(lambda pooled: self._write(pooled, row), in_turn=True)
        if arrived is None:
            return None
        if arrived < len(settlements):
            self._find_lost(row, settlements, settled)
        self.left(row, policy)
        return Step(batches, settled)

    def left(self, row: LockedLane, policy: Policy) -> None:
        """After the commit of a step that left the lane so, locked or not."""
        alone = self._ahead.plan(row, policy) and self._database.dialect.plain_steps and at_once(row.lane, policy)
        if alone and row.health.state is LaneState.OPEN:
            look = partial(self._look, row.lane)
            self._left[row.lane] = replace(row, connection=_NO_CONNECTION, look=look, ahead={}, leases=[], arrivals=[])
        else:
            self._left.pop(row.lane, None)

    def _read(self, left: LockedLane, policy: Policy, want: int, clock: Clock | None) -> LockedLane:
        """The lane as it was left, and what is above its cursor."""
        ahead, first = self._ahead.ready(left.lane, policy, want), left.cursor + 1
        rows = dict(ahead.rows) if ahead.version == left.version else {}
        if first not in rows and left.look:
            began = time.monotonic()
            [row] = left.look({"first": first, "last": left.cursor + policy.batch_max_rows})
            rows[first] = timed(row, began)
        now = rows[first].now if clock is None else clock()
        return replace(left, version=left.version + 1, now=now, newest=None, ahead=rows, leases=[], arrivals=[])

    def _look(self, lane: Lane, values: Mapping[str, int]) -> Sequence[Any]:
        return self._database.look(RUN[lane], values)

    def _write(self, pooled: PoolProxiedConnection, row: LockedLane) -> int | None:
        """How many of the settled batches were still ours. None: somebody else has changed the lane."""
        dialect, values = self._database.engine.dialect, columns_to_save(row)
        names, saved = tuple(values), saving(row, row.version - 1, values)
        arrivals, leases = row.arrivals, row.leases
        if self._database.dialect.joins_writes:
            of_arrival, of_lease = (tuple(some[0]) if some else () for some in (arrivals, leases))
            joined = _joined(names, of_arrival, len(arrivals), of_lease, len(leases))
            [done] = joined.fetched(pooled, dialect, saved | _numbered(_ARRIVED, arrivals) | _numbered(_LEASED, leases))
            return int(done.arrived) if done.saved else None
        if save_lane(names).on(pooled, dialect, [saved]) != 1:
            return None
        if leases:
            leasing(tuple(leases[0])).on(pooled, dialect, leases)
        return settling(tuple(arrivals[0])).on(pooled, dialect, arrivals) if arrivals else 0

    def _find_lost(self, row: LockedLane, settlements: Sequence[Settlement], done: Settled) -> None:
        """Take out of ``done`` what was not ours any more. Nothing else in the step depended on it."""
        here = (BATCH.c.lane == row.key, BATCH.c.settled_version == row.version)
        with self._database.read() as connection:
            ours = frozenset(connection.execute(select(BATCH.c.id).where(*here)).scalars())
        for batch in (one.batch for one in settlements if one.batch.id not in ours):
            done.batches -= 1
            done.sent -= batch.rows
            done.lost.append(batch.id)


_ARRIVED, _LEASED = "arrived", "leased"


def _numbered(what: str, rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The parameters of all of them."""
    return {f"{what}{at}_{name}": value for at, row in enumerate(rows) for name, value in row.items()}


@cache
def _joined(names: Names, of_arrival: Names, arrivals: int, of_lease: Names, leases: int) -> Prepared:
    """All that a step writes as one statement, so one round trip, which commits itself. Its row: how many rows of the
    lane were ``saved``, without which nothing else is written, and how many of the batches had ``arrived``."""
    saved = saved_lane(names).returning(LANE.c.lane).cte("saved")
    still = select(saved).exists()
    settled = [
        leased_batch(of_arrival, f"{_ARRIVED}{at}_").where(still).returning(BATCH.c.id).cte(f"{_ARRIVED}{at}")
        for at in range(arrivals)
    ]
    inserted = [_lease_if(still, of_lease, f"{_LEASED}{at}_").cte(f"{_LEASED}{at}") for at in range(leases)]
    counts = [select(func.count()).select_from(one).scalar_subquery() for one in settled]
    count = select(func.count()).select_from(saved).scalar_subquery()
    found = select(count.label("saved"), sum(counts, literal(0)).label("arrived"))
    return Prepared(found.add_cte(*settled, *inserted))


def _lease_if(still: Any, names: Names, prefix: str) -> Any:
    values = [bindparam(prefix + name, type_=BATCH.c[name].type) for name in names]
    return insert(BATCH).from_select(names, select(*values).where(still), include_defaults=False)
