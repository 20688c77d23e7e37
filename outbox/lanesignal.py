"""How the thread that drains a lane is told of commits and answers."""

from __future__ import annotations

import math
import time
from collections import deque
from contextlib import suppress

from outbox.autoreset import AutoResetEvent
from outbox.core.step import Committed

HANDED_OVER = 20
"""Commits whose entries are kept in memory for the next claim. Beyond that the lane is behind, and reads them."""

EXPECTED_SECONDS = 0.05
"""After a commit was announced before it was visible, answers are settled with another look for entries this long."""


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
        """How many notifications of entries there were."""
        self._committed: deque[Committed | None] = deque()
        """What each commit since the last claim added. None: the claim has to read it."""

    def notify(
        self, *, entries: bool, early: bool = False, other_process: bool = False, committed: Committed | None = None
    ) -> None:
        """``committed``: the entries themselves, where the notifier knows all of them."""
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
        """What was committed since the last call. None: read the log."""
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
        until = time.monotonic() + seconds
        while not self.entries and (left := until - time.monotonic()) > 0:
            self.wait(left)
