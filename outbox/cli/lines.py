"""Lines of a stream as they come: none is read beyond a bound, and a signal ends the wait for the next one.

The first SIGINT or SIGTERM is noted: whoever reads finishes what cannot be left half done, and says how far it came.
The second one does what it would have done without us.
"""

from __future__ import annotations

import select
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from io import UnsupportedOperation
from typing import Any, BinaryIO

MAX_BYTES = 64 * 1024 * 1024
"""Of a line, and of a document over several lines."""
_READ_BYTES = 64 * 1024
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"

Numbered = tuple[int, bytes]
"""A line's number, from 1, and its bytes without the line feed."""


class Stopped(Exception):
    """By the signal that was noted."""


class TooLong(Exception):
    """The line of this number has more than MAX_BYTES."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


class Noted:
    """``signal``: the one that came, or None."""

    def __init__(self, wakes: socket.socket) -> None:
        self.signal: int | None = None
        self._wakes = wakes
        """Readable once a signal came, also one that came just before the wait."""

    def look(self) -> None:
        """Raise ``Stopped`` when a signal came."""
        if self.signal is not None:
            raise Stopped

    def wait(self, readable: int | None) -> None:
        """Until the descriptor has something to read, if there is one. Raises ``Stopped``."""
        self.look()
        if readable is not None:
            select.select([readable, self._wakes.fileno()], [], [])
            self.look()


@contextmanager
def signals_noted() -> Iterator[Noted]:
    """The first SIGINT or SIGTERM in the block; what is ignored, as in a shell's background job, stays ignored."""
    ours, pythons = socket.socketpair()
    noted, before = Noted(ours), dict[int, Any]()

    def restore() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    def note(number: int, _frame: object) -> None:
        noted.signal = number
        restore()

    with ours, pythons:
        if threading.current_thread() is not threading.main_thread():  # where Python takes no handlers
            yield noted
            return
        pythons.setblocking(False)
        wakeup = signal.set_wakeup_fd(pythons.fileno(), warn_on_full_buffer=False)
        try:
            for number in (signal.SIGINT, signal.SIGTERM):
                if signal.getsignal(number) not in (signal.SIG_IGN, None):
                    before[number] = signal.signal(number, note)
            yield noted
        finally:
            restore()
            signal.set_wakeup_fd(wakeup)


def lines_of(source: BinaryIO, noted: Noted) -> Iterator[Numbered]:
    """The lines that hold something. Raises ``TooLong`` and, while it waits, ``Stopped``."""
    for number, line in _all_lines(source, noted):
        text = line.removeprefix(_BYTE_ORDER_MARK) if number == 1 else line
        if text and not text.isspace():
            yield number, text


def _all_lines(source: BinaryIO, noted: Noted) -> Iterator[Numbered]:
    number, begun, size = 1, list[bytes](), 0
    for part in _parts(source, noted):
        end, *others = part.split(b"\n")
        begun.append(end)
        size += len(end)
        if size > MAX_BYTES:
            raise TooLong(number)
        if others:
            *whole, last = others
            yield number, b"".join(begun)
            yield from enumerate(whole, start=number + 1)
            number += len(others)
            begun, size = [last], len(last)
    yield number, b"".join(begun)


def _parts(source: BinaryIO, noted: Noted) -> Iterator[bytes]:
    descriptor = _descriptor(source)
    read: Callable[[int], bytes] = source.read1  # type: ignore[attr-defined]  # what is there, and no wait for more
    noted.wait(descriptor)
    while part := read(_READ_BYTES):
        yield part
        noted.wait(descriptor)


def _descriptor(source: BinaryIO) -> int | None:
    """To wait at; None: there is nothing to wait for."""
    try:
        return source.fileno()
    except UnsupportedOperation:
        return None
