"""Linux tells of writes to a file, so that nobody has to ask each millisecond whether there were any: inotify(7)."""

from __future__ import annotations

import ctypes
import os
import select
from collections.abc import Callable, Iterator
from contextlib import contextmanager

_IN_MODIFY = 0x2
_EVENTS_BYTES = 4096
"""Read at once, of 16 bytes each; those that nobody has read are one where they are equal."""

Written = Callable[[float], bool]
"""Wait until somebody writes, so many seconds at most; whether somebody did since the last time. A write that the
kernel does not see (of another host) is not told of, so it is a hint only."""


@contextmanager
def writes_to(path: str) -> Iterator[Written | None]:
    """None: this system does not tell, or not of this file (no such file, no more inotify instances for this user)."""
    try:
        readable = select.poll()
        events = _watching(path)
    except (OSError, AttributeError):  # AttributeError: a libc without it, or eventlet, which takes poll away
        yield None
        return
    try:
        readable.register(events, select.POLLIN)

        def written(seconds: float) -> bool:
            if not readable.poll(1000 * seconds):
                return False
            os.read(events, _EVENTS_BYTES)
            return True

        yield written
    finally:
        os.close(events)


def _watching(path: str) -> int:
    """A descriptor of events. Raises OSError."""
    libc = ctypes.CDLL(None, use_errno=True)
    events: int = libc.inotify_init1(os.O_CLOEXEC | os.O_NONBLOCK)
    if events < 0:
        raise OSError(ctypes.get_errno(), "inotify_init1")
    if libc.inotify_add_watch(events, os.fsencode(path), _IN_MODIFY) < 0:
        os.close(events)
        raise OSError(ctypes.get_errno(), "inotify_add_watch")
    return events
