"""One line of JSON per accepted usage request, written before the answer.

A line is a single write(2) on an O_APPEND descriptor: it outlives a kill of the simulator, and another
process can read the file at any moment.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import msgspec

from outbox.errors import ConfigError


class JournalLine(msgspec.Struct, frozen=True):
    """``{"t": epoch seconds, "lane": "usage", "key": Idempotency-Key, "ids": [...]}``"""

    t: float
    lane: str
    key: str
    ids: list[str]


class Journal:
    """Raises ``ConfigError`` for a file that cannot be read and written."""

    def __init__(self, path: Path) -> None:
        try:
            _drop_cut_line(path)
            self._fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise ConfigError(
                f"the simulator cannot keep its journal in {path}: {error.strerror}; give another file"
            ) from error

    def write(self, t: float, lane: str, key: str, ids: Sequence[str]) -> None:
        line = msgspec.json.encode(JournalLine(t, lane, key, list(ids))) + b"\n"
        while line:
            line = line[os.write(self._fd, line) :]

    def close(self) -> None:
        os.close(self._fd)


def read_journal(path: Path) -> Iterator[JournalLine]:
    """The lines of a journal. A last line without its newline was cut by a kill and is left out."""
    decoder = msgspec.json.Decoder(JournalLine)
    if not path.exists():
        return
    with path.open("rb") as lines:
        for line in lines:
            if line.endswith(b"\n"):
                yield decoder.decode(line)


def _drop_cut_line(path: Path) -> None:
    # The next line would be glued to it, and lost with it.
    if path.exists():
        written = path.read_bytes()
        os.truncate(path, written.rfind(b"\n") + 1)
