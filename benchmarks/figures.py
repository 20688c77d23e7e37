"""What a run measures, and how it is kept: figures with all their samples, as JSON.

A figure compares two ways of doing the same work in the same run, taken in turns, because a machine's speed drifts:
``ours`` and ``base`` have one sample a round. Its ratio is that of the medians; its spread that of the rounds.
"""

from __future__ import annotations

import gc
import json
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from benchmarks.machine import commit, machine_card, versions

SCHEMA = 1
ROUNDS = 5

Measure = Callable[[], float]
"""Does the work once, on a fresh database, and returns what was measured, in the figure's unit."""


@dataclass(frozen=True)
class Figure:
    """``key``: "drain/sqlite/100k"; bars and comparisons know it by this. ``better``: "higher" or "lower"."""

    key: str
    title: str
    unit: str
    better: str
    ours: list[float]
    base: list[float]
    base_name: str = "by hand"
    note: str = ""

    @property
    def ratio(self) -> float:
        """Ours to base, by the medians; NaN without a base."""
        return statistics.median(self.ours) / statistics.median(self.base) if self.base else float("nan")

    @property
    def spread(self) -> tuple[float, float]:
        """The lowest and the highest ratio of a round."""
        ratios = [ours / base for ours, base in zip(self.ours, self.base, strict=True)] or [float("nan")]
        return min(ratios), max(ratios)

    def __str__(self) -> str:
        ours = f"{self.title:58} {statistics.median(self.ours):>12,.4g} {self.unit}"
        if not self.base:
            return ours
        low, high = self.spread
        base = f"{self.base_name} {statistics.median(self.base):>11,.4g}"
        return f"{ours}   {base}   ratio {self.ratio:.2f} ({low:.2f} to {high:.2f})"


@dataclass
class Run:
    """One run of one benchmark. ``series``: named tables of columns for plots, all columns of one length."""

    name: str
    profile: str
    settings: dict[str, Any] = field(default_factory=dict)
    figures: list[Figure] = field(default_factory=list)
    series: dict[str, dict[str, list[float]]] = field(default_factory=dict)
    facts: dict[str, Any] = field(default_factory=dict)
    """What was counted rather than timed: lost, duplicates, requests."""
    versions: dict[str, str] = field(default_factory=dict)
    """Of the servers; those of the libraries are added when the run is written."""

    def __post_init__(self) -> None:
        self._began = time.monotonic()
        self.started = datetime.now(UTC).isoformat(timespec="seconds")

    @property
    def full(self) -> bool:
        return self.profile == "full"

    def add(self, figure: Figure) -> Figure:
        print(figure, flush=True)
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
        for number in range(rounds):
            # Who goes first changes: the second finds the caches warm and the disk busy.
            order: Sequence[int] = (0, 1) if number % 2 else (1, 0)
            for which in order:
                measure = (ours, base)[which]
                if measure is not None:
                    gc.collect()
                    samples[which].append(measure())
        return self.add(Figure(key, title, unit, better, *samples, base_name=base_name))

    def write(self, folder: Path) -> Path:
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"{self.name}.json"
        figures = [
            asdict(figure) | {"ratio": figure.ratio if figure.base else None, "spread": figure.spread}
            for figure in self.figures
        ]
        document = {
            "schema": SCHEMA,
            "name": self.name,
            "profile": self.profile,
            "started": self.started,
            "seconds": round(time.monotonic() - self._began, 1),
            "commit": commit(),
            "machine": machine_card(),
            "versions": versions() | self.versions,
            "settings": self.settings,
            "figures": [_without_nan(figure) for figure in figures],
            "series": self.series,
            "facts": self.facts,
        }
        path.write_text(json.dumps(document, indent=1) + "\n")
        return path


def _without_nan(figure: dict[str, Any]) -> dict[str, Any]:
    return figure if figure["base"] else figure | {"spread": None}


def read(path: Path) -> dict[str, Any]:
    """The document of a run. Raises ``ValueError`` for another file."""
    document: dict[str, Any] = json.loads(path.read_text())
    if document.get("schema") != SCHEMA:
        raise ValueError(f"{path} is no result of this version of the benchmarks")
    return document
