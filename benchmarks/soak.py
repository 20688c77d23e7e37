"""A constant rate for minutes to hours with mixed faults, to find growth of memory, latency or the database.

The time is divided into cycles of a calm phase and one trouble. The last quarter is compared with the first: memory of
the worker and of the producer, latency from commit to arrival (of rows committed in calm phases), and the size of the
database. The retention of sent rows is short, so that they are purged during the run; the purge runs once a minute, so
the size is meaningful only in runs of several minutes.

The environment variable ``BENCH_SOAK_SECONDS`` sets the length per database. (Its prefix is not ``OUTBOX_``, which is
reserved for settings.)
"""

from __future__ import annotations

import math
import os
import statistics
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import cycle

from benchmarks.figures import Figure, Run
from benchmarks.places import Places, effective
from benchmarks.records import Commits, quantile, waits
from benchmarks.scene import Scene, scene
from benchmarks.watch import table

RATE, ROWS = 200, 2
QUICK_SECONDS, FULL_SECONDS = 96.0, 600.0
SECONDS_VARIABLE = "BENCH_SOAK_SECONDS"
CALM_PART = 0.7
CAUGHT_UP_ROWS = RATE // 10
"""A calm phase begins when a trouble is over and at most this many rows wait."""
SAMPLES = 600
"""The approximate maximum of samples; there are at most five a second."""
RETENTION_PART = 0.1
END_SECONDS = 30.0

TROUBLES: Mapping[str, Mapping[str, object]] = {
    "slow": {"latency_ms": 100, "jitter_ms": 100},
    "503": {"status": 503, "times": 0.2},
    "resets": {"reset": 0.1},
    "lost answers": {"lose_answers": 0.1},
    "429": {"status": 429, "retry_after": 1, "times": 0.1},
    "down": {"down": True},
}
LOSE_ANSWERS = ("resets", "lost answers")
"""The troubles after which a row may have to be sent again."""
CYCLES = 4 * len(TROUBLES)
"""Each quarter has every trouble once, because some of them raise the latency for a while afterwards."""
CALM = dict.fromkeys(name for faults in TROUBLES.values() for name in faults)


def run(run: Run, places: Places, databases: Sequence[str]) -> None:
    seconds = FULL_SECONDS if run.full else QUICK_SECONDS
    if given := os.environ.get(SECONDS_VARIABLE):
        seconds = _seconds(given)
        run.settings["environment"] = {SECONDS_VARIABLE: given}
    kept = max(5.0, seconds * RETENTION_PART)
    run.settings |= {"seconds": seconds, "rate": RATE} | effective(retention_sent=kept)
    sampling = max(0.2, seconds / SAMPLES)
    for kind in databases:
        with scene(places, kind, sample_seconds=sampling, retention_sent=kept) as actors:
            soak = Soak(actors, seconds)
            soak.play()
            soak.report(run)


def _seconds(given: str) -> float:
    try:
        seconds = float(given)
    except ValueError:
        seconds = math.nan
    if not 0 < seconds < math.inf:
        raise RuntimeError(f"{SECONDS_VARIABLE} is {given!r}: give the seconds of a run on one database, such as 600")
    return seconds


@dataclass
class Soak:
    scene: Scene
    seconds: float
    began: float = 0.0
    calm: list[tuple[float, float]] = field(default_factory=list)
    """The begin and end of each calm phase, in epoch seconds."""
    troubled: list[tuple[str, float, float]] = field(default_factory=list)

    def play(self) -> None:
        control = self.scene.beacon.control
        self.scene.go(RATE, ROWS)
        time.sleep(1.0)
        self.began = time.time()
        length = self.seconds / CYCLES
        for number, name in zip(range(CYCLES), cycle(TROUBLES)):
            strike = self.began + (number + CALM_PART) * length
            self.scene.until_depth(CAUGHT_UP_ROWS, length * CALM_PART)
            since = time.time()
            time.sleep(max(0.0, strike - since))
            struck = time.time()
            control.patch(**TROUBLES[name])
            time.sleep(length * (1 - CALM_PART))
            control.patch(**CALM)
            self.calm.append((since, struck))
            self.troubled.append((name, struck, time.time()))
        self.scene.end(END_SECONDS)

    def report(self, run: Run) -> None:
        kind, control = self.scene.kind, self.scene.beacon.control
        commits, arrivals = self.scene.commits(), control.arrivals()
        columns = table(self.scene.watch.samples, commits, arrivals, self.began)
        run.series[kind] = columns
        for name, title in (("worker_rss_mib", "worker's memory"), ("producer_rss_mib", "producer's memory")):
            self._compare(run, name, title, "MiB", self._quarters(columns, name))
        self._compare(run, "size_mib", "size of the database", "MiB", self._quarters(columns, "size_mib"))
        for name, part in (("p50", 0.5), ("p99", 0.99)):
            quarters = [[1000 * quantile(values, part)] for values in self._calm_waits(commits, arrivals)]
            self._compare(run, name, f"commit to received in calm, {name}", "ms", quarters)
        self._facts(run, commits, arrivals)

    def _compare(self, run: Run, key: str, title: str, unit: str, quarters: Sequence[Sequence[float]]) -> None:
        first, last = ([statistics.median(values)] for values in (quarters[0], quarters[-1]))
        key, title = f"soak/{self.scene.kind}/{key}", f"{title}, {self.scene.kind}, last quarter"
        run.add(Figure(key, title, unit, "lower", last, first, base_name="first quarter"))

    def _quarters(self, columns: Mapping[str, Sequence[float]], name: str) -> list[list[float]]:
        quarters: list[list[float]] = [[], [], [], []]
        for t, value in zip(columns["t"], columns[name], strict=True):
            if 0 <= t < self.seconds:
                quarters[int(4 * t / self.seconds)].append(value)
        return quarters

    def _calm_waits(self, commits: Commits, arrivals: Mapping[str, float]) -> list[list[float]]:
        each = CYCLES // 4
        quarters = [self.calm[start : start + each] for start in range(0, CYCLES, each)]
        return [[wait for span in spans for wait in waits(commits.between(*span), arrivals)] for spans in quarters]

    def _facts(self, run: Run, commits: Commits, arrivals: Mapping[str, float]) -> None:
        kind = self.scene.kind
        lost = sum(id not in arrivals for id in commits.ids)
        usage = self.scene.beacon.counts["usage"]
        run.facts.setdefault("phases", []).extend(
            {"series": kind, "name": name, "from": since - self.began, "to": until - self.began}
            for name, since, until in self.troubled
        )
        again = self.scene.beacon.control.duplicates()
        elsewhere = duplicates_elsewhere(again, arrivals, self.troubled)
        run.facts[kind] = {
            "committed": len(commits),
            "lost": lost,
            "duplicates": usage["duplicates"],
            "duplicates_elsewhere": elsewhere,
            "duplicates_of_another_key": sum(len(set(keys)) > 1 for keys in again.values()),
            "statuses": usage["statuses"],
        }
        for name in ("lost", "duplicates_elsewhere"):
            run.facts[name] = run.facts.get(name, 0) + run.facts[kind][name]
        print(f"{kind}: {len(commits):,} rows committed, {lost} lost, {usage['duplicates']} duplicates", flush=True)


def duplicates_elsewhere(
    duplicates: Iterable[str], arrivals: Mapping[str, float], troubled: Sequence[tuple[str, float, float]]
) -> int:
    """How many rows were received again though their first receipt was not in a trouble that loses answers."""
    losing = [(since, until) for name, since, until in troubled if name in LOSE_ANSWERS]
    return sum(not any(since <= arrivals[id] <= until for since, until in losing) for id in duplicates)
