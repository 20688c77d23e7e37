"""What producers wrote down, and what it says beside the simulator's own record.

A record is 32 bytes: the id, epoch seconds right after COMMIT returned, seconds that the caller waited for it.
"""

from __future__ import annotations

import math
import struct
from bisect import bisect_left
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from uuid import UUID

_RECORD = struct.Struct("<16sdd")


def pack(id: UUID, committed: float, seconds: float) -> bytes:
    return _RECORD.pack(id.bytes, committed, seconds)


@dataclass(frozen=True)
class Commits:
    """In order of time. ``seconds[i]``: what the caller waited for the commit at ``times[i]`` that held ``ids[i]``."""

    ids: list[str]
    times: list[float]
    seconds: list[float]

    def between(self, since: float, until: float) -> Commits:
        first, last = bisect_left(self.times, since), bisect_left(self.times, until)
        return Commits(self.ids[first:last], self.times[first:last], self.seconds[first:last])

    def __len__(self) -> int:
        return len(self.ids)


def count_commits(path: Path) -> int:
    """Rows written down so far, also while the producer runs."""
    return path.stat().st_size // _RECORD.size


def read_commits(paths: Iterable[Path]) -> Commits:
    """Those of all producers."""
    read = (_RECORD.iter_unpack(_whole(path)) for path in paths)
    rows = sorted((time, str(UUID(bytes=id)), seconds) for records in read for id, time, seconds in records)
    return Commits([id for _, id, _ in rows], [time for time, _, _ in rows], [seconds for _, _, seconds in rows])


def _whole(path: Path) -> bytes:
    """A producer that was killed may leave a cut record."""
    read = path.read_bytes()
    return read[: len(read) // _RECORD.size * _RECORD.size]


def waits(commits: Commits, arrivals: Mapping[str, float]) -> list[float]:
    """Seconds from commit to the first arrival, of what has arrived. The clock is this machine's in both."""
    return [arrivals[id] - time for id, time in zip(commits.ids, commits.times, strict=True) if id in arrivals]


def quantile(values: Sequence[float], part: float) -> float:
    """The value that ``part`` of them are not above; NaN of none."""
    if not values:
        return math.nan
    return sorted(values)[min(len(values) - 1, math.ceil(part * len(values)) - 1)]
