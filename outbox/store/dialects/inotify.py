"""Linux reports writes to a file, which saves a poll every millisecond: inotify(7)."""

from __future__ import annotations

import ctypes
import os
import select
from collections.abc import Callable, Iterator
from contextlib import contextmanager

_IN_MODIFY = 0x2
_EVENTS_BYTES = 4096
"""Bytes of one read. An event has 16, and the kernel merges equal ones that were not read yet."""

Written = Callable[[float], bool]
"""Wait for a write, at most the given seconds. Returns whether there was one since the last call. A hint only: the
kernel does not report writes of another host."""


@contextmanager
def writes_to(path: str) -> Iterator[Written | None]:
    """Watch the file at ``path``. None: the system does not report writes, or not for this file (no such file, or this
    user's limit of inotify instances is reached)."""
    try:
        readable = select.poll()
        events = _watching(path)
    except (OSError, AttributeError):  # AttributeError: a libc without inotify, or eventlet, which removes poll
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
    """A file descriptor for the file's events. Raises ``OSError``, ``AttributeError`` without inotify."""
    libc = ctypes.CDLL(None, use_errno=True)
    events: int = libc.inotify_init1(os.O_CLOEXEC | os.O_NONBLOCK)
    if events < 0:
        raise OSError(ctypes.get_errno(), "inotify_init1")
    if libc.inotify_add_watch(events, os.fsencode(path), _IN_MODIFY) < 0:
        os.close(events)
        raise OSError(ctypes.get_errno(), "inotify_add_watch")
    return events
