"""File modes, free space on the disk, and whether a path is on a network file system."""

from __future__ import annotations

import os
import shlex
import shutil
import stat
from collections.abc import Iterator, Sequence
from pathlib import Path

from outbox.doctor.finding import Finding, ok, problem, warning
from outbox.settings_values import human_bytes

_MIB = 1024**2
LITTLE_SPACE = 1024 * _MIB
NO_SPACE = 64 * _MIB
_NETWORK = frozenset({"nfs", "nfs4", "cifs", "smb3", "smbfs", "9p", "afs", "ceph", "glusterfs", "fuse.sshfs", "lustre"})


def modes(paths: Sequence[Path]) -> Iterator[Finding]:
    """Whether only the owner may read and write the files (mode 0600). Missing files are left out."""
    found = {path: stat_of(path) for path in paths}
    open_to = {path: stat.S_IMODE(state.st_mode) for path, state in found.items() if state is not None}
    writable = [path for path, mode in open_to.items() if mode & (stat.S_IWGRP | stat.S_IWOTH)]
    readable = [path for path, mode in open_to.items() if mode & (stat.S_IRGRP | stat.S_IROTH)]
    shown = ", ".join(f"{path} ({open_to[path]:04o})" for path in dict.fromkeys([*writable, *readable]))
    mend = shlex.join(["chmod", "600", *map(str, open_to)])
    if writable:
        yield problem(f"other accounts may write {shown}", mend)
    elif readable:
        yield warning(f"other accounts may read {shown}", mend)
    else:
        yield ok(f"for the owner alone: {', '.join(map(str, open_to))}")


def stat_of(path: Path) -> os.stat_result | None:
    """None if the file does not exist: SQLite deletes its -wal and -shm files when the last connection closes."""
    try:
        return path.stat()
    except FileNotFoundError:
        return None


def folder(path: Path) -> Iterator[Finding]:
    """Whether this account may create files in the folder of the database, and other accounts may not replace them.

    Yields nothing where all is well.
    """
    mode = stat.S_IMODE(path.stat().st_mode)
    quoted = shlex.quote(str(path))
    if not os.access(path, os.W_OK | os.X_OK):
        yield problem(f"{path}: this account may not write the folder, and SQLite keeps its log there", _own(quoted))
    elif mode & stat.S_IWOTH and not mode & stat.S_ISVTX:
        yield problem(f"{path} has mode {mode:04o}: any account may replace the database", f"chmod o-w {quoted}")


def _own(quoted: str) -> str:
    return f"chown {os.geteuid()} {quoted}"


def space(path: Path) -> Iterator[Finding]:
    """The free space of the file system that holds the folder ``path``."""
    yield judge_space(shutil.disk_usage(path).free, path)


def judge_space(free: int, path: Path) -> Finding:
    left = f"{human_bytes(free // _MIB * _MIB)} left on the disk of {path}"
    mend = f"make room on the disk of {path}; meanwhile shorten OUTBOX_RETENTION_SENT"
    if free < NO_SPACE:
        return problem(left, mend)
    return warning(left, mend) if free < LITTLE_SPACE else ok(left)


def filesystem(path: Path, mounts: str) -> str:
    """The type of the file system that holds the absolute ``path``; ``mounts``: the text of /proc/self/mounts.

    An empty string if no mount point is a parent of ``path``.
    """
    best, kind = "", ""
    for line in mounts.splitlines():
        _, place, this_kind, *_ = line.split(" ")
        place = place.replace("\\040", " ")
        if path.is_relative_to(place) and len(place) >= len(best):
            best, kind = place, this_kind
    return kind


def is_network(kind: str) -> bool:
    return kind in _NETWORK
