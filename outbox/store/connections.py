"""Which pooled connections may be used again, and a small cache of checked-out ones ("at hand").

SQLAlchemy's pool takes longer to check a connection out and in than SQLite takes to insert a row (benchmarks/NOTES.md).
So work on a driver connection leaves it checked out, at hand for the next.
"""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from threading import Event
from typing import TYPE_CHECKING, Any

from sqlalchemy import Engine, Pool, PoolProxiedConnection, QueuePool, event
from sqlalchemy.exc import InvalidatePoolError

if TYPE_CHECKING:
    from outbox.store.dialects import Dialect
    from outbox.store.same_file import SameFile

IDLE_SECONDS = 1.0
"""A connection that was idle for longer is pinged before use: the server may have closed it meanwhile."""
AT_HAND = 2
"""The cache's size: one connection for a worker's steps, one for a producer's puts meanwhile."""
POOL_CONNECTIONS = 5
"""The smallest pool with a cache. A smaller one is a deliberate bound: a thread that waits for one of so few
connections must not wait for one that is idle here."""

AtHand = deque[PoolProxiedConnection]
Switch = Callable[[Any, bool], None]
"""``Dialect.commit_each``."""
KEPT_SECONDS = 60.0
"""How long a connection stays checked out at most: the pool may have to replace old ones (``pool_recycle``)."""
_USED_AT, _KEPT_AT, _OUT_AT = "outbox_used_at", "outbox_kept_at", "outbox_out_at"
_LEFT_ALONE: list[AtHand | Pool] = []
"""A parent process's connections, held for ever: a finalizer that closed one would write to the shared socket."""


class Connections:
    """The connections of ``engine``. A server may close them. Those at hand are in autocommit; those that SQLAlchemy's
    pool hands out are not.

    ``store.forks`` calls ``before``, ``after_in_parent`` and ``after_in_child`` around a fork.
    """

    def __init__(self, engine: Engine, dialect: Dialect) -> None:
        served = not dialect.single_writer
        switch = dialect.commit_each if dialect.autocommits and served else None
        self._engine = engine
        self._dialect = dialect
        self._served = served
        self._switch = switch
        self.file: SameFile | None = None
        """The file of a SQLite database."""
        self._suspect = Event()
        """Set: the pool's connections must not be used again."""
        self._at_hand = AtHand()
        """Replaced by a new deque when the connections so far must not be kept, including those in use now."""
        self._forking = False
        self.pid = os.getpid()
        self.disposed: Callable[[Pool], None] | None = None
        """Called with the engine's old pool after ``Engine.dispose``."""
        dispose = engine.dispose

        def dispose_all(close: bool = True) -> None:
            pool = engine.pool
            if close:
                self.give_back()
            else:  # they belong to another process: nothing may be written to their sockets, not by a finalizer either
                _LEFT_ALONE.append(self._at_hand)
                self._at_hand = AtHand()
            dispose(close)
            if close and self.disposed is not None:
                self.disposed(pool)

        # Not the event "engine_disposed": any listener on an engine makes each of its connections slower.
        setattr(engine, "dispose", dispose_all)  # noqa: B010 - mypy: cannot assign to a method
        if switch is not None:
            # At the pool's reset, not in keep(): a connection that was garbage-collected returns to the pool too.
            event.listen(engine, "reset", self._commit_on_demand)
        if served:
            event.listen(engine, "checkin", _note_use)
            event.listen(engine, "checkout", self._require_alive)
            event.listen(engine, "checkout", self._end_begun)

    def take(self) -> tuple[PoolProxiedConnection, AtHand]:
        """A driver connection, and the cache it came from. The caller passes both to :meth:`keep`, or closes the
        connection."""
        if self.file is not None:
            self.file.require_lately()
        at_hand = self._at_hand
        try:
            pooled = at_hand.pop()
        except IndexError:  # empty: another thread may have taken the last one
            pass
        else:
            if not self._served or time.monotonic() - pooled.info[_KEPT_AT] < IDLE_SECONDS:
                del pooled.info[_KEPT_AT]
                return pooled, at_hand
            pooled.close()  # the pool pings it before it hands it out
        pooled = self._engine.raw_connection()
        pooled.info[_OUT_AT] = time.monotonic()
        try:
            # SQLAlchemy applies it in ``engine.connect()`` only, and a host's engine may default to READ UNCOMMITTED.
            if (level := self._engine.get_execution_options().get("isolation_level")) is not None:
                driver: Any = pooled.driver_connection
                self._engine.dialect.set_isolation_level(driver, level)
            if self._switch is not None:
                self._switch(pooled.driver_connection, True)
        except BaseException:
            pooled.invalidate()
            self.distrust()  # the others have probably broken too
            raise
        return pooled, at_hand

    def keep(self, pooled: PoolProxiedConnection, at_hand: AtHand) -> None:
        """Keep the connection at hand, or return it to the pool. No transaction may be open on it."""
        now = time.monotonic()
        if len(at_hand) >= self._room() or now - pooled.info[_OUT_AT] > KEPT_SECONDS:
            pooled.close()
            return
        pooled.info[_KEPT_AT] = now
        at_hand.append(pooled)
        if at_hand is not self._at_hand:  # replaced meanwhile. No lock: a signal handler may put
            _close(at_hand)

    def distrust(self) -> None:
        """Use none of the connections again, nor those in use now: one broke, or was refused writes."""
        self._suspect.set()
        self.give_back()

    def give_back(self) -> None:
        """Return all connections at hand to the pool."""
        at_hand, self._at_hand = self._at_hand, AtHand()
        _close(at_hand)

    def let_go(self) -> None:
        """Dispose of the engine, which is no longer referenced. Not in a forked child: the connections are the
        parent's."""
        if self.pid == os.getpid():
            self._engine.dispose()

    def before(self) -> None:
        self._forking = True
        self.give_back()

    def after_in_parent(self) -> None:
        self._forking = False

    def after_in_child(self) -> None:
        """Start with no connection: one must not be shared with the parent process."""
        self.pid = os.getpid()
        self._forking = False
        _LEFT_ALONE.append(self._engine.pool)
        self._engine.dispose(close=False)

    def _room(self) -> int:
        pool = self._engine.pool
        enough = isinstance(pool, QueuePool) and pool.size() >= POOL_CONNECTIONS
        return AT_HAND if enough and not self._forking else 0

    def _commit_on_demand(self, driver_connection: Any, record: Any, _state: Any) -> None:
        assert self._switch is not None
        try:
            self._switch(driver_connection, False)
        except self._engine.dialect.loaded_dbapi.Error:  # the connection is broken
            record.invalidate()

    def _require_alive(self, driver_connection: Any, record: Any, _proxy: Any) -> None:
        """Ping a connection that was idle. Not by ``pool_pre_ping``, which costs a busy producer a round trip for each
        transaction."""
        used_at = record.info.get(_USED_AT)
        if used_at is None:
            return
        if self._suspect.is_set():
            self._suspect.clear()
            raise InvalidatePoolError("a connection of this pool broke, or was refused writes")
        if time.monotonic() - used_at < IDLE_SECONDS:
            return
        dialect = self._engine.dialect
        try:
            self._dialect.end_begun(driver_connection)  # of a host's listener: a driver may refuse a ping within it
            dialect.do_ping(driver_connection)
        except dialect.loaded_dbapi.Error as error:
            raise InvalidatePoolError("the connection went stale in the pool") from error

    def _end_begun(self, driver_connection: Any, _record: Any, _proxy: Any) -> None:
        """After a host's own listener, which may have run a statement."""
        self._dialect.end_begun(driver_connection)


def _close(at_hand: AtHand) -> None:
    with suppress(IndexError):
        while True:
            at_hand.pop().close()


def _note_use(_driver_connection: Any, record: Any) -> None:
    record.info[_USED_AT] = record.info.pop(_KEPT_AT, None) or time.monotonic()
