"""The lines of a stream as they arrive: each is bounded, and a signal ends the wait for the next one.

The first SIGINT or SIGTERM is only recorded, so that the command can finish a commit and say how far it came. A second
one has its usual effect.
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
"""Upper bound of a line, and of a document that spans several lines."""
_READ_BYTES = 64 * 1024
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"

Numbered = tuple[int, bytes]
"""A line's number, from 1, and its bytes without the line feed."""


class Stopped(Exception):
    """A signal was recorded."""


class TooLong(Exception):
    """Line ``number`` has more than MAX_BYTES."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


class RecordedSignal:
    """The recorded signal. ``signal``: its number, or None."""

    def __init__(self, wakes: socket.socket) -> None:
        self.signal: int | None = None
        self._wakes = wakes
        """Readable once a signal has arrived, even if it arrived just before the wait."""

    def look(self) -> None:
        """Raise ``Stopped`` if a signal has arrived."""
        if self.signal is not None:
            raise Stopped

    def wait(self, readable: int | None) -> None:
        """Block until the descriptor is readable; None: do not block. Raises ``Stopped``."""
        self.look()
        if readable is not None:
            select.select([readable, self._wakes.fileno()], [], [])
            self.look()


@contextmanager
def recording_first_signal() -> Iterator[RecordedSignal]:
    """Record the first SIGINT or SIGTERM of the block. An ignored signal (a shell's background job) stays ignored."""
    ours, pythons = socket.socketpair()
    recorded, before = RecordedSignal(ours), dict[int, Any]()

    def restore() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    def note(number: int, _frame: object) -> None:
        recorded.signal = number
        restore()

    with ours, pythons:
        if threading.current_thread() is not threading.main_thread():  # where Python takes no handlers
            yield recorded
            return
        pythons.setblocking(False)
        wakeup = signal.set_wakeup_fd(pythons.fileno(), warn_on_full_buffer=False)
        try:
            for number in (signal.SIGINT, signal.SIGTERM):
                if signal.getsignal(number) not in (signal.SIG_IGN, None):
                    before[number] = signal.signal(number, note)
            yield recorded
        finally:
            restore()
            signal.set_wakeup_fd(wakeup)


def lines_of(source: BinaryIO, recorded: RecordedSignal) -> Iterator[Numbered]:
    """The lines that are not blank. Raises ``TooLong`` and, while it waits, ``Stopped``."""
    for number, line in _all_lines(source, recorded):
        text = line.removeprefix(_BYTE_ORDER_MARK) if number == 1 else line
        if text and not text.isspace():
            yield number, text


def _all_lines(source: BinaryIO, recorded: RecordedSignal) -> Iterator[Numbered]:
    number, begun, size = 1, list[bytes](), 0
    for part in _parts(source, recorded):
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


def _parts(source: BinaryIO, recorded: RecordedSignal) -> Iterator[bytes]:
    descriptor = _descriptor(source)
    read: Callable[[int], bytes] = source.read1  # type: ignore[attr-defined]  # returns what has arrived, without waiting for more
    recorded.wait(descriptor)
    while part := read(_READ_BYTES):
        yield part
        recorded.wait(descriptor)


def _descriptor(source: BinaryIO) -> int | None:
    """The file descriptor to wait for; None: a source in memory, which never blocks."""
    try:
        return source.fileno()
    except UnsupportedOperation:
        return None
