"""Samples of a running outbox from outside, a few times a second, and the time series made from them.

The simulator's counts, the status of the usage lane and the memory of the processes are sampled during the run. The
producers' records are combined with the samples afterwards, so that the producers are not disturbed.
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
"""The rates and quantiles of a sample are those of this window before it."""
_PAGE_MIB = os.sysconf("SC_PAGE_SIZE") / 2**20


@dataclass(frozen=True)
class Sample:
    """``at``: epoch seconds. ``requests``, ``limited`` (status 429) and ``received`` (distinct rows) are totals."""

    at: float
    requests: int
    limited: int
    received: int
    senders: int
    paused: bool
    rss_mib: Mapping[str, float]
    """The resident memory of each process, by its name."""
    size_mib: float


@dataclass
class Watch:
    """A thread that samples every ``seconds`` until ``close``, which raises what a sample raised. ``pids``: the process
    ids, by name."""

    beacon: Beacon
    box: Outbox
    pids: dict[str, int]
    size_mib: Callable[[], float]
    """Returns the size of the database."""
    seconds: float = SAMPLE_SECONDS
    samples: list[Sample] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._stop = Event()
        self._error: Exception | None = None
        self._thread = Thread(target=self._run, daemon=True)

    def __enter__(self) -> Watch:
        self._thread.start()
        return self

    def __exit__(self, failed: type[BaseException] | None, *_: object) -> None:
        try:
            self.close()
        except Exception:
            if failed is None:  # otherwise the error of the block is the first one
                raise

    def close(self) -> None:
        self._stop.set()
        self._thread.join()
        error, self._error = self._error, None
        if error is not None:
            raise error

    def _run(self) -> None:
        try:
            while not self._stop.wait(self.seconds):
                self.samples.append(self._sample())
        except Exception as error:  # noqa: BLE001 - raised by close(): a series that ends early would look complete
            self._error = error

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
    """The resident memory of a process in MiB; 0 if it has ended."""
    try:
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * _PAGE_MIB
    except (FileNotFoundError, ProcessLookupError):
        return 0.0


def table(
    samples: Sequence[Sample], commits: Commits, arrivals: Mapping[str, float], began: float
) -> dict[str, list[float]]:
    """The time series: a column for each quantity, with a value per sample.

    t: seconds since ``began``; arrival: rows/s committed; goodput: rows/s received for the first time; depth: rows
    committed but not received; oldest_age: seconds that the oldest of them has waited; senders: batches under a lease;
    paused: 1 while the lane is paused; requests: requests answered per second; limited_share: the share of them
    answered 429; producer_p50_ms, producer_p99_ms: commit latency, NaN where nothing was committed, since a producer
    that is stalled has none yet; NAME_rss_mib: memory of a process; size_mib: the size of the database.
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
    """The sample at the start of this sample's window."""
    first = number
    while first > 0 and samples[number].at - samples[first].at < WINDOW_SECONDS:
        first -= 1
    return samples[first]


def _milliseconds(seconds: Sequence[float], part: float) -> float:
    return 1000 * quantile(seconds, part)


class _Oldest:
    """The age of the oldest row that waits. ``at`` must be called with increasing moments."""

    def __init__(self, commits: Commits, arrivals: Mapping[str, float]) -> None:
        self._times = commits.times
        self._arrived = [arrivals.get(id, float("inf")) for id in commits.ids]
        self._next = 0

    def at(self, moment: float) -> float:
        while self._next < len(self._times) and self._arrived[self._next] <= moment:
            self._next += 1
        waiting = self._next < len(self._times) and self._times[self._next] <= moment
        return moment - self._times[self._next] if waiting else 0.0
