"""SQLite: whether the file at the path is still the one that the connections have open.

SQLite goes on with a file that was removed or replaced: its commits succeed, and no other process ever sees them. So
before a connection is used the two files are compared. When they differ ``DatabaseUnavailable`` is raised, until the
former file is put back or the process is restarted. Nothing is closed and no other file is opened meanwhile: the former
file and its log keep what they hold.
"""

from __future__ import annotations

import math
import os
import time
from contextlib import closing, suppress
from dataclasses import dataclass
from typing import Any
from urllib.parse import unquote

from sqlalchemy import Connection, Engine, event

from outbox.errors import NOTHING_WRITTEN, ConfigError, DatabaseUnavailable
from outbox.store.dialects.open_files import FileId, id_of
from outbox.store.forks import ForkGuard

LOOK_SECONDS = 0.005
"""The shortest time between two looks before puts. A look between two puts takes 7 us of processor, a twentieth of a
put. A put within this time may still go into the file that was replaced, as the put before it did."""
_HOSTS = "outbox_hosts_file"
_CHANGED = "the file was removed or replaced while this process has it open: what it commits would be lost."


class SameFile:
    """Watches the file of one engine."""

    def __init__(self, engine: Engine, path: str, safe_url: str, guard: ForkGuard) -> None:
        self.safe_url = safe_url
        self._guard = guard
        self._path = os.path.abspath(path.removeprefix("file:"))  # the process may change its directory later
        self.real_path = os.path.realpath(unquote(self._path) if path.startswith("file:") else self._path)
        self._opened: FileId | None = None
        """The file that the engine's connections have open."""
        self._looked_at = -math.inf
        event.listen(engine, "do_connect", self._require, insert=True)  # before the check that there is a file
        event.listen(engine, "connect", self._connected)
        event.listen(engine, "checkout", self._require)

    def is_at(self, path: str) -> bool:
        """Whether the path leads to the outbox's file, by a hard link or a bind mount perhaps."""
        with suppress(OSError):
            return os.path.samefile(path, self._path)
        return False

    def require_lately(self) -> None:
        """Raise ``DatabaseUnavailable`` when the file is another one; it is looked at every ``LOOK_SECONDS``."""
        now = time.monotonic()
        if now - self._looked_at >= LOOK_SECONDS:
            self._require()
            self._looked_at = now

    def _require(self, *_: Any) -> None:
        if self._opened is None or not self._guard.open_connections:  # nobody is harmed while it is closed
            return
        with suppress(OSError):  # the statement will fail, and say why
            if id_of(self._path) != self._opened:
                raise DatabaseUnavailable(
                    f"{self.safe_url}: {_CHANGED} {NOTHING_WRITTEN} Put the former file back; or stop every process"
                    " that uses it, move the -wal and -shm files away with it, and start again."
                )

    def _connected(self, *_: Any) -> None:
        # After it was opened: on overlayfs that may change its id.
        with suppress(OSError):
            if self._opened is None or self._guard.open_connections <= 1:
                self._opened = id_of(self._path)


# --- connections of the host ---------------------------------------------------------------------------------


@dataclass(slots=True)
class _HostsFile:
    """The file of a host's connection. ``looked_at``: when it was last compared, by ``time.monotonic``."""

    path: str
    id: FileId | None
    looked_at: float = -math.inf


def note_file(driver_connection: Any, record: Any) -> None:
    """Record the file of a new connection of the host, for ``require_same``."""
    with suppress(Exception):
        record.info[_HOSTS] = _opened_by(driver_connection)


def require_same(connection: Connection, outbox: SameFile) -> None:
    """Raise ``DatabaseUnavailable`` where the host's connection would commit to a file that was removed or replaced,
    and ``ConfigError`` where its file is not the outbox's.

    Without ``note_file``, the file at the path at the first call is taken for the one that the connection has open.
    """
    info = connection.info
    if _HOSTS not in info:
        info[_HOSTS] = _opened_by(connection.connection)
    opened: _HostsFile | None = info[_HOSTS]
    if opened is None:
        return
    if opened.path != outbox.real_path and not outbox.is_at(opened.path):
        raise ConfigError(
            f"The transaction's connection writes to {opened.path}, and the outbox is {outbox.safe_url}: what is"
            f" committed here would never be sent. {NOTHING_WRITTEN} Give enqueue a Session or Connection on the"
            " outbox's file, or name that file in OUTBOX_DATABASE_URL."
        )
    if (now := time.monotonic()) - opened.looked_at < LOOK_SECONDS:
        return
    with suppress(OSError):
        if id_of(opened.path) != opened.id:
            raise DatabaseUnavailable(
                f"{opened.path}: {_CHANGED} {NOTHING_WRITTEN} Roll back. Put the former file back; or stop every"
                " process that uses it, move the -wal and -shm files away with it, and start again. Then enqueue the"
                " same messages again."
            )
    opened.looked_at = now


def _opened_by(driver_connection: Any) -> _HostsFile | None:
    """None: the database is in memory."""
    with closing(driver_connection.cursor()) as cursor:
        cursor.execute("PRAGMA database_list")
        paths = [os.path.realpath(path) for _, name, path in cursor.fetchall() if name == "main" and path]
    return _HostsFile(paths[0], id_of(paths[0])) if paths else None
