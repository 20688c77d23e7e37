"""An auto-reset event: one thread waits for it, any thread or signal handler sets it.

Not ``threading.Event``, whose ``set()`` is Python code under a lock: a signal handler that calls it while its thread is
inside ``set()`` deadlocks, and one that raises there (Celery's time limit) may leave the lock held for ever.
"""

from __future__ import annotations

import queue
from contextlib import suppress
from queue import Empty, SimpleQueue

from outbox.errors import ConfigError


class AutoResetEvent:
    """An Event that ``wait`` clears. Raises ``ConfigError`` where gevent has patched the process too late."""

    def __init__(self) -> None:
        if queue.SimpleQueue is not SimpleQueue:  # a wait in the former one would stop every greenlet, for ever
            raise ConfigError(
                "gevent has patched this process after it had imported outbox, so that one wait would stop all of it."
                " Import outbox after monkey.patch_all(); under gunicorn, gevent workers without --preload"
            )
        self._signals: SimpleQueue[None] = SimpleQueue()

    def set(self) -> None:
        """Idempotent until the next ``wait``: the queue does not grow."""
        if self._signals.empty():
            self._signals.put(None)  # SimpleQueue.put is reentrant: safe in a signal handler

    def is_set(self) -> bool:
        """Whether it was set since the last ``wait``."""
        return not self._signals.empty()

    def wait(self, seconds: float | None = None) -> bool:
        """Block until it is set, at most ``seconds``, and clear it. Whether it was set."""
        try:
            self._signals.get(timeout=None if seconds is None else max(seconds, 0.0))
        except Empty:
            return False
        with suppress(Empty):  # several threads may have set it at once
            while self.is_set():
                self._signals.get_nowait()
        return True
