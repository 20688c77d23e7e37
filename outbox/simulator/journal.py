"""One line of JSON per accepted usage request, written before the answer.

A line is a single write(2) on an O_APPEND descriptor: it outlives a kill of the simulator, and another
process can read the file at any moment.
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
    """Writes on in ``path``; what the file holds goes to ``remember`` first, and unless all of it is a journal's, the
    file stays as it is.

    Raises ``ConfigError`` for a file that is no journal, or cannot be read and written; also later, for a full disk.
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
        """A line, whole or not at all."""
        line = msgspec.json.encode(JournalLine(t, lane, key, list(ids))) + b"\n"
        end = os.fstat(self._fd).st_size
        try:
            while line:
                line = line[os.write(self._fd, line) :]
        except OSError as error:  # as it is, asyncio would take it for the connection's, and say nothing
            os.ftruncate(self._fd, end)  # the next line would be glued to a half of this one
            raise _not_kept(self._path, error) from error

    def close(self) -> None:
        os.close(self._fd)


def read_journal(path: Path) -> Iterator[JournalLine]:
    """The lines of a journal. A last line without its newline was cut by a kill and is left out.

    Raises ``ConfigError`` for any other line that is none.
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
    # The next line would be glued to it, and lost with it.
    if path.exists():
        written = path.read_bytes()
        os.truncate(path, written.rfind(b"\n") + 1)
