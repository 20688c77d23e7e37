"""One line of JSON per accepted usage request, written before the answer.

A line is a single write(2) on an O_APPEND descriptor: it survives a kill of the simulator, and other processes can read
the file at any time.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import msgspec

from outbox.core.lane import Lane
from outbox.errors import ConfigError


class JournalLine(msgspec.Struct, frozen=True):
    """``{"t": epoch seconds, "lane": "usage", "key": Idempotency-Key, "ids": [...]}``"""

    t: float
    lane: Lane
    key: str
    ids: list[str]


class Journal:
    """Appends to ``path``. ``remember`` gets the lines already in the file first; a file that is not a journal stays
    unchanged.

    Raises ``ConfigError`` for a file that is not a journal or cannot be read and written; ``write`` too, for a full
    disk.
    """

    def __init__(self, path: Path, remember: Callable[[Iterator[JournalLine]], None]) -> None:
        self._path = path
        try:
            remember(read_journal(path))
            _drop_cut_line(path)
            self._fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise _not_kept(path, error) from error

    def write(self, t: float, lane: Lane, key: str, ids: Sequence[str]) -> None:
        """Append one line, complete or not at all. ``t``: epoch seconds."""
        line = msgspec.json.encode(JournalLine(t, lane, key, list(ids))) + b"\n"
        end = os.fstat(self._fd).st_size
        try:
            while line:
                line = line[os.write(self._fd, line) :]
        except OSError as error:  # asyncio would take an OSError for the connection's, and hide it
            os.ftruncate(self._fd, end)  # a partial line would corrupt the next one
            raise _not_kept(self._path, error) from error

    def close(self) -> None:
        os.close(self._fd)


def read_journal(path: Path) -> Iterator[JournalLine]:
    """The lines of a journal. A last line without a newline was cut off by a kill and is left out.

    Raises ``ConfigError`` for any other line that is not a journal's.
    """
    if not path.exists():
        return
    with path.open("rb") as lines:
        for number, line in enumerate(lines, start=1):
            if line.endswith(b"\n"):
                yield _read(line, path, number)


_decoder = msgspec.json.Decoder(JournalLine)


def _read(line: bytes, path: Path, number: int) -> JournalLine:
    try:
        return _decoder.decode(line)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ConfigError(
            f"{path}, line {number}, is not of a simulator's journal: {error}; give another file, or take the line out"
        ) from error


def _not_kept(path: Path, error: OSError) -> ConfigError:
    return ConfigError(f"the simulator cannot keep its journal in {path}: {error.strerror}; give another file")


def _drop_cut_line(path: Path) -> None:
    # The next line would be appended to the cut one, and be unreadable too.
    if path.exists():
        written = path.read_bytes()
        os.truncate(path, written.rfind(b"\n") + 1)
