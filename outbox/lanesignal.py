"""How the thread that drains a lane is notified of commits and of answers."""

from __future__ import annotations

import math
import time
from collections import deque
from contextlib import suppress

from outbox.autoreset import AutoResetEvent
from outbox.core.step import Committed

HANDED_OVER = 20
"""The most commits whose entries are kept in memory for the next claim. Beyond that the claim reads the log."""

EXPECTED_SECONDS = 0.05
"""For how long after an early announcement, or another process's commit, answers are settled with a claim of
entries."""


class LaneSignal:
    """Notifications to the one thread that drains a lane, from any thread."""

    def __init__(self) -> None:
        self._event = AutoResetEvent()
        self.entries = False
        """Entries were committed since the last look."""
        self.early_at = -math.inf
        """When a commit was last announced before it was visible: a look at once may not find it. A time, because
        clearing a flag could lose an announcement made at that moment."""
        self.other_process_at = -math.inf
        """When another process was last seen to commit: it may have committed again since."""
        self.notified = 0
        """The number of notifications of entries so far."""
        self._committed: deque[Committed | None] = deque()
        """The entries of each commit since the last claim. None: the claim must read them."""

    def notify(
        self, *, entries: bool, early: bool = False, other_process: bool = False, committed: Committed | None = None
    ) -> None:
        """Wake the thread. ``entries``: entries were committed, or are about to be (``early``). ``committed``: all of
        the commit's entries, where the notifier has them."""
        if early:
            self.early_at = time.monotonic()
        if other_process:
            self.other_process_at = time.monotonic()
        if entries:
            self.notified += 1
            if len(self._committed) >= HANDED_OVER:
                self._committed.clear()
                committed = None
            self._committed.append(committed)  # before the flag: ``take`` clears the flag first
            self.entries = True
        self._event.set()

    @property
    def more_expected(self) -> bool:
        """There may be entries that were not visible when they were announced, or were never announced."""
        return time.monotonic() - max(self.early_at, self.other_process_at) < EXPECTED_SECONDS

    def take(self) -> Committed | None:
        """The entries committed since the last call, and clear ``entries``. None: read the log."""
        self.entries = False
        notified: list[Committed | None] = []
        with suppress(IndexError):
            while True:
                notified.append(self._committed.popleft())
        return Committed.joined(notified)

    def wait(self, seconds: float | None) -> None:
        """Block until a notification, at most ``seconds``."""
        self._event.wait(seconds)

    def wait_for_entries(self, seconds: float) -> None:
        """Block until ``entries`` is set, at most ``seconds``."""
        until = time.monotonic() + seconds
        while not self.entries and (left := until - time.monotonic()) > 0:
            self.wait(left)
