"""Virtual time, the queue of events, one source of randomness, and the trace of past events.

Nothing here sleeps or starts a thread: the clock jumps to the next event. Two runs of one seed make the same trace.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from heapq import heappop, heappush
from random import Random
from typing import Any, Protocol

from outbox.core.lane import Lane

MILLISECOND = 1_000
SECOND = 1_000_000
MINUTE = 60 * SECOND
HOUR = 60 * MINUTE
DAY = 24 * HOUR
EPOCH = 1_800_000_000 * SECOND
"""The database's clock at the start, in µs."""


class Ring(Protocol):
    """Reports that a lane has changed. ``idle``: the caller has just looked at it and found nothing to do."""

    def __call__(self, lane: Lane, *, idle: bool = False) -> None: ...


class World:
    """``now``: true time in µs since the start. ``jumps``: how often the database's clock was set forward or back."""

    def __init__(self, seed: int) -> None:
        self.chance = Random(seed)
        self.now = 0
        self.jumps = 0
        self.trace: list[tuple[object, ...]] = []
        self._offset = EPOCH
        self._queue: list[tuple[int, int, Callable[..., None], tuple[Any, ...]]] = []
        self._scheduled = 0

    def database_clock(self) -> int:
        return self.now + self._offset

    def monotonic(self) -> float:
        return self.now / SECOND

    def jump(self, by: int) -> None:
        """Set the database's clock forward or back."""
        self._offset += by
        self.jumps += 1
        self.note("jump", by)

    def after(self, delay: int, action: Callable[..., None], *arguments: Any) -> None:
        self._scheduled += 1
        heappush(self._queue, (self.now + delay, self._scheduled, action, arguments))

    def run(self, until: int, enough: Callable[[], bool] | None = None) -> None:
        """Run events until the time ``until``, or until ``enough()`` is true before an event."""
        queue = self._queue
        while queue and queue[0][0] <= until:
            if enough is not None and enough():
                return
            self.now, _, action, arguments = heappop(queue)
            action(*arguments)
        self.now = max(self.now, until)

    def happens(self, probability: float) -> bool:
        return self.chance.random() < probability

    def between(self, least: int, most: int) -> int:
        return least + int(self.chance.random() * (most - least))

    def note(self, *what: object) -> None:
        """Append to the trace. Only plain values, whose repr is the same in every process."""
        self.trace.append((self.now, *what))

    def fingerprint(self) -> str:
        return hashlib.sha256(repr(self.trace).encode()).hexdigest()


class Violation(AssertionError):
    """An invariant does not hold. The message ends with the seed that shows it."""
