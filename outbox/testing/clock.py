"""A clock for tests."""

from __future__ import annotations

from datetime import UTC, datetime

_MICROSECONDS = 1_000_000
_START = int(datetime(2025, 1, 6, 12, tzinfo=UTC).timestamp()) * _MICROSECONDS


class FrozenClock:
    """Stands at noon of 6 January 2025, UTC, until it is moved."""

    def __init__(self, now: int = _START) -> None:
        self._now = now

    def now(self) -> int:
        """Microseconds since the epoch, UTC."""
        return self._now

    def advance(self, *, seconds: float) -> None:
        """Move forward, or back: a clock of this world may jump either way."""
        self._now += round(seconds * _MICROSECONDS)
