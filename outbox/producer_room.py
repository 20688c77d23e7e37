"""Waiting for room in a lane with a bound."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

from outbox.errors import OutboxFull

T = TypeVar("T")

_POLL_SECONDS = 0.05


def with_room(timeout: float, attempt: Callable[[], T]) -> T:
    """Retry ``attempt`` while it raises ``OutboxFull``, for ``timeout`` seconds."""
    deadline = time.monotonic() + timeout
    while True:
        try:
            return attempt()
        except OutboxFull:
            left = deadline - time.monotonic()
            if left <= 0:
                raise
        time.sleep(min(_POLL_SECONDS, left))
