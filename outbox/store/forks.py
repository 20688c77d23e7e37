"""Forks: a child process starts without connections, and on SQLite without the library's state for them.

SQLite's locks belong to a process. A child inherits the library's record of them, but not the locks: a connection that
it opens beside an inherited one locks nothing, and when the parent closes its last connection it deletes the
write-ahead log under the child, whose commits are lost with it (https://sqlite.org/howtocorrupt.html, 2.6). So idle
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
"""How long a fork waits for each of: a write transaction, a connection that is being opened or closed."""
_DESCRIPTORS = "/dev/fd"


class ForkHooks(Protocol):
    """An object whose methods are called around each fork, on the forking thread."""

    def before(self) -> None: ...
    def after_in_parent(self) -> None: ...
    def after_in_child(self) -> None: ...


class ForkGuard:
    """Guards one engine on the SQLite file ``path``. A write transaction holds the lock ``writer``."""

    def __init__(self, engine: Engine, path: str, connections: Connections) -> None:
        self._engine = engine
        self._connections = connections
        self._path = os.path.realpath(path.removeprefix("file:"))
        self._open: dict[int, Any] = {}
        """The pool's record of each open driver connection, by ``id``. The record keeps alive the pool that the
        connection returns to. None: it belongs to no pool."""
        self._former: list[ReferenceType[Pool]] = []
        """The engine's former pools. A connection checked out during ``dispose`` returns to its former pool, where only
        this guard closes it."""
        self._begin_anew()
        connections.disposed = self._disposed
        event.listen(engine, "connect", self._opened)
        event.listen(engine, "detach", self._detached)
        # Not the events, which come after the file was opened and before it is closed: a fork in between would be
        # missed.
        self._connect, self._close = engine.dialect.connect, engine.dialect.do_close
        for name, ours in (("connect", self._open_one), ("do_close", self._close_one)):
            setattr(engine.dialect, name, ours)

    def _begin_anew(self) -> None:
        self.writer = threading.RLock()
        """Reentrant: with a Lock, a signal handler that puts while its own thread does would deadlock, instead of
        failing at SQLite's own lock after the busy timeout."""
        self._switching = threading.RLock()
        """Held while a connection is opened or closed: SQLite's mutexes must be free at a fork, or the child waits for
        a thread that does not exist there."""
        self._held: dict[int, list[Any]] = {}
        """The locks that each forking thread holds now, by thread id."""

    def check(self) -> None:
        """Raise ``InheritedConnection`` in a child that inherited an open connection to the file."""
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
        self._former.append(ref(pool))
        self._close_returned()

    @property
    def open_connections(self) -> int:
        """How many connections the engine has open."""
        return len(self._open)

    def _close_returned(self) -> None:
        for one in list(self._former):  # no lock: garbage collection may dispose of another pool right here
            if (pool := one()) is not None:
                pool.dispose()
            else:
                with suppress(ValueError):
                    self._former.remove(one)

    def _idle(self) -> bool:
        """Whether no connection of the pool is in use. Asks the pool: ``_open`` may hold connections that returned to a
        former pool."""
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
        _LEFT_ALONE.extend(pool for one in self._former if (pool := one()) is not None)
        self._former.clear()
        self._connections.after_in_child()
        self._begin_anew()

    def _has_it_open(self) -> bool:
        """Whether this process has a file descriptor of the file: the host may have an engine of its own on it."""
        try:
            file, descriptors = os.stat(self._path), os.listdir(_DESCRIPTORS)
        except OSError:  # no such file yet, or a system without /dev/fd
            return False
        return any(_is_open_as(int(descriptor), file) for descriptor in descriptors)


def _is_open_as(descriptor: int, file: os.stat_result) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), file)
    except OSError:  # the descriptor of the listing itself, closed by now
        return False


_HOOKS: dict[int, ReferenceType[ForkHooks]] = {}
_INHERITED: set[str] = set()
"""Files that this process must not open: its parent had them open at the fork."""
_LEFT_ALONE: list[Pool] = []
"""A parent process's pools, held for ever, so that no finalizer closes their connections."""


def call_around_forks(each: ForkHooks) -> None:
    """Call the methods of ``each`` around every fork, until it is garbage-collected: the reference here is weak."""
    key = id(each)
    _HOOKS[key] = ref(each, lambda _: _HOOKS.pop(key, None))


def _each(step: str) -> Any:
    def run() -> None:
        for hooks in list(_HOOKS.values()):  # an atomic copy: another thread may add one
            if (each := hooks()) is not None:
                getattr(each, step)()

    return run


if hasattr(os, "register_at_fork"):
    os.register_at_fork(
        before=_each("before"), after_in_parent=_each("after_in_parent"), after_in_child=_each("after_in_child")
    )
