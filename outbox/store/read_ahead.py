"""Reading the entries of a batch by one query, and reading them before they are claimed.

The log is append-only: a range of numbers that was committed without a gap never changes. So a full batch can be read
before the lane is locked, and is claimed without reading it again if no other worker has changed the lane meanwhile.
On PostgreSQL, where reading takes longer than the rest of a claim, a thread reads while the batches before are on the
wire. On SQLite a claim reads just before it takes the write lock, which producers wait for.
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
"""If a full batch of the largest entries fits this, numbers and payloads are read by one query instead of two."""
BATCHES_AHEAD = 4
"""Full batches read ahead, and the most that an optimistic step leases."""
FEW = 20
"""Where aggregation is slow (``Dialect.aggregates_slowly``), fewer entries than this are read row by row."""
FRESH_SECONDS = 1.0
"""Rows read longer ago are read again: an operator may have deleted or restored rows by hand since."""


def run_of(log: Table) -> Any:
    """The entries from ``first`` to ``last`` aggregated into one row: how many, the last number, bytes, the payloads
    joined by line breaks. ``newest``, the highest number in the log, and ``now`` are set even if there are none."""
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


def fits_one_read(lane: Lane, policy: Policy) -> bool:
    """Whether a batch of the lane may be read by ``RUN``, whose size is known only after it was fetched."""
    return policy.batch_max_rows * LANES[lane].max_payload_bytes <= _READ_AT_ONCE_BYTES


def is_complete(row: Any) -> bool:
    """Whether a row of ``RUN`` has every payload whole, one line each: a database may truncate a long aggregate."""
    length = row.size + row.entries - 1
    return row.lines is not None and len(row.lines) == length and row.lines.count("\n") == row.entries - 1


@dataclass(frozen=True, slots=True)
class Read:
    """A planned read of one batch. ``begun_at``: of ``boottime``.

    ``row``: the future of ``ReadAhead.look``; None: it is read when the claim wants it.
    """

    begun_at: float
    row: Future[tuple[Any, float]] | None

    @property
    def fresh(self) -> bool:
        return boottime() - self.begun_at < FRESH_SECONDS


@dataclass(frozen=True, slots=True)
class Found:
    """``rows``: rows of ``RUN`` by their first number, valid while the lane has this ``version``. ``times``: when the
    read of each began, by ``boottime``."""

    version: int
    rows: Mapping[int, Any]
    times: Mapping[int, float]


class ReadAhead:
    """The next full batches of each lane, by the number of their first entry.

    They are valid for the lane as this worker left it. While another worker uses the lane nothing is read ahead.
    """

    def __init__(self, database: Database) -> None:
        self._database = database
        self._reads: dict[Lane, dict[int, Read]] = {}
        self._versions: dict[Lane, int] = {}
        """The version of each lane after this worker's last step."""
        self._thread = _thread()
        self._pid = os.getpid()

    def ready(self, lane: Lane, policy: Policy, want: int) -> Found:
        """The rows read so far for the next ``want`` batches. Raises nothing: the claim reads the missing ones itself,
        and raises then."""
        if self._pid != os.getpid():  # the parent's thread does not exist in a forked child
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
        """Called after the commit of a step with the lane as it ``left`` it: begin to read what the next step will
        claim. Raises nothing.

        Returns whether the step before it in this lane was this worker's too: no other worker came between.
        """
        lane, before = left.lane, self._reads.pop(left.lane, {})
        alone = self._versions.get(lane) == left.version - 1
        self._versions[lane] = left.version
        if left.newest == left.cursor and not before:
            return alone
        kept = {first: read for first, read in before.items() if alone and first > left.cursor and read.fresh}
        if alone and left.newest is not None and self._database.dialect.reads_ahead and fits_one_read(lane, policy):
            rows = policy.batch_max_rows
            batches = min(BATCHES_AHEAD, (left.newest - left.cursor) // rows)
            firsts = [left.cursor + 1 + number * rows for number in range(batches)]
            with suppress(RuntimeError):  # the executor is closed, or no thread can be started
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
        """A row of ``RUN``, and when reading it began, by ``boottime``. ``few``: few entries are expected.
        ``untimed``: ``now`` of the row may be None."""
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
        """Wait for the running read; cancel the others."""
        self._reads = {}
        if self._pid == os.getpid():
            self._thread.shutdown(cancel_futures=True)


def _thread() -> ThreadPoolExecutor:
    """An executor of one thread, which starts at the first read."""
    return ThreadPoolExecutor(1, thread_name_prefix="outbox-reader")
