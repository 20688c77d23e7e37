"""What the thread that drains a lane waits for."""

from __future__ import annotations

import math
import time
from collections import deque
from contextlib import suppress

from outbox.bell import Bell
from outbox.core.step import Committed

HANDED_OVER = 20
"""Commits whose entries are kept for whoever claims them; there are more where the lane does not keep up."""

EXPECTED_SECONDS = 0.05
"""So long after news of a commit that nobody can have found yet, what arrives is settled with a look for it."""


class News:
    """What happens on a lane, for the one thread that waits for it."""

    def __init__(self) -> None:
        self._bell = Bell()
        self.entries = False
        """Some were committed since somebody looked."""
        self.soon_at = -math.inf
        """When some were about to be: who looks at once may not see them. A time, and not a flag that somebody takes
        down: what was told just then would be lost with it."""
        self.elsewhere_at = -math.inf
        """When another process committed some: it may have done so again before anybody told."""
        self.told = 0
        """How often somebody told of entries."""
        self._committed: deque[Committed | None] = deque()
        """What each commit brought since somebody claimed. None: that is to be looked for."""

    def tell(
        self, *, entries: bool, soon: bool = False, elsewhere: bool = False, committed: Committed | None = None
    ) -> None:
        """``committed``: what they are, if all of them are known."""
        if soon:
            self.soon_at = time.monotonic()
        if elsewhere:
            self.elsewhere_at = time.monotonic()
        if entries:
            self.told += 1
            if len(self._committed) >= HANDED_OVER:
                self._committed.clear()
                committed = None
            self._committed.append(committed)  # before the flag, which is taken down before these are taken
            self.entries = True
        self._bell.ring()

    @property
    def more_expected(self) -> bool:
        """Some that nobody can have found when it was told of them, or nobody tells of."""
        return time.monotonic() - max(self.soon_at, self.elsewhere_at) < EXPECTED_SECONDS

    def take(self) -> Committed | None:
        """What was committed since the last time. None: look for it."""
        self.entries = False
        told: list[Committed | None] = []
        with suppress(IndexError):
            while True:
                told.append(self._committed.popleft())
        return Committed.joined(told)

    def wait(self, seconds: float | None) -> None:
        """Until something is told, at most ``seconds``."""
        self._bell.wait(seconds)

    def wait_for_entries(self, seconds: float) -> None:
        until = time.monotonic() + seconds
        while not self.entries and (left := until - time.monotonic()) > 0:
            self.wait(left)
