"""The entries of a batch as the database joins them, and reading them before they are claimed.

The log is append-only: what was committed between two numbers without a gap stays what it was. So a full batch can be
read before the lane is locked, and is claimed without a look if nobody else has changed the lane meanwhile. On
PostgreSQL, where reading takes longer than all else that a claim does, a thread reads while the batches before are on
their way. On SQLite a claim reads just before it takes the lock that producers wait for.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Table, bindparam, func, literal_column, select

from outbox.boottime import boottime
from outbox.core.lane import LANES, Lane
from outbox.core.policy import Policy
from outbox.store.compiled import CompiledStatement
from outbox.store.database import Database
from outbox.store.dialects import lines_of, now_us
from outbox.store.ledger import LockedLane
from outbox.store.schema import LOGS

_READ_AT_ONCE_BYTES = 8 * 1024 * 1024
"""Where a full batch of the largest entries fits this, payloads are read with the numbers: one query for two."""
BATCHES_AHEAD = 4
"""As many as are claimed at once."""
FEW = 20
"""Where joining is slow (``Dialect.joins_slowly``), fewer entries are read row by row."""
FRESH_SECONDS = 1.0
"""What was read longer ago is read again: meanwhile somebody may have deleted or restored rows by hand."""


def run_of(log: Table) -> Any:
    """The entries from ``first`` to ``last`` as one row: how many, the last number, bytes, the payloads as lines. With
    none of them it still has the newest number."""
    within = log.c.seq.between(bindparam("first"), bindparam("last"))
    found = select(log.c.seq, log.c.size, log.c.payload).where(within).order_by(log.c.seq).subquery()
    return select(
        func.count().label("entries"),
        func.max(found.c.seq).label("last"),
        func.sum(found.c.size).label("size"),
        lines_of(found.c.payload, found.c.seq).label("lines"),
        select(func.max(log.c.seq)).scalar_subquery().label("newest"),
        now_us().label("now"),
    )


def _few_of(log: Table) -> Any:
    above = log.c.seq >= bindparam("first")
    few = select(log.c.seq, log.c.size, log.c.payload, now_us().label("now"))
    return few.where(above).order_by(log.c.seq).limit(literal_column(str(FEW)))


RUN = {lane: CompiledStatement(run_of(log)) for lane, log in LOGS.items()}
_FEW = {lane: CompiledStatement(_few_of(log)) for lane, log in LOGS.items()}
_NOW = CompiledStatement(select(now_us().label("now")))


def at_once(lane: Lane, policy: Policy) -> bool:
    """Whether a batch of the lane may be read by ``RUN``: its size is known only when it is here."""
    return policy.batch_max_rows * LANES[lane].max_payload_bytes <= _READ_AT_ONCE_BYTES


def whole(row: Any) -> bool:
    """Whether the joined payloads are all there, a line each: a database may cut off what is too long for it."""
    length = row.size + row.entries - 1
    return row.lines is not None and len(row.lines) == length and row.lines.count("\n") == row.entries - 1


@dataclass(frozen=True, slots=True)
class Read:
    """``begun_at``: of ``boottime``.

    ``row``: a future of ``Ahead.look``; None: it is read when it is wanted.
    """

    begun_at: float
    row: Future[tuple[Any, float]] | None

    @property
    def fresh(self) -> bool:
        return boottime() - self.begun_at < FRESH_SECONDS


@dataclass(frozen=True, slots=True)
class Found:
    """``rows``: of ``RUN``, by their first number. They hold while the lane has this ``version``. ``times``: of
    ``boottime``, when each was begun to be read."""

    version: int
    rows: Mapping[int, Any]
    times: Mapping[int, float]


class ReadAhead:
    """The next full batches of each lane, by the number of their first entry.

    What is read holds for the lane as this worker left it. Beside another worker nothing is read.
    """

    def __init__(self, database: Database) -> None:
        self._database = database
        self._reads: dict[Lane, dict[int, Read]] = {}
        self._versions: dict[Lane, int] = {}
        """Of each lane, as this worker left it."""
        self._thread = _thread()
        self._pid = os.getpid()

    def ready(self, lane: Lane, policy: Policy, want: int) -> Found:
        """What is there for ``want`` batches. Raises nothing: what is not, the claim reads itself, and tells why."""
        if self._pid != os.getpid():  # the parent's thread is not here
            self._reads, self._thread, self._pid = {}, _thread(), os.getpid()
        rows, times = {}, {}
        with suppress(Exception):
            for first, read in list(self._reads.get(lane, {}).items())[:want]:
                if read.row is None:
                    rows[first], times[first] = self.look(lane, first, policy.batch_max_rows)
                elif read.fresh:
                    rows[first], times[first] = read.row.result(FRESH_SECONDS)
        return Found(self._versions.get(lane, 0), rows, times)

    def plan(self, left: LockedLane, policy: Policy) -> bool:
        """After the commit of a step that ``left`` the lane so: what the next one will claim. Raises nothing.

        Whether this worker had left the lane before it, too.
        """
        lane, before = left.lane, self._reads.pop(left.lane, {})
        alone = self._versions.get(lane) == left.version - 1
        self._versions[lane] = left.version
        if left.newest == left.cursor and not before:
            return alone
        kept = {first: read for first, read in before.items() if alone and first > left.cursor and read.fresh}
        if alone and left.newest is not None and self._database.dialect.reads_ahead and at_once(lane, policy):
            rows = policy.batch_max_rows
            batches = min(BATCHES_AHEAD, (left.newest - left.cursor) // rows)
            firsts = [left.cursor + 1 + number * rows for number in range(batches)]
            with suppress(RuntimeError):  # closed, or no thread is to be had
                kept = {first: kept.get(first) or self._read(lane, first, rows) for first in firsts}
        self._reads[lane] = kept
        for first in before.keys() - kept.keys():
            if (row := before[first].row) is not None:
                row.cancel()
        return alone

    def _read(self, lane: Lane, first: int, rows: int) -> Read:
        beside = self._database.dialect.reads_ahead == "beside"
        return Read(boottime(), self._thread.submit(self.look, lane, first, rows) if beside else None)

    def look(self, lane: Lane, first: int, rows: int, *, few: bool = False, untimed: bool = False) -> tuple[Any, float]:
        """A row of ``RUN``, and when reading it began, in ``boottime``. ``few``: likely so.
        ``untimed``: its ``now`` may be None."""
        began = boottime()
        if few and self._database.dialect.aggregates_slowly:
            found = self._database.look(_FEW[lane], {"first": first})
            if len(found) < FEW and len(found) <= rows:
                return self._joined(lane, found, untimed), began
        [row] = self._database.look(RUN[lane], {"first": first, "last": first + rows - 1})
        return row, began

    def _joined(self, lane: Lane, found: Sequence[Any], untimed: bool) -> Any:
        asked = found if found or untimed else self._database.look(_NOW, {})
        now = asked[0].now if asked else None
        last = found[-1].seq if found else None
        lines = "\n".join([row.payload for row in found]) if found else None
        return RUN[lane].record((len(found), last, sum(row.size for row in found), lines, last, now))

    def close(self) -> None:
        """Wait for the read that is under way; the others are not begun."""
        self._reads = {}
        if self._pid == os.getpid():
            self._thread.shutdown(cancel_futures=True)


def _thread() -> ThreadPoolExecutor:
    """Starts at the first read."""
    return ThreadPoolExecutor(1, thread_name_prefix="outbox-reader")
