"""Figures, runs, and their results as JSON, with all samples.

A figure compares two ways to do the same work in the same run, in turns because the speed of a machine drifts.
``ours`` and ``base`` have one sample per round. The ratio is that of the medians, the spread the range of the rounds'
ratios.
"""

from __future__ import annotations

import gc
import json
import math
import re
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from benchmarks import targets
from benchmarks.files import write_whole
from benchmarks.machine import commit, machine_card, versions
from benchmarks.numbers import number, percent, times

SCHEMA = 1
ROUNDS = 5
_NUMBERS = re.compile(r"\[\n[\s\d.eE+\-,nul]+\]")
"""A list of numbers in indented JSON: ``write`` puts each on one line instead of a line per number."""

PARTIAL = ".partial.json"
"""The end of the name of a run's file that was interrupted, or ended by an error: it is no result for the report."""
INTERRUPTED = "interrupted"
"""The setting of such a run, which says by what."""
OF_ALL = "of all"
"""The ``base_name`` of a figure that is a share, to be read in percent."""

Measure = Callable[[], float]
"""Does the work once and returns the measured value in the figure's unit."""


@dataclass(frozen=True)
class Figure:
    """``key``: such as "drain/sqlite/100k", identifies the figure in bars and comparisons. ``better``: "higher" or
    "lower"."""

    key: str
    title: str
    unit: str
    better: str
    ours: list[float]
    base: list[float]
    base_name: str = "by hand"
    note: str = ""

    @property
    def value(self) -> float:
        """The median of ``ours``, in ``unit``."""
        return statistics.median(self.ours)

    @property
    def base_value(self) -> float:
        return statistics.median(self.base) if self.base else math.nan

    @property
    def ratio(self) -> float:
        """The median of ``ours`` divided by that of ``base``; NaN without a base."""
        return _divided(self.value, self.base_value)

    @property
    def spread(self) -> tuple[float, float]:
        """The lowest and the highest ratio of a round; NaN without a base."""
        if not self.base:
            return math.nan, math.nan
        ratios = [_divided(ours, base) for ours, base in zip(self.ours, self.base, strict=True)]
        return min(ratios), max(ratios)

    @property
    def is_share(self) -> bool:
        return self.base_name == OF_ALL

    @property
    def read(self) -> str:
        """The ratio as it is written: 0.82, 0.31 % of a share, "never" of what had not happened at the end, "none" to a
        base of zero."""
        return self._written(self.ratio if self.base_value else math.nan)

    @property
    def read_spread(self) -> str:
        """The lowest and the highest round as they are written; empty if there was only one round."""
        low, high = self.spread
        return f"{self._written(low)} to {self._written(high)}" if len(self.ours) > 1 else ""

    def _written(self, ratio: float) -> str:
        return percent(ratio) if self.is_share else times(ratio)

    def __str__(self) -> str:
        ours = f"{self.title:58} {with_unit(self.value, self.unit):>18}"
        if not self.base:
            return ours
        rounds = f" ({self.read_spread})" if self.read_spread else ""
        return f"{ours}   {self.base_name} {number(self.base_value):>10}   ratio {self.read}{rounds}"


def _divided(ours: float, base: float) -> float:
    if base == 0:
        return math.inf if ours else math.nan
    return ours / base


def with_unit(value: float, unit: str) -> str:
    return f"{number(value)} {unit}" if math.isfinite(value) else number(value)


@dataclass
class Run:
    """One run of one benchmark.

    ``series``: tables for plots, with columns of equal length: over time (a column of seconds; NaN is a gap), or of a
    distribution (a column "part": see ``benchmarks.distributions``). ``facts``: counts such as lost rows, duplicates
    and requests. Some facts are drawn: "phases" of the time series, each with "name", "from", "to" and optionally
    "series", and "tables" of peers, {unit: {peer: {column: value}}}, or one "table" of rows a second.
    """

    name: str
    profile: str
    settings: dict[str, Any] = field(default_factory=dict)
    figures: list[Figure] = field(default_factory=list)
    series: dict[str, dict[str, list[float]]] = field(default_factory=dict)
    facts: dict[str, Any] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)
    """Versions of the database servers; those of the libraries are added in ``result``."""

    def __post_init__(self) -> None:
        # Taken before the work starts: the load average without it, and the commit of the code that runs.
        self._machine, self._commit = machine_card(), commit() or "unknown"
        if "durable" in self._machine:
            print(f"warning: durable: {self._machine['durable']}; set TMPDIR to a folder on a disk", file=sys.stderr)
        self._began = time.monotonic()
        self.started = datetime.now(UTC).isoformat(timespec="seconds")

    @property
    def full(self) -> bool:
        return self.profile == "full"

    def add(self, figure: Figure) -> Figure:
        print(f"{figure}{targets.beside(figure)}", flush=True)
        self.figures.append(figure)
        return figure

    def compare(
        self,
        key: str,
        title: str,
        ours: Measure,
        base: Measure | None,
        *,
        unit: str = "rows/s",
        better: str = "higher",
        rounds: int = ROUNDS,
        base_name: str = "by hand",
    ) -> Figure:
        """Measure both in turns, ``rounds`` times, and keep the figure."""
        samples: tuple[list[float], list[float]] = ([], [])
        for turn in range(rounds):
            # The order alternates: the second measurement has warm caches and a busy disk.
            order: Sequence[int] = (0, 1) if turn % 2 else (1, 0)
            for which in order:
                measure = (ours, base)[which]
                if measure is not None:
                    gc.collect()
                    samples[which].append(measure())
        return self.add(Figure(key, title, unit, better, *samples, base_name=base_name))

    def result(self) -> Result:
        """The result of the run so far."""
        return Result(
            name=self.name,
            profile=self.profile,
            started=self.started,
            seconds=round(time.monotonic() - self._began, 1),
            commit=self._commit,
            machine=self._machine,
            versions=versions() | self.versions,
            settings=self.settings,
            figures=self.figures,
            series=self.series,
            facts=self.facts,
        )

    def write(self, folder: Path) -> Path:
        return self.result().write(folder)


@dataclass(frozen=True)
class Result:
    """The result of a run, with the machine, versions and settings that its figures depend on. ``seconds``: its
    duration."""

    name: str
    profile: str
    started: str
    seconds: float
    commit: str
    machine: dict[str, Any]
    versions: dict[str, str]
    settings: dict[str, Any]
    figures: list[Figure]
    series: dict[str, dict[str, list[float]]]
    facts: dict[str, Any]

    def write(self, folder: Path) -> Path:
        """Write ``folder/NAME.json``, or ``NAME.partial.json`` if the run was interrupted. Raises ``OSError``.

        It includes ratios and spreads for other programs; ``read`` recomputes them.
        """
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"{self.name}{PARTIAL if INTERRUPTED in self.settings else '.json'}"
        figures = [asdict(each) | {"ratio": each.ratio, "spread": each.spread} for each in self.figures]
        document = {"schema": SCHEMA} | asdict(self) | {"figures": figures}
        text = json.dumps(_for_json(document), indent=1, allow_nan=False)
        write_whole(path, _NUMBERS.sub(lambda found: " ".join(found[0].split()), text) + "\n")
        return path


class NotAResult(ValueError):
    """The file is not a result of this version of the benchmarks."""


def read(path: Path) -> Result:
    """Read what ``Result.write`` wrote. Raises ``NotAResult`` for any other file, ``OSError`` if it cannot be read."""
    try:
        document = json.loads(path.read_text())
    except ValueError as error:
        raise NotAResult(f"{path} is not JSON: {error}") from error
    if not isinstance(document, dict) or document.pop("schema", None) != SCHEMA:
        raise NotAResult(f"{path} is no result of this version of the benchmarks; run the benchmark again")
    try:
        return _result(document)
    except (TypeError, KeyError, AttributeError, ValueError) as error:
        # Such a file has our schema by chance, or is of a version whose figures had other fields.
        what = f"{type(error).__name__}: {error}"
        raise NotAResult(f"{path} is no result of this version ({what}); run the benchmark again") from error


def _result(document: dict[str, Any]) -> Result:
    given = [Figure(**{field.name: each[field.name] for field in fields(Figure)}) for each in document["figures"]]
    figures = [replace(each, ours=_from_json(each.ours), base=_from_json(each.base)) for each in given]
    series = {
        name: {column: _from_json(values) for column, values in table.items()}
        for name, table in document["series"].items()
    }
    return Result(**document | {"figures": figures, "series": series})


_INFINITY = "infinity"
"""JSON has no such number. NaN is null."""


def _from_json(values: Sequence[float | str | None]) -> list[float]:
    return [math.nan if each is None else float(each) for each in values]


def _for_json(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _for_json(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_for_json(each) for each in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None if math.isnan(value) else _INFINITY
    return value
