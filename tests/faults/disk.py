"""A disk that loses at a power cut what was not synced, fed from the system calls that strace recorded.

    calls = recorded(log)              the writes and syncs of a process, in order, and what it printed between them
    disk = Disk(folder)                the files of ``folder`` as they are now, all of them on the platter
    for call in calls: disk.apply(call)
    disk.cut(elsewhere, survives)      the files as they may be found after a power cut now

A write is on the platter once its file was synced after it. Until then it may be there or not, whole or in part,
whatever was written before or after it (``survives`` decides). Files that are only mapped (``-shm``) are lost:
SQLite rebuilds them.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

SECTOR = 512
RECORD = ["-y", "-xx", "-s", "70000", "-e", "trace=pwrite64,fdatasync,fsync,ftruncate,unlink,write"]
"""Options of strace whose log ``recorded`` reads."""

_CALL = re.compile(r"\d+ +(?P<name>\w+)\((?P<arguments>.*)\) += (?P<result>-?\d+)")
_FILE = re.compile(r"\d+<(?P<path>[^>]*)>")
_UNLINKED = re.compile(r'"(?P<path>[^"]*)"')
_STRING = re.compile(r'"(?P<hex>(?:\\x[0-9a-f]{2})*)"(?P<cut>\.\.\.)?')
_UNFINISHED = re.compile(r"(?P<pid>\d+) +(?P<head>.*) <unfinished \.\.\.>")
_RESUMED = re.compile(r"(?P<pid>\d+) +<\.\.\. \w+ resumed>(?P<tail>.*)")


@dataclass(frozen=True, slots=True)
class Call:
    """A write to the file, a sync of it, its end, or (``path`` None) words to whoever listens."""

    path: Path | None
    kind: str
    """"write", "sync", "truncate", "unlink" or "say"."""
    data: bytes = b""
    offset: int = 0


def recorded(log: str, said: str) -> Iterator[Call]:
    """The calls of a log; what was written to a path that contains ``said`` is words. Failed calls did nothing."""
    for line in _whole_lines(log):
        found = _CALL.match(line)
        if found is None or int(found["result"]) < 0:
            continue
        call = _call(found["name"], found["arguments"], int(found["result"]), said)
        if call is not None:
            yield call


def _whole_lines(log: str) -> Iterator[str]:
    """strace splits a call in two when another thread's comes in between; it counts from its end."""
    heads: dict[str, str] = {}
    for line in log.splitlines():
        if begun := _UNFINISHED.match(line):
            heads[begun["pid"]] = begun["head"]
        elif ended := _RESUMED.match(line):
            yield f"{ended['pid']} {heads.pop(ended['pid'])}{ended['tail']}"
        else:
            yield line


def _call(name: str, arguments: str, result: int, said: str) -> Call | None:
    if name == "unlink":
        return Call(Path(_text(arguments)), "unlink")
    file = _FILE.match(arguments)
    if file is None:
        return None
    path = Path(_unescaped(file["path"]))
    if name == "write":
        return Call(None, "say", _data(arguments)[:result]) if said in str(path) else None
    if name in ("fdatasync", "fsync"):
        return Call(path, "sync")
    last = int(arguments.rpartition(",")[2])
    if name == "ftruncate":
        return Call(path, "truncate", offset=last)
    return Call(path, "write", _data(arguments)[:result], last)


def _data(arguments: str) -> bytes:
    found = _STRING.search(arguments)
    assert found is not None, arguments[:200]
    assert not found["cut"], "strace cut the data: raise -s"
    return bytes.fromhex(found["hex"].replace("\\x", ""))


def _text(arguments: str) -> str:
    return _data(arguments).decode()


def _unescaped(path: str) -> str:
    """With -xx a path is in hexadecimal too."""
    return bytes.fromhex(path.replace("\\x", "")).decode() if path.startswith("\\x") else path


Survives = Callable[[Call], bytes]
"""What of an unsynced write is found after the cut: its data, a part of them, or nothing."""


class Disk:
    """The files of a folder, and what of them is on the platter."""

    def __init__(self, folder: Path) -> None:
        self._platter = {path: path.read_bytes() for path in folder.iterdir() if path.is_file()}
        self._folder = folder
        self._unsynced: dict[Path, list[Call]] = {}
        self.syncs = 0

    def apply(self, call: Call) -> None:
        if call.path is None or call.path.parent != self._folder:
            return
        if call.kind == "unlink":
            self._platter.pop(call.path, None)
            self._unsynced.pop(call.path, None)
        elif call.kind == "sync":
            self.syncs += 1
            for each in self._unsynced.pop(call.path, ()):
                self._platter[call.path] = _written(self._platter.get(call.path, b""), each, each.data)
        else:
            self._unsynced.setdefault(call.path, []).append(call)

    def cut(self, into: Path, survives: Survives) -> None:
        """Write the files as they are found after a power cut."""
        for path in self._platter.keys() | self._unsynced.keys():
            content = self._platter.get(path, b"")
            for call in self._unsynced.get(path, ()):
                content = _written(content, call, survives(call))
            if not path.name.endswith("-shm"):
                (into / path.name).write_bytes(content)


def _written(content: bytes, call: Call, data: bytes) -> bytes:
    if call.kind == "truncate":
        return content[: call.offset] if data is call.data else content
    if not data:
        return content
    padded = content.ljust(call.offset, b"\0")
    return padded[: call.offset] + data + padded[call.offset + len(data) :]
