"""SQLite: whether the file at the path is still the one that the connections have open.

SQLite goes on with a file that was removed or replaced: its commits succeed, and no other process ever sees them. So
before a connection is used again the file at the path is compared with the one that it opened. When they differ, the
outbox closes its connections and logs one error; then

    at the path                     what this process does
    no file                         raises ``SchemaOutOfDate``, as for a file that never existed
    another file                    goes on with that file
    another file, and the old log   opens nothing: SQLite would apply the old log to the new file

The host's own connections stay open; ``require_same`` raises for them.
"""

from __future__ import annotations

import logging
import math
import os
import threading
import time
from contextlib import closing, suppress
from typing import Any, NamedTuple

from sqlalchemy import Connection, Engine, event
from sqlalchemy.exc import InvalidatePoolError

from outbox.errors import NOTHING_WRITTEN, DatabaseUnavailable
from outbox.store.dialects.open_files import FileId, id_of
from outbox.store.forks import ForkGuard

logger = logging.getLogger("outbox.store")

LOOK_SECONDS = 0.005
"""The shortest time between two looks before puts. A look between two puts takes 7 us of processor, a twentieth of a
put. A put within this time may still go into the file that was replaced, as the put before it did."""
_OPENING, _HOSTS = "outbox_opening", "outbox_hosts_file"
_LOST = "What was enqueued and not sent is in the former file, and lost with it unless that is put back."
_GOES_ON = "This process goes on with the file that is there now."
_MIXED = "another file was put in the place of this one, beside the -wal file of the former"
_STOP = "SQLite would mix the two. Stop all that uses the file, delete its -wal and -shm files, then start again."


class SameFile:
    """Watches the file of one engine."""

    def __init__(self, engine: Engine, path: str, safe_url: str, guard: ForkGuard) -> None:
        self._engine = engine
        self._url = safe_url
        self._guard = guard
        self._path = os.path.abspath(path.removeprefix("file:"))  # the process may change its directory later
        self._log = f"{os.path.realpath(self._path)}-wal"
        self._opened: FileId | None = None
        """The file that the engine's connections have open; None: there is no connection."""
        self._opened_log: FileId | None = None
        """The -wal file that was beside it at the last look."""
        self._old_log: int | None = None
        """A descriptor of a replaced file's log that still lies beside the new file. Open, so that no new file gets its
        inode; SQLite has no POSIX locks on it, which closing a descriptor would release."""
        self._looked_at = -math.inf
        self.changes = 0
        """How often the file was replaced. What was remembered of it before the last time no longer holds."""
        self.renew_lock()
        event.listen(engine, "do_connect", self._before_connect, insert=True)  # before the check that a file is there
        event.listen(engine, "connect", self._connected)
        event.listen(engine, "checkout", self._require_same)

    def renew_lock(self) -> None:
        """At start, and in a forked child: a thread of the parent may have held the lock."""
        self._lock = threading.RLock()

    def look(self) -> None:
        """Compare the files, at most every ``LOOK_SECONDS``."""
        now = time.monotonic()
        if now - self._looked_at >= LOOK_SECONDS:
            self._looked_at = now
            self._is_same()

    def _is_same(self) -> bool:
        """False: it was not, and the engine's connections are closed now."""
        opened = self._opened
        if opened is None or not self._guard.has_open:
            self._opened = None  # what was done to the file while it was closed harms nobody
            return True
        try:
            now, log = id_of(self._path), id_of(self._log)
        except OSError:  # the statement will fail, and say why
            return True
        if now == opened:
            self._opened_log = log
            return True
        with self._lock:
            if self._opened == opened:  # not another thread's finding
                self._leave(now, log)
        return False

    def _leave(self, now: FileId | None, log: FileId | None) -> None:
        self._opened = None
        self.changes += 1
        if now is None:
            told = f"the file was removed while this process had it open. {_LOST}"
        elif log is not None and log == self._opened_log:
            told = f"{_MIXED}, while this process had it open. {_LOST} {_STOP}"
            with suppress(OSError):
                self._old_log = os.open(self._log, os.O_RDONLY | os.O_CLOEXEC)
        else:
            told = f"another file was put in the place of this one while this process had it open. {_LOST} {_GOES_ON}"
        logger.error("%s: %s", self._url, told)
        self._engine.dispose()

    def _before_connect(self, _dialect: Any, record: Any, *_: Any) -> None:
        self._is_same()
        if self._old_log is not None:
            if self._lies_beside_old_log(self._old_log):
                raise DatabaseUnavailable(f"{self._url}: {_MIXED}. {NOTHING_WRITTEN} {_STOP}")
            os.close(self._old_log)
            self._old_log = None
        with suppress(OSError):  # before it is opened: a replacement in between is noticed at the next look
            record.info[_OPENING] = id_of(self._path)

    def _lies_beside_old_log(self, old_log: int) -> bool:
        try:
            same = os.path.samestat(os.fstat(old_log), os.stat(self._log))
            return same and os.stat(self._path).st_size > 0  # SQLite deletes a log beside an empty file
        except FileNotFoundError:
            return False

    def _connected(self, _driver_connection: Any, record: Any) -> None:
        with suppress(OSError):
            self._opened = record.info.pop(_OPENING, None) or id_of(self._path)

    def _require_same(self, _driver_connection: Any, _record: Any, _proxy: Any) -> None:
        if not self._is_same():
            raise InvalidatePoolError("the file at the path is not the one that this connection has open")


# --- connections of the host ---------------------------------------------------------------------------------


class _HostsFile(NamedTuple):
    path: str
    id: FileId | None


def note_file(driver_connection: Any, record: Any) -> None:
    """Record the file of a new connection of the host, for ``require_same``."""
    with suppress(Exception):
        record.info[_HOSTS] = _opened_by(driver_connection)


def require_same(connection: Connection) -> None:
    """Raise ``DatabaseUnavailable`` where the host's connection would commit to a file that was removed or replaced.

    Without ``note_file``, the file at the path at the first call is taken for the one that the connection has open.
    """
    info = connection.info
    if _HOSTS not in info:
        info[_HOSTS] = _opened_by(connection.connection)
    opened: _HostsFile | None = info[_HOSTS]
    with suppress(OSError):
        if opened is not None and id_of(opened.path) != opened.id:
            raise DatabaseUnavailable(
                f"{opened.path}: the file was removed or replaced while this connection had it open: what it commits"
                f" would be lost. {NOTHING_WRITTEN} Roll back, dispose of your engine (engine.dispose()) or restart"
                " this process, and enqueue the same messages again."
            )


def _opened_by(driver_connection: Any) -> _HostsFile | None:
    """None: the database is in memory."""
    with closing(driver_connection.cursor()) as cursor:
        cursor.execute("PRAGMA database_list")
        paths = [path for _, name, path in cursor.fetchall() if name == "main" and path]
    return _HostsFile(paths[0], id_of(paths[0])) if paths else None
