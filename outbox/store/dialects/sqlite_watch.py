"""How a process learns of other processes' commits to a SQLite file.

    inotify reports a write to the -wal file ──▶ PRAGMA data_version changed? ──▶ which logs have new rows?
    no report within LISTEN_SECONDS ──────────────────────▲

``PRAGMA data_version`` changes when another connection has committed. Where the system reports no writes, or this
process alone writes, it is polled.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from threading import Event
from typing import Any

from sqlalchemy import Engine

from outbox.store.dialects.base import Look
from outbox.store.dialects.inotify import Written, writes_to

MILLISECOND = 0.001
LISTEN_SECONDS = 0.05
"""The longest wait for a report of a write: an upper bound for how late a stop, or an unreported write, is noticed."""
LOOK_SECONDS = 0.005
"""The poll of the file's version where the system reports no writes, and the rest between two looks where this process
alone writes. A poll takes a few microseconds, and a turn of the processor."""
CLOSE_LOOK_SECONDS, BUSY_SECONDS = 0.001, 1.0
"""The same within ``BUSY_SECONDS`` of another process's commit."""
SOONEST_LOOK_SECONDS, GROWTH = 0.0001, 1.25
"""The first wait after a reported write in that time, and its growth while the version is unchanged: the COMMIT that
the write is for may still wait for the disk."""


@contextmanager
def watching(engine: Engine, lanes: Mapping[str, str], here: Mapping[str, int], waits_ms: int) -> Iterator[Look]:
    """See :meth:`Dialect.watch_commits`. ``waits_ms``: how long the connection waits for a lock."""
    pooled = engine.raw_connection()
    pooled.detach()
    with closing(pooled) as connection, closing(connection.cursor()) as cursor:
        cursor.execute(f"PRAGMA busy_timeout = {waits_ms}")  # a producer's connection leaves it at 0
        watcher = _CommitWatcher(cursor, lanes, here)
        [path] = [path for _, name, path in cursor.execute("PRAGMA database_list").fetchall() if name == "main"]
        with writes_to(f"{path}-wal") as watcher.written:
            yield watcher.look


class _CommitWatcher:
    """The state of the file at the last look. Not thread-safe."""

    def __init__(self, cursor: Any, lanes: Mapping[str, str], here: Mapping[str, int]) -> None:
        self._cursor = cursor
        self._lanes = lanes
        self._here = here
        cursor_of = "(SELECT cursor FROM outbox_lane WHERE lane = ?)"
        last = [f"(SELECT max(seq) FROM {table} WHERE seq > {cursor_of})" for table in lanes]  # noqa: S608 - our names
        self._last_of_each = f"SELECT {', '.join(last)}"
        self.written: Written | None = None
        self._busy_until = 0.0
        self._rest = 0.0
        self._version, self._newest = self._data_version(), self._newest_unclaimed()

    def look(self, stop: Event) -> list[str]:
        """Wait for a commit of another connection; the tables in which it added rows. Empty once ``stop`` is set."""
        stop.wait(self._rest)  # the worker's own work on the last commit writes to the file too
        if not self._committed(stop):
            return []
        self._version = self._data_version()
        before, self._newest = self._newest, self._newest_unclaimed()
        told = [
            table for table, last in self._newest.items() if last not in (None, before[table], self._here.get(table))
        ]
        if told:
            self._busy_until = time.monotonic() + BUSY_SECONDS
        self._rest = CLOSE_LOOK_SECONDS if time.monotonic() < self._busy_until else LOOK_SECONDS
        return told

    def _committed(self, stop: Event) -> bool:
        """Wait until the version changes. False: ``stop`` was set before."""
        busy, pause = time.monotonic() < self._busy_until, LISTEN_SECONDS
        while self._data_version() == self._version:
            if stop.is_set():
                return False
            if self.written is None:
                stop.wait(CLOSE_LOOK_SECONDS if busy else LOOK_SECONDS)
            elif pause < MILLISECOND:  # shorter than poll(2) can wait
                time.sleep(pause)
                pause *= GROWTH
            elif self.written(pause):
                pause = SOONEST_LOOK_SECONDS if busy else CLOSE_LOOK_SECONDS
                time.sleep(pause)
            else:
                pause = min(2 * pause, LISTEN_SECONDS)
        return True

    def _data_version(self) -> int:
        (version,) = self._cursor.execute("PRAGMA data_version").fetchone()
        return int(version)

    def _newest_unclaimed(self) -> dict[str, int | None]:
        """The last number in each table above its lane's cursor: a worker's own commits add none."""
        found = self._cursor.execute(self._last_of_each, list(self._lanes.values())).fetchone()
        return dict(zip(self._lanes, found, strict=True))
