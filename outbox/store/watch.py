"""Commits of other processes, for an idle worker: a thread that waits for the database's notifications."""

from __future__ import annotations

import logging
import threading
from collections.abc import Mapping

from outbox.core.lane import LANES, Lane
from outbox.store.database import Database
from outbox.store.dialects import SOON
from outbox.store.wake import Listener
from outbox.uninstrumented import uninstrumented

logger = logging.getLogger("outbox.wake")

_RETRY_SECONDS = 1.0


class Watch:
    """Calls ``tell`` when another process commits entries, or ``early`` when it is about to. Does nothing where the
    database sends no notifications. ``here``: see ``Dialect.watch_commits``."""

    def __init__(self, database: Database, tell: Listener, early: Listener, here: Mapping[str, int]) -> None:
        self._database = database
        self._here = here
        self._tell = tell
        self._early = early
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="outbox-watch")

    def start(self) -> None:
        if self._database.dialect.notifies:
            self._thread.start()

    def close(self) -> None:
        self._stop.set()
        if self._thread.ident is not None:
            self._thread.join()

    def _run(self) -> None:
        lanes = {spec.table: lane for lane, spec in LANES.items()}
        while not self._stop.is_set():
            try:
                watching = self._database.dialect.watch_commits(self._database.engine, lanes, self._here)
                with uninstrumented(), watching as look:
                    self._tell(set(Lane))  # for commits before the watch began
                    while not self._stop.is_set():
                        told = set(look(self._stop))
                        self._tell({lanes[table] for table in told & lanes.keys()})
                        self._early({lane for table, lane in lanes.items() if table + SOON in told})
            except Exception as error:  # noqa: BLE001 - any driver's error; the poll goes on meanwhile
                logger.info("not told of commits in other processes for now, the poll finds them: %s", error)
                self._stop.wait(_RETRY_SECONDS)
