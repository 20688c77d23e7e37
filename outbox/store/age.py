"""The clock by which purge and shedding judge age: the database's, without its jumps. See ``core/steady.py``."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from functools import partial

from outbox.boottime import boottime
from outbox.core.policy import MICROSECONDS
from outbox.core.steady import STANDS_SECONDS, Reading, SteadyClock
from outbox.store.ledger import Clock

logger = logging.getLogger("outbox.store")

Steadied = Callable[[int], int]
"""Converts a reading of the database's clock to the time by which age is judged. Both in µs since the epoch."""


class AgeClock:
    """The age clock of one database in this process. It logs when it stops trusting the database's clock, and when it
    trusts it again."""

    def __init__(self, where: str) -> None:
        self._where = where
        self._steady = SteadyClock.of_host(time.time(), boottime())

    def asking(self, clock: Clock | None) -> Steadied:
        """Call it just before the query that reads the database's clock. ``clock``: replaces both clocks in tests."""
        return partial(self._steadied, boottime()) if clock is None else lambda _now: clock()

    def _steadied(self, began: float, now: int) -> int:
        before, self._steady = self._steady, self._steady.after(Reading(now, began, boottime()))
        if self._steady.ahead and not before.ahead:
            logger.warning(
                "%s: the clock of the database is %.0f s ahead of what it was when it was last read (at start: of this"
                " host's). Purge and shedding judge age without that lead until it has stood for %.0f minutes: if the"
                " database's clock is wrong, set it right before; if it is right, do nothing",
                self._where,
                self._steady.ahead / MICROSECONDS,
                STANDS_SECONDS / 60,
            )
        elif before.ahead and not self._steady.ahead:
            logger.warning("%s: age is judged by the clock of the database again", self._where)
        return self._steady.now
