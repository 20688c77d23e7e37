"""A clock for tests."""

from __future__ import annotations

import time


class FrozenClock:
    """A clock that stands still until ``advance`` is called.

    It starts at the real time by default, because the database dates entries by its own clock.
    """

    def __init__(self, now: int | None = None) -> None:
        self._now = time.time_ns() // 1000 if now is None else now

    def now(self) -> int:
        """Microseconds since the epoch, UTC."""
        return self._now

    def advance(self, *, seconds: float) -> None:
        """Move the clock forward, or back with negative seconds: real clocks may jump either way."""
        self._now += round(seconds * 1_000_000)
