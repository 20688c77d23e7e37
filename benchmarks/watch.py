"""Looking at a running outbox from outside, a few times a second, and a table of what was seen.

What the simulator counted, what the outbox says of its lane, and how much memory the processes hold is sampled while
it happens. What the producers wrote down is laid beside it afterwards: nothing is asked of them meanwhile.
"""

from __future__ import annotations

import os
import time
from bisect import bisect_right
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from threading import Event, Thread

from benchmarks.places import Beacon
from benchmarks.records import Commits, quantile
from outbox import Outbox
from outbox.core.lane import Lane

SAMPLE_SECONDS = 0.2
WINDOW_SECONDS = 1.0
"""Rates and quantiles of a sample are those of so long before it."""
_PAGE_MIB = os.sysconf("SC_PAGE_SIZE") / 2**20


@dataclass(frozen=True)
class Sample:
    """``at``: epoch seconds. ``requests``, ``limited`` (429) and ``received`` (rows, distinct) are counts so far."""

    at: float
    requests: int
    limited: int
    received: int
    senders: int
    paused: bool
    rss_mib: Mapping[str, float]
    """Of each process, by its name."""
    size_mib: float


@dataclass
class Watch:
    """A thread that samples every ``seconds`` until ``close``. ``pids``: of processes, by name."""

    beacon: Beacon
    box: Outbox
    pids: dict[str, int]
    size_mib: Callable[[], float]
    """Of the database."""
    seconds: float = SAMPLE_SECONDS
    samples: list[Sample] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._stop = Event()
        self._thread = Thread(target=self._run, daemon=True)

    def __enter__(self) -> Watch:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._stop.wait(self.seconds):
            self.samples.append(self._sample())

    def _sample(self) -> Sample:
        usage = self.beacon.counts["usage"]
        lane = self.box.store.lane_status(Lane.USAGE)
        return Sample(
            at=time.time(),
            requests=usage["requests"],
            limited=usage["statuses"].get("429", 0),
            received=usage["unique"],
            senders=lane.senders,
            paused=lane.state == "paused",
            rss_mib={name: rss_mib(pid) for name, pid in self.pids.items()},
            size_mib=self.size_mib(),
        )


def rss_mib(pid: int) -> float:
    """Resident memory of a process; 0 when it has ended."""
    try:
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * _PAGE_MIB
    except (FileNotFoundError, ProcessLookupError):
        return 0.0


def table(
    samples: Sequence[Sample], commits: Commits, arrivals: Mapping[str, float], began: float
) -> dict[str, list[float]]:
    """A column of each quantity, a line of each sample.

    t: seconds since ``began``; arrival, goodput: rows/s committed, and received for the first time; depth: rows
    committed and not received; oldest_age: seconds that the oldest of them has waited; senders: batches under a lease;
    paused: 1 while the lane is; requests: answered a second; limited_share: of them, those answered 429;
    producer_p50_ms, producer_p99_ms: what callers waited for a commit; NAME_rss_mib; size_mib.
    """
    columns: dict[str, list[float]] = {}
    arrived = sorted(arrivals[id] for id in commits.ids if id in arrivals)
    ages = _Oldest(commits, arrivals)
    for number, sample in enumerate(samples):
        before = _before(samples, number)
        span = sample.at - before.at or 1.0
        recent = commits.between(sample.at - WINDOW_SECONDS, sample.at)
        answered = sample.requests - before.requests
        line = {
            "t": sample.at - began,
            "arrival": len(recent) / WINDOW_SECONDS,
            "goodput": (sample.received - before.received) / span,
            "depth": float(bisect_right(commits.times, sample.at) - bisect_right(arrived, sample.at)),
            "oldest_age": ages.at(sample.at),
            "senders": float(sample.senders),
            "paused": float(sample.paused),
            "requests": answered / span,
            "limited_share": (sample.limited - before.limited) / answered if answered else 0.0,
            "producer_p50_ms": _milliseconds(recent.seconds, 0.5),
            "producer_p99_ms": _milliseconds(recent.seconds, 0.99),
            **{f"{name}_rss_mib": mib for name, mib in sample.rss_mib.items()},
            "size_mib": sample.size_mib,
        }
        for name, value in line.items():
            columns.setdefault(name, []).append(round(value, 4))
    return columns


def _before(samples: Sequence[Sample], number: int) -> Sample:
    """The sample that the window of this one begins with."""
    first = number
    while first > 0 and samples[number].at - samples[first].at < WINDOW_SECONDS:
        first -= 1
    return samples[first]


def _milliseconds(seconds: Sequence[float], part: float) -> float:
    return 1000 * quantile(seconds, part) if seconds else 0.0


class _Oldest:
    """How long the oldest waiting row has waited; asked for moments in order."""

    def __init__(self, commits: Commits, arrivals: Mapping[str, float]) -> None:
        self._times = commits.times
        self._arrived = [arrivals.get(id, float("inf")) for id in commits.ids]
        self._next = 0

    def at(self, moment: float) -> float:
        while self._next < len(self._times) and self._arrived[self._next] <= moment:
            self._next += 1
        waiting = self._next < len(self._times) and self._times[self._next] <= moment
        return moment - self._times[self._next] if waiting else 0.0
