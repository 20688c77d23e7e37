"""Runs that were never run."""

from __future__ import annotations

from typing import Any

from benchmarks.figures import Figure, Run

Samples = float | list[float]
"""Of each round, or the median of three."""


def figure(key: str = "drain/sqlite/100k", ours: Samples = 50, base: Samples = 100, **changes: Any) -> Figure:
    fields = {"title": f"the title of {key}", "unit": "rows/s", "better": "higher"} | changes
    return Figure(key, ours=_rounds(ours, 0.1), base=_rounds(base, 0), **fields)


def _rounds(samples: Samples, apart: float) -> list[float]:
    if isinstance(samples, list):
        return samples
    return [samples * (1 - apart), samples, samples * (1 + apart)]


def run_of(*figures: Figure, name: str = "drain", profile: str = "quick", databases: str = "sqlite") -> Run:
    """``databases``: names with blanks between."""
    return Run(name, profile, {"databases": databases.split()}, list(figures))
