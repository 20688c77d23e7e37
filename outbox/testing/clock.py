"""A clock for tests."""

from __future__ import annotations

import time


class FrozenClock:
    """Stands at the moment it was made until it is moved.

    It starts at the true time because the database dates what is enqueued by its own clock.
    """

    def __init__(self, now: int | None = None) -> None:
        self._now = time.time_ns() // 1000 if now is None else now

    def now(self) -> int:
        """Microseconds since the epoch, UTC."""
        return self._now

    def advance(self, *, seconds: float) -> None:
        """Move forward, or back: a clock of this world may jump either way."""
        self._now += round(seconds * 1_000_000)
