"""The producers' records of their commits, and their comparison with the simulator's record of arrivals.

A record is 32 bytes: the id, the epoch seconds right after COMMIT returned, the latency of the commit in seconds.
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
    """Rows in order of time: ``ids[i]`` was committed at ``times[i]`` with a latency of ``seconds[i]``."""

    ids: list[str]
    times: list[float]
    seconds: list[float]

    def between(self, since: float, until: float) -> Commits:
        first, last = bisect_left(self.times, since), bisect_left(self.times, until)
        return Commits(self.ids[first:last], self.times[first:last], self.seconds[first:last])

    def __len__(self) -> int:
        return len(self.ids)


def count_commits(path: Path) -> int:
    """The number of rows recorded so far; it may be called while the producer runs."""
    return path.stat().st_size // _RECORD.size


def read_commits(paths: Iterable[Path]) -> Commits:
    """The commits of all producers, merged."""
    read = (_RECORD.iter_unpack(_whole(path)) for path in paths)
    rows = sorted((time, str(UUID(bytes=id)), seconds) for records in read for id, time, seconds in records)
    return Commits([id for _, id, _ in rows], [time for time, _, _ in rows], [seconds for _, _, seconds in rows])


def _whole(path: Path) -> bytes:
    """The complete records of a file: a producer that was killed may leave a partial one at the end."""
    read = path.read_bytes()
    return read[: len(read) // _RECORD.size * _RECORD.size]


def waits(commits: Commits, arrivals: Mapping[str, float]) -> list[float]:
    """Seconds from commit to the first arrival, of rows that have arrived. Both times are by this machine's clock."""
    return [arrivals[id] - time for id, time in zip(commits.ids, commits.times, strict=True) if id in arrivals]


def quantile(values: Sequence[float], part: float) -> float:
    """The value that the share ``part`` of ``values`` does not exceed; NaN if there are no values."""
    if not values:
        return math.nan
    return sorted(values)[min(len(values) - 1, math.ceil(part * len(values)) - 1)]
