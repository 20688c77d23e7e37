"""Forks: a child process starts without connections, and on SQLite without what SQLite remembers of them.

SQLite keeps its locks by process. A child inherits what the library believes of them, but not the locks: what it
opens beside an inherited connection locks nothing, and when the parent closes its last one it deletes the
write-ahead log under the child, whose commits are gone with it (https://sqlite.org/howtocorrupt.html, 2.6). So idle
connections are closed before a fork, and a child that inherits one in use refuses to work on that file.
"""

from __future__ import annotations

import os
import threading
from contextlib import suppress
from typing import Any, Protocol
from weakref import ReferenceType, ref

from sqlalchemy import Engine, Pool, QueuePool, event

from outbox.errors import NOTHING_WRITTEN, InheritedConnection
from outbox.store.connections import Connections

_WAIT_SECONDS = 5.0
"""A fork waits so long for a transaction of ours, and for a connection that is being opened or closed."""
_DESCRIPTORS = "/dev/fd"


class Told(Protocol):
    """Called around a fork, by the thread that forks."""

    def before(self) -> None: ...
    def after_in_parent(self) -> None: ...
    def after_in_child(self) -> None: ...


class ForkGuard:
    """Of one engine on the SQLite file ``path``. ``writer`` is held by whoever writes through it."""

    def __init__(self, engine: Engine, path: str, connections: Connections) -> None:
        self._engine = engine
        self._connections = connections
        self._path = os.path.realpath(path.removeprefix("file:"))
        self._open: dict[int, Any] = {}
        """Connections of the driver by their id, and the pool's record of each: with it lives the pool that it comes
        back to. None: no pool has it."""
        self._gone: list[ReferenceType[Pool]] = []
        """Pools that the engine had before. What somebody takes of one at that moment comes back to it, and nobody else
        closes it."""
        self._begin_anew()
        connections.disposed = self._disposed
        event.listen(engine, "connect", self._opened)
        event.listen(engine, "detach", self._detached)
        # Not the events: they come after a file was opened, and before it is closed.
        self._connect, self._close = engine.dialect.connect, engine.dialect.do_close
        for name, ours in (("connect", self._open_one), ("do_close", self._close_one)):
            setattr(engine.dialect, name, ours)

    def _begin_anew(self) -> None:
        self.writer = threading.RLock()
        """Not a Lock: a signal's handler that puts while its thread does would wait for ever, and not as long as for
        SQLite's own lock."""
        self._switching = threading.RLock()
        """Held while a connection is opened or closed: SQLite's own locks must be free at a fork, or the child waits
        for a thread that it has not."""
        self._held: dict[int, list[Any]] = {}
        """What each thread that forks now has of these."""

    def check(self) -> None:
        """Raises ``InheritedConnection`` in a child that inherited one to the file."""
        if self._path in _INHERITED:
            raise InheritedConnection(
                f"{self._path}: this process was forked while its parent had the file open (a worker runs, somebody was"
                " reading, or an engine of your own has a connection to it), and SQLite could lose what it commits."
                f" {NOTHING_WRITTEN} Fork first and start the worker then, dispose of your own engine"
                " before you fork, or start processes by spawn."
            )

    def _open_one(self, *arguments: Any, **options: Any) -> Any:
        with self._switching:
            driver_connection = self._connect(*arguments, **options)
            self._open[id(driver_connection)] = None
            return driver_connection

    def _close_one(self, driver_connection: Any) -> None:
        with self._switching:
            try:
                self._close(driver_connection)
            finally:
                self._open.pop(id(driver_connection), None)

    def _opened(self, driver_connection: Any, record: Any) -> None:
        self._open[id(driver_connection)] = record

    def _detached(self, driver_connection: Any, _record: Any) -> None:
        self._open[id(driver_connection)] = None

    def _disposed(self, pool: Pool) -> None:
        self._gone.append(ref(pool))
        self._close_returned()

    def _close_returned(self) -> None:
        for one in list(self._gone):  # no lock: the collector may free an outbox here, and so dispose of another pool
            if (pool := one()) is not None:
                pool.dispose()
            else:
                with suppress(ValueError):
                    self._gone.remove(one)

    def _idle(self) -> bool:
        """Not one connection of the pool is in use: one that came back to a pool that is gone would count for ever."""
        pool = self._engine.pool
        return not (isinstance(pool, QueuePool) and pool.checkedout())

    def before(self) -> None:
        self._held[threading.get_ident()] = [
            lock for lock in (self.writer, self._switching) if lock.acquire(timeout=_WAIT_SECONDS)
        ]
        self._connections.before()
        if self._idle():
            self._engine.dispose()
        else:
            self._close_returned()

    def after_in_parent(self) -> None:
        self._connections.after_in_parent()
        for lock in self._held.pop(threading.get_ident(), ()):
            lock.release()

    def after_in_child(self) -> None:
        switching = self._switching not in self._held.get(threading.get_ident(), ())
        if self._open or switching or self._has_it_open():
            _INHERITED.add(self._path)
        _LEFT_ALONE.extend(pool for one in self._gone if (pool := one()) is not None)
        self._gone.clear()
        self._connections.after_in_child()
        self._begin_anew()

    def _has_it_open(self) -> bool:
        """Whether this process has a descriptor of the file: of an engine of the host, which we know nothing of."""
        try:
            file, descriptors = os.stat(self._path), os.listdir(_DESCRIPTORS)
        except OSError:  # no such file yet, or a system that does not tell
            return False
        return any(_is_open_as(int(descriptor), file) for descriptor in descriptors)


def _is_open_as(descriptor: int, file: os.stat_result) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), file)
    except OSError:  # that of the listing itself
        return False


_TOLD: dict[int, ReferenceType[Told]] = {}
_INHERITED: set[str] = set()
"""Files that this process must not open: its parent had them open when it was forked."""
_LEFT_ALONE: list[Pool] = []
"""Of a parent process: held for ever, so that nobody closes what it has open."""


def told_of_forks(each: Told) -> None:
    """As long as somebody else holds it."""
    key = id(each)
    _TOLD[key] = ref(each, lambda _: _TOLD.pop(key, None))


def _each(step: str) -> Any:
    def run() -> None:
        for told in list(_TOLD.values()):  # a copy, made at once: another thread may add one
            if (each := told()) is not None:
                getattr(each, step)()

    return run


if hasattr(os, "register_at_fork"):
    os.register_at_fork(
        before=_each("before"), after_in_parent=_each("after_in_parent"), after_in_child=_each("after_in_child")
    )
