"""Forks: a child process starts without connections, and on SQLite without what SQLite remembers of them.

SQLite keeps its locks by process. A child inherits what the library believes of them, but not the locks: what it
opens beside an inherited connection locks nothing, and when the parent closes its last one it deletes the
write-ahead log under the child, whose commits are gone with it (https://sqlite.org/howtocorrupt.html, 2.6). So idle
connections are closed before a fork, and a child that inherits one in use refuses to work on that file.
"""

from __future__ import annotations

import os
import threading
from typing import Any, Protocol
from weakref import WeakSet

from sqlalchemy import Engine, Pool, QueuePool, event

from outbox.errors import DatabaseUnavailable
from outbox.store.connections import Connections

_WRITER_SECONDS = 5.0
"""A fork waits so long for a transaction of ours; one that the forking thread itself is in never ends meanwhile."""


class Told(Protocol):
    """Called around a fork, by the thread that forks."""

    def before(self) -> None: ...
    def after_in_parent(self) -> None: ...
    def after_in_child(self) -> None: ...


class ForkGuard:
    """Of one engine on the SQLite file ``path``. ``writer`` is held by whoever writes through it."""

    def __init__(self, engine: Engine, path: str, connections: Connections) -> None:
        self.writer = threading.Lock()
        self._engine = engine
        self._connections = connections
        self._path = os.path.realpath(path.removeprefix("file:"))
        self._open: set[int] = set()
        self._detached: set[int] = set()
        """Those of them that no pool has."""
        self._gone: list[Pool] = []
        """Pools that the engine had before. What somebody takes of one at that moment comes back to it, and nobody else
        closes it."""
        self._held = False
        connections.disposed = self._disposed
        event.listen(engine, "connect", self._opened)
        event.listen(engine, "detach", self._left_its_pool)
        event.listen(engine, "close", self._closed)
        event.listen(engine, "close_detached", self._closed)

    def check(self) -> None:
        """Raises ``DatabaseUnavailable`` in a child that inherited a connection to the file."""
        if self._path in _INHERITED:
            raise DatabaseUnavailable(
                f"{self._path}: this process was forked while its parent had the file open (a worker runs, or somebody"
                " was reading), and SQLite could lose what it commits. Nothing was written by this call. Fork first and"
                " start the worker then, or start processes by spawn."
            )

    def _opened(self, driver_connection: Any, *_: Any) -> None:
        self._open.add(id(driver_connection))

    def _closed(self, driver_connection: Any, *_: Any) -> None:
        self._open.discard(id(driver_connection))
        self._detached.discard(id(driver_connection))

    def _left_its_pool(self, driver_connection: Any, *_: Any) -> None:
        self._detached.add(id(driver_connection))

    def _disposed(self, pool: Pool) -> None:
        self._gone.append(pool)
        self._close_returned()

    def _close_returned(self) -> None:
        for pool in self._gone:
            pool.dispose()
        if self._open <= self._detached:
            del self._gone[:-1]  # somebody may be about to connect by the newest

    def _idle(self) -> bool:
        """Not one connection of the pool is in use: one that came back to a pool that is gone would count for ever."""
        pool = self._engine.pool
        return not (isinstance(pool, QueuePool) and pool.checkedout())

    def before(self) -> None:
        self._held = self.writer.acquire(timeout=_WRITER_SECONDS)
        self._connections.before()
        if self._idle():
            self._engine.dispose()
        else:
            self._close_returned()

    def after_in_parent(self) -> None:
        self._connections.after_in_parent()
        if self._held:
            self._held = False
            self.writer.release()

    def after_in_child(self) -> None:
        self.writer = threading.Lock()
        self._held = False
        self._connections.after_in_child()
        if self._open:
            _INHERITED.add(self._path)
            _LEFT_ALONE.extend(self._gone)
        self._gone = []


_TOLD: WeakSet[Told] = WeakSet()
_INHERITED: set[str] = set()
"""Files that this process must not open: its parent had them open when it was forked."""
_LEFT_ALONE: list[Pool] = []
"""Of a parent process: held for ever, so that nobody closes what it has open."""


def told_of_forks(each: Told) -> None:
    """As long as somebody else holds it."""
    _TOLD.add(each)


def _each(step: str) -> Any:
    def run() -> None:
        for each in list(_TOLD):
            getattr(each, step)()

    return run


if hasattr(os, "register_at_fork"):
    os.register_at_fork(
        before=_each("before"), after_in_parent=_each("after_in_parent"), after_in_child=_each("after_in_child")
    )
