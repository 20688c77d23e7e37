"""The pool's connections: which of them may be used again, and two of them kept at hand.

SQLAlchemy's pool takes longer to hand a connection out and to take it back than SQLite takes to insert a row
(benchmarks/NOTES.md). So what works on a connection of the driver leaves it at hand for whoever comes next.
"""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from threading import Event
from typing import Any

from sqlalchemy import Engine, Pool, PoolProxiedConnection, QueuePool, event
from sqlalchemy.exc import InvalidatePoolError

IDLE_SECONDS = 1.0
"""A connection that was idle for longer is tried before it is used: the server may have gone in between."""
AT_HAND = 2
"""One for a worker that steps, one for a producer that puts meanwhile."""
POOL_CONNECTIONS = 5
"""A smaller pool is somebody's bound: whoever waits for one of so few must not wait for one that is idle here."""

AtHand = deque[PoolProxiedConnection]
Switch = Callable[[Any, bool], None]
"""``Dialect.commit_each``."""
KEPT_SECONDS = 60.0
"""So long at most it stays out of the pool, which may have been told to replace what is old (``pool_recycle``)."""
_USED_AT, _KEPT_AT, _OUT_AT = "outbox_used_at", "outbox_kept_at", "outbox_out_at"
_LEFT_ALONE: list[AtHand | Pool] = []
"""Of a parent process: held for ever, so that nothing is said on their sockets."""


class Connections:
    """Of ``engine``. ``served``: by a server, which may go away meanwhile. ``switch``: by it those at hand are told to
    commit each statement by itself; those that the pool hands out do not.

    ``before``, ``after_in_parent`` and ``after_in_child`` a fork are called by ``store.forks``.
    """

    def __init__(self, engine: Engine, *, served: bool, switch: Switch | None) -> None:
        self._engine = engine
        self._served = served
        self._switch = switch
        self._suspect = Event()
        """Set: the pool's connections are not to be used again."""
        self._at_hand = AtHand()
        """Another deque from when those of before are not to be kept any longer, whoever uses them now."""
        self._forking = False
        self.pid = os.getpid()
        self.disposed: Callable[[Pool], None] | None = None
        """Called with a pool that the engine has no longer."""
        dispose = engine.dispose

        def dispose_all(close: bool = True) -> None:
            pool = engine.pool
            if close:
                self.give_back()
            else:  # they are another process's: not a word on their sockets, by a finalizer neither
                _LEFT_ALONE.append(self._at_hand)
                self._at_hand = AtHand()
            dispose(close)
            if close and self.disposed is not None:
                self.disposed(pool)

        # Not the event "engine_disposed": any listener on an engine makes each of its connections dearer.
        setattr(engine, "dispose", dispose_all)  # noqa: B010 - mypy: cannot assign to a method
        if switch is not None:
            # Here, and not where it is given back: one that a thread lost on its way goes to the pool too.
            event.listen(engine, "reset", self._commit_on_demand)
        if served:
            event.listen(engine, "checkin", _note_use)
            event.listen(engine, "checkout", self._require_alive)

    def take(self) -> tuple[PoolProxiedConnection, AtHand]:
        """A connection of the driver, and what it came from: for ``keep``, or it is closed."""
        at_hand = self._at_hand
        try:
            pooled = at_hand.pop()
        except IndexError:  # none is: another thread may have it just now
            pass
        else:
            if not self._served or time.monotonic() - pooled.info[_KEPT_AT] < IDLE_SECONDS:
                del pooled.info[_KEPT_AT]
                return pooled, at_hand
            pooled.close()  # the pool tries it before it hands it out
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
            self.distrust()  # it broke with others
            raise
        return pooled, at_hand

    def keep(self, pooled: PoolProxiedConnection, at_hand: AtHand) -> None:
        """For whoever comes next. No transaction is open on it."""
        now = time.monotonic()
        if len(at_hand) >= self._room() or now - pooled.info[_OUT_AT] > KEPT_SECONDS:
            pooled.close()
            return
        pooled.info[_KEPT_AT] = now
        at_hand.append(pooled)
        if at_hand is not self._at_hand:  # meanwhile, or a moment ago: no lock, for a signal's handler may put too
            _close(at_hand)

    def distrust(self) -> None:
        """One of them broke, or was refused writes: none is used again, those in use now neither."""
        self._suspect.set()
        self.give_back()

    def give_back(self) -> None:
        """To the pool, all that are at hand."""
        at_hand, self._at_hand = self._at_hand, AtHand()
        _close(at_hand)

    def let_go(self) -> None:
        """Of the engine, which nobody has any longer. In a child of a fork its connections are the parent's."""
        if self.pid == os.getpid():
            self._engine.dispose()

    def before(self) -> None:
        self._forking = True
        self.give_back()

    def after_in_parent(self) -> None:
        self._forking = False

    def after_in_child(self) -> None:
        """A connection must not be shared with the parent process: the child starts with none."""
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
        except self._engine.dialect.loaded_dbapi.Error:  # it is gone
            record.invalidate()

    def _require_alive(self, driver_connection: Any, record: Any, _proxy: Any) -> None:
        """Not ``pool_pre_ping``, which costs a busy producer a round trip for every transaction."""
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
            dialect.do_ping(driver_connection)
        except dialect.loaded_dbapi.Error as error:
            raise InvalidatePoolError("the connection went stale in the pool") from error


def _close(at_hand: AtHand) -> None:
    with suppress(IndexError):
        while True:
            at_hand.pop().close()


def _note_use(_driver_connection: Any, record: Any) -> None:
    record.info[_USED_AT] = record.info.pop(_KEPT_AT, None) or time.monotonic()
