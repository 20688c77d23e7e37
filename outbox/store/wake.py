"""Wake-ups after commit, inside one process: hints only, the worker's poll is the guarantee.

A Session tells after its commit. A Connection tells just before the driver's COMMIT, so whoever is woken looks
again a moment later.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any
from weakref import WeakKeyDictionary

from sqlalchemy import Connection, Engine, event
from sqlalchemy.orm import Session

from outbox.core.lane import Lane

Lanes = set[Lane]
Listener = Callable[[Lanes], None]


class Wake:
    """Tells listeners which lanes got entries. Listeners must be quick and must not raise."""

    def __init__(self) -> None:
        self._listeners: list[Listener] = []
        self._waiting: WeakKeyDictionary[Any, Lanes] = WeakKeyDictionary()
        self._hooked: WeakKeyDictionary[Engine, bool] = WeakKeyDictionary()

    def listen(self, listener: Listener) -> Callable[[], None]:
        """Call ``listener`` at each wake; returns what ends that."""
        self._listeners.append(listener)
        return lambda: self._listeners.remove(listener)

    def set(self, lanes: Iterable[Lane]) -> None:
        woken = set(lanes)
        for listener in tuple(self._listeners) if woken else ():
            listener(woken)

    def after_commit(self, where: Session | Connection, lanes: Lanes) -> None:
        """Wake when the transaction of ``where`` commits; forget it when it rolls back."""
        if not self._listeners:
            return
        known = where in self._waiting
        self._waiting.setdefault(where, set()).update(lanes)
        if isinstance(where, Session):
            if not known:
                event.listen(where, "after_commit", self._session_committed)
        elif where.engine not in self._hooked:
            self._hooked[where.engine] = True
            event.listen(where.engine, "commit", self._connection_commits)

    def _session_committed(self, session: Session) -> None:
        if session.in_nested_transaction():
            return  # a SAVEPOINT was released
        self.set(self._waiting.get(session, ()))
        self._waiting.get(session, set()).clear()

    def _connection_commits(self, connection: Connection) -> None:
        self.set(self._waiting.pop(connection, ()))
