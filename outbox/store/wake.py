"""Notifications of commits: hints only, the worker's poll is the guarantee.

    commit ──▶ Wake ──▶ the worker of this process, if there is one
                  └───▶ else an Announcer, where the database can carry a message (PostgreSQL)
    another process's commit ──▶ store.watch, in the worker's process

A Session's event comes after its commit. A Connection's comes just before the driver's COMMIT, so a worker that it
notifies ("early") looks again a moment later.
"""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, Protocol
from weakref import WeakKeyDictionary

from sqlalchemy import Connection, Engine, event

from outbox.autoreset import AutoResetEvent
from outbox.core.lane import LANES, Lane
from outbox.core.step import Committed
from outbox.store.dialects import SOON
from outbox.uninstrumented import uninstrumented

if TYPE_CHECKING:
    from sqlalchemy.orm import Session

    from outbox.store.database import Database

logger = logging.getLogger("outbox.wake")

Lanes = set[Lane]


class Listener(Protocol):
    """``lanes`` got entries. ``committed``: those entries, where they are of one lane and known."""

    def __call__(self, lanes: Lanes, committed: Committed | None = None, /) -> None: ...


class Wake:
    """Notifies the listeners of this process which lanes got entries; ``announce`` when there are none. Both are called
    on the producer's thread: they must return quickly and must not raise."""

    def __init__(self, announce: Announcer | None = None) -> None:
        self._announce = announce
        self._listeners: list[tuple[Listener, Listener]] = []
        self._waiting: WeakKeyDictionary[Any, Lanes] = WeakKeyDictionary()
        self._hooked: WeakKeyDictionary[Engine, bool] = WeakKeyDictionary()

    def listen(self, listener: Listener, early: Listener | None = None) -> Callable[[], None]:
        """Call ``listener`` after each commit, or ``early`` where the COMMIT is still to come. Returns a function that
        removes both."""
        both = listener, early or listener
        self._listeners.append(both)
        return lambda: self._listeners.remove(both)

    @property
    def hands_over(self) -> bool:
        """Whether a listener in this process takes committed entries."""
        return bool(self._listeners)

    def set(self, lanes: Iterable[Lane], committed: Committed | None = None, *, early: bool = False) -> None:
        woken = set(lanes)
        for listener, before in self._told() if woken else ():
            (before if early else listener)(woken, committed)

    def after_commit(self, where: Session | Connection, lanes: Lanes) -> None:
        """Notify at the next commit of ``where``. A rollback forgets nothing: a later commit notifies in vain."""
        if not self._told():
            return
        known = where in self._waiting
        self._waiting.setdefault(where, set()).update(lanes)
        if not isinstance(where, Connection):
            if not known:
                event.listen(where, "after_commit", self._session_committed)
        elif where.engine not in self._hooked:
            self._hooked[where.engine] = True
            event.listen(where.engine, "commit", self._connection_commits)

    def _told(self) -> tuple[tuple[Listener, Listener], ...]:
        if self._listeners or self._announce is None:
            return tuple(self._listeners)
        return ((self._announce, self._announce.early),)

    def _session_committed(self, session: Session) -> None:
        if session.in_nested_transaction():
            return  # a SAVEPOINT was released
        self.set(self._waiting.get(session, ()))
        self._waiting.get(session, set()).clear()

    def _connection_commits(self, connection: Connection) -> None:
        self.set(self._waiting.pop(connection, ()), early=True)


class Announcer:
    """Notifies workers in other processes of commits, from a thread with a connection of its own.

    NOTIFY is not part of the producer's transaction: PostgreSQL serializes the commits of all transactions that NOTIFY,
    across the whole cluster, including their fsync and the standby's answer. The thread starts at the first commit and
    ends when none came for a minute.
    """

    PAUSE_SECONDS = 0.002
    """The pause between two messages; the commits within it share the next one."""
    IDLE_SECONDS = 60.0
    CLOSE_SECONDS = 2.0

    def __init__(self, database: Database) -> None:
        self._database = database
        self._thread: threading.Thread | None = None
        self._tables: set[str] = set()
        self._dropped = False
        self._forget()

    def __call__(self, lanes: Lanes, _committed: Committed | None = None, /) -> None:
        self._tell({LANES[lane].table for lane in lanes})

    def early(self, lanes: Lanes, _committed: Committed | None = None, /) -> None:
        """Announce before the COMMIT: a notified worker looks now, and again a moment later."""
        self(lanes)
        self._tell({LANES[lane].table + SOON for lane in lanes})

    def _tell(self, tables: set[str]) -> None:
        if self._pid != os.getpid():
            self._forget()  # the thread stayed with the parent
        with self._lock:
            self._tables |= tables
            if self._thread is None and not self._closed.is_set():
                self._start()
            self._some.set()

    def _start(self) -> None:
        self._thread = thread = threading.Thread(target=self._run, name="outbox-announcer", daemon=True)
        try:
            thread.start()
        except BaseException:  # a signal handler raised, or no thread can be started
            if thread.ident is None:
                self._thread = None
            raise

    def drop(self) -> None:
        """The outbox is gone, unclosed: announce what is left and what its transactions still commit, and hold no
        connection longer. Takes no lock, so that a finalizer may call it anywhere."""
        self._dropped = True
        self._some.set()

    def close(self) -> None:
        """Announce what is left, within two seconds."""
        self._closed.set()
        self._some.set()
        thread = self._thread
        if thread is not None and self._pid == os.getpid():
            thread.join(self.CLOSE_SECONDS)

    def _forget(self) -> None:
        self._lock = threading.RLock()  # reentrant: a signal handler that puts may interrupt its holder
        self._some = AutoResetEvent()
        self._closed = threading.Event()
        self._thread, self._tables = None, set()
        self._pid = os.getpid()  # last: a handler that puts before it forgets too, and uses no lock of the parent

    def _run(self) -> None:
        while self._announce():
            pass

    def _announce(self) -> bool:
        """Announce commits until it is time to end. Returns True to try again on another connection: this one had
        worked before it broke (the server restarted)."""
        worked, tables = False, set[str]()
        try:
            with uninstrumented(), self._database.dialect.announcing(self._database.engine) as announce:
                while tables := self._next():
                    announce(sorted(tables))
                    worked = True
                    self._closed.wait(self.PAUSE_SECONDS)
        except Exception as error:  # noqa: BLE001 - any driver's error
            logger.info("workers in other processes are not told of commits, their poll finds them: %s", error)
            with self._lock:
                if worked:
                    self._tables |= tables
                    self._some.set()
                else:
                    self._thread = None
            return worked
        return False

    def _next(self) -> set[str]:
        """Wait for tables to announce. Empty: it is time to end."""
        if not (self._dropped or self._closed.is_set()):
            self._some.wait(self.IDLE_SECONDS)
        with self._lock:
            self._some.wait(0)  # clear it with the tables: set without any, the next call would end the thread
            tables, self._tables = self._tables, set()
            if not tables:
                self._thread = None
        return tables
