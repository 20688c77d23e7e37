"""The entries of a batch as the database joins them, and reading them before they are claimed.

The log is append-only: what was committed between two numbers without a gap stays what it was. So a full batch can be
read before the lane is locked, and is claimed without a look if the cursor is found where it begins. On PostgreSQL,
where reading takes longer than all else that a claim does, a thread reads while the batches before are on their way. On
SQLite a claim reads just before it takes the lock that producers wait for.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from typing import Any

from sqlalchemy import Table, bindparam, func, select

from outbox.core.lane import LANES, Lane
from outbox.core.policy import Policy
from outbox.store.database import Database
from outbox.store.dialects import lines_of
from outbox.store.prepared import Prepared
from outbox.store.schema import LOGS

READ_AT_ONCE_BYTES = 8 * 1024 * 1024
"""Where a full batch of the largest entries fits this, payloads are read with the numbers: one query for two."""
BATCHES_AHEAD = 4
"""As many as are claimed at once."""


def _run_of(log: Table) -> Any:
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
    )


RUN = {lane: Prepared(_run_of(log)) for lane, log in LOGS.items()}


def at_once(lane: Lane, policy: Policy) -> bool:
    return policy.batch_max_rows * LANES[lane].max_payload_bytes <= READ_AT_ONCE_BYTES


def whole(row: Any) -> bool:
    """Whether the joined payloads are all there, a line each: a database may cut off what is too long for it."""
    length = row.size + row.entries - 1
    return row.lines is not None and len(row.lines) == length and row.lines.count("\n") == row.entries - 1


class Ahead:
    """The next full batches of each lane, by the number of their first entry.

    While another worker claims of a lane too, its cursor is not where this one left it, and nothing is read.
    """

    def __init__(self, database: Database) -> None:
        self._database = database
        self._reads: dict[Lane, dict[int, Callable[[], Any]]] = {}
        self._versions: dict[Lane, int] = {}
        """Of each lane, as this worker left it."""
        self._thread = _thread()
        self._pid = os.getpid()

    def ready(self, lane: Lane, want: int) -> Mapping[int, Any]:
        """What was read for ``want`` batches, by its first number: rows of ``RUN``. Waits for what is being read."""
        if self._pid != os.getpid():  # the parent's thread is not here
            self._reads, self._thread, self._pid = {}, _thread(), os.getpid()
        rows = {}
        for first, read in list(self._reads.get(lane, {}).items())[:want]:
            with suppress(Exception):  # the claim reads it itself then, and tells
                rows[first] = read()
        return rows

    def plan(self, lane: Lane, policy: Policy, *, version: int, cursor: int, newest: int | None) -> None:
        """Read what is above ``cursor``, or begin to. ``version``: of the lane, after this step."""
        if self._database.dialect.reads_ahead is None or not at_once(lane, policy):
            return
        alone = self._versions.get(lane) == version - 1
        self._versions[lane] = version
        rows, reads = policy.batch_max_rows, self._reads.get(lane, {})
        batches = min(BATCHES_AHEAD, ((newest or 0) - cursor) // rows) if alone else 0
        firsts = [cursor + 1 + number * rows for number in range(batches)]
        self._reads[lane] = {first: reads.get(first) or self._read(lane, first, rows) for first in firsts}

    def _read(self, lane: Lane, first: int, rows: int) -> Callable[[], Any]:
        """What gives the row of ``RUN``."""
        look = partial(self._look, lane, first, first + rows - 1)
        return self._thread.submit(look).result if self._database.dialect.reads_ahead == "beside" else look

    def _look(self, lane: Lane, first: int, last: int) -> Any:
        [row] = self._database.look(RUN[lane], {"first": first, "last": last})
        return row

    def close(self) -> None:
        if self._pid == os.getpid():
            self._thread.shutdown(cancel_futures=True)


def _thread() -> ThreadPoolExecutor:
    """Starts at the first read."""
    return ThreadPoolExecutor(1, thread_name_prefix="outbox-reader")
