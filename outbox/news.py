"""What the thread that drains a lane waits for."""

from __future__ import annotations

import time
from threading import Event


class News:
    """What happens on a lane, for the one thread that waits for it."""

    def __init__(self) -> None:
        self._event = Event()
        self.entries = False
        """Some were committed since somebody looked."""
        self.soon = False
        """Some were about to be: who looks at once may not see them."""
        self.elsewhere = False
        """Another process committed some, and may have done so again before anybody told."""

    def tell(self, *, entries: bool, soon: bool = False, elsewhere: bool = False) -> None:
        self.soon, self.elsewhere = self.soon or soon, self.elsewhere or elsewhere
        if entries:
            self.entries = True
        self._event.set()

    def wait(self, seconds: float | None) -> None:
        """Until something is told, at most ``seconds``."""
        self._event.wait(seconds)
        self._event.clear()

    def wait_for_entries(self, seconds: float) -> None:
        until = time.monotonic() + seconds
        while not self.entries and (left := until - time.monotonic()) > 0:
            self.wait(left)
