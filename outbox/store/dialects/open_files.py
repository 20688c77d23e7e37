"""Which files a process has open: SQLite goes on with a file after it was removed or replaced."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

_DELETED = " (deleted)"

FileId = tuple[int, int]
"""``st_dev`` and ``st_ino``: no other file has them while a process has this one open."""


def id_of(path: str) -> FileId | None:
    """The file at the path; None: there is none. Raises ``OSError`` where the system cannot say."""
    try:
        state = os.stat(path)
    except (FileNotFoundError, NotADirectoryError):
        return None
    return state.st_dev, state.st_ino


class Holder(NamedTuple):
    """A process, and the former names of the removed files that it has open."""

    pid: int
    program: str
    names: tuple[str, ...]

    def __str__(self) -> str:
        return f"process {self.pid} ({self.program})"


def holders(path: str, proc: Path = Path("/proc")) -> Iterator[Holder]:
    """Processes that have open what was the database file at ``path``, or its log, before it was removed. Linux only,
    and only processes that this account may inspect."""
    real = os.path.realpath(path)
    gone = {f"{real}{suffix}{_DELETED}" for suffix in ("", "-wal", "-shm")}
    for folder in sorted(proc.glob("[0-9]*")):
        opened = set()
        with suppress(OSError):  # the process has ended, or belongs to another account
            for descriptor in os.listdir(folder / "fd"):
                with suppress(OSError):  # closed meanwhile
                    opened.add(os.readlink(folder / "fd" / descriptor))
            if names := sorted(os.path.basename(name.removesuffix(_DELETED)) for name in opened & gone):
                yield Holder(int(folder.name), (folder / "comm").read_text().strip(), tuple(names))
