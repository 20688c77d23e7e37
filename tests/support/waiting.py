"""Waiting for a condition with a deadline, which tests do instead of sleeping."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")

_FIRST_PAUSE = 0.002
_LONGEST_PAUSE = 0.15


def wait_until(predicate: Callable[[], T], timeout: float = 30, message: str | Callable[[], str] = "") -> T:
    """Poll ``predicate`` for at most ``timeout`` seconds and return its first truthy value.

    Raises AssertionError at the deadline, with ``message`` or with its return value if it is callable.
    An exception of ``predicate`` is not caught: a condition that can fail says so itself.
    """
    deadline = time.monotonic() + timeout
    pause = _FIRST_PAUSE
    never = threading.Event()
    while True:
        value = predicate()
        if value:
            return value
        if time.monotonic() >= deadline:
            told = message() if callable(message) else message
            raise AssertionError(f"{told or 'the condition did not hold'} (waited {timeout:g} s)")
        never.wait(pause)
        pause = min(pause * 1.5, _LONGEST_PAUSE)
