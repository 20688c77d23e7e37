"""The bars of bars.toml: the bounds of a run's ratios, each with its reason.

    ["steady/{database}"]          the key of a figure; {database}: a bar for each database; * and [0-9]: all that match
    at_least = 0.4                 or at_most; a ratio to the base of the same run, never seconds
    reason = "..."
    profile = "full"               only where the quick profile does not measure it

    ["backpressure/facts.lost"]    a count of the run's facts, by its dotted path
    at_most = 0

A bar applies to runs of its benchmark, and of its database if the key names one. A bar whose figure such a run lacks
counts as missed.
"""

from __future__ import annotations

import math
import re
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from benchmarks.figures import Result, Run
from benchmarks.keys import each_database, matches
from benchmarks.numbers import number
from benchmarks.places import DATABASES

BARS = Path(__file__).with_name("bars.toml")


@dataclass(frozen=True)
class Bar:
    """``at_least`` and ``at_most`` may both be given. ``profile``: "full", or "" for both."""

    key: str
    reason: str
    at_least: float = -math.inf
    at_most: float = math.inf
    profile: str = ""

    def __post_init__(self) -> None:
        if not self.reason.strip():
            raise ValueError(f"{self.key} in bars.toml needs a reason")
        if self.at_least == -math.inf and self.at_most == math.inf:
            raise ValueError(f"{self.key} in bars.toml needs at_least or at_most")
        if self.profile not in ("", "full"):
            raise ValueError(f'{self.key} in bars.toml: profile can only be "full"')

    @property
    def benchmark(self) -> str:
        return self.key.partition("/")[0]

    @property
    def database(self) -> str | None:
        return next((name for name in re.split(r"[/.]", self.key) if name in DATABASES), None)

    def covered_by(self, run: Run | Result) -> bool:
        """Whether the bar applies to the run, which should then have measured its figure."""
        database = self.database is None or self.database in run.settings.get("databases", DATABASES)
        return self.benchmark == run.name and database and self.profile in ("", run.profile)

    def holds(self, value: float) -> bool:
        return self.at_least <= value <= self.at_most

    def __str__(self) -> str:
        least = [f"at least {self.at_least:g}"] if self.at_least > -math.inf else []
        most = [f"at most {self.at_most:g}"] if self.at_most < math.inf else []
        return " and ".join(least + most)


@dataclass(frozen=True)
class Check:
    """The check of a bar. ``value`` of ``key``: None if the run has no such figure, NaN if the figure has no ratio."""

    bar: Bar
    key: str
    value: float | None

    @property
    def holds(self) -> bool:
        return self.value is not None and self.bar.holds(self.value)

    def __str__(self) -> str:
        if self.value is None:
            what = "was not measured"
        elif math.isnan(self.value):
            what = "has no ratio"
        else:
            what = f"is {number(self.value)}"
        return f"{self.key} {what}, its bar {self.bar} ({self.bar.reason})"


def load(path: Path = BARS) -> list[Bar]:
    """The bars of a file. Raises ``ValueError`` for an invalid bar, ``TypeError`` for an unknown field."""
    bars = [Bar(key, **fields) for key, fields in tomllib.loads(path.read_text()).items()]
    return [replace(bar, key=key) for bar in bars for key in each_database(bar.key)]


def check(run: Run | Result, bars: Sequence[Bar]) -> list[Check]:
    """A check for each bar that applies to this run, and each figure that matches the bar's key."""
    values = dict(_values(run))
    checks = []
    for bar in bars:
        if bar.covered_by(run):
            met = [Check(bar, key, value) for key, value in values.items() if matches(bar.key, key)]
            checks += met or [Check(bar, bar.key, None)]
    return checks


def missed(run: Run | Result, bars: Sequence[Bar] | None = None) -> bool:
    """Whether a bar of the run does not hold. Prints a line for each such bar, and a count of those that hold."""
    checks = check(run, load() if bars is None else bars)
    failed = [each for each in checks if not each.holds]
    for each in failed:
        print(f"  MISSED: {each}")
    if checks:
        print(f"  bars of {run.name}: {len(checks) - len(failed)} of {len(checks)} hold", flush=True)
    return bool(failed)


def _values(run: Run | Result) -> Iterator[tuple[str, float]]:
    for figure in run.figures:
        yield figure.key, figure.ratio
    for path, value in _counts(run.facts):
        yield f"{run.name}/facts.{path}", value


def _counts(facts: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    """Every number in nested facts, by its dotted path."""
    for name, value in facts.items():
        if isinstance(value, Mapping):
            yield from ((f"{name}.{path}", count) for path, count in _counts(value))
        elif isinstance(value, int | float):
            yield name, value
