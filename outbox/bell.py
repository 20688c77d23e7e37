"""A bell: one thread waits for it, whoever has news rings it, a signal's handler too.

Not an Event, whose ``set()`` is Python under a lock. A handler that sets it while its thread does waits for itself; one
that raises there, as a time limit does, may leave the lock held, and all who come after it wait for ever.
"""

from __future__ import annotations

from contextlib import suppress
from queue import Empty, SimpleQueue


class Bell:
    """As an Event that is taken down by whoever waited for it."""

    def __init__(self) -> None:
        self._rung: SimpleQueue[None] = SimpleQueue()

    def ring(self) -> None:
        """One who rings finds another's ring not heard yet, and leaves it at that: it does not grow."""
        if self._rung.empty():
            self._rung.put(None)  # reentrant, as the library promises: for a handler it has happened, or it has not

    @property
    def rung(self) -> bool:
        """Somebody rang, and nobody has waited since."""
        return not self._rung.empty()

    def wait(self, seconds: float | None = None) -> bool:
        """Until somebody rings, or has since the last time, at most ``seconds``; whether somebody did."""
        try:
            self._rung.get(timeout=None if seconds is None else max(seconds, 0.0))
        except Empty:
            return False
        with suppress(Empty):  # of some that rang at once
            while self.rung:
                self._rung.get_nowait()
        return True
