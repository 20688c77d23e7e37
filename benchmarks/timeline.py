"""Plots of time series: a panel for each kind of column, with the phases of trouble shaded."""

from __future__ import annotations

import math
import re
import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure as Canvas

from benchmarks.numbers import number
from benchmarks.pressure import HEALTHY

TIME = ("seconds", "time", "t", "at")
"""Possible names of the column with the seconds since the start; without one of them it is the first column."""
RATES = "rows/s"
SHARES = "429, % of answers"
PAUSED = "lane paused"
PANELS = (
    (RATES, r"arriv|goodput|rate$|per_second|inserted|delivered"),
    ("rows waiting", r"depth|backlog|waiting|pending"),
    ("a commit, ms", r"p50|p9\d|latency"),
    (SHARES, r"429|limited"),
    ("oldest waiting, s", r"oldest|(^|_)age"),
    ("batches leased", r"senders|in_flight|in_use"),
    ("memory, MiB", r"rss|memory"),
    ("on disk, MiB", r"file|table|disk|size"),
    ("requests/s", r"^requests"),
    (PAUSED, r"paused"),
)
"""The label of each panel and the pattern of its columns, in order. A column without a match gets a panel of its own
at the end."""
_NAMES = {
    "arrival": "committed",
    "goodput": "received, first time",
    "producer_p50_ms": "p50",
    "producer_p99_ms": "p99",
    "worker_rss_mib": "worker",
    "producer_rss_mib": "producer",
}
"""What the lines of a panel are called."""
_LINES = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
_SHADE, _SHADE_BACK = "#d55e00", "#009e73"
_BACK = "back after "
"""The beginning of the name of a phase in which the trouble is over and its backlog is not."""
_POINTS = 1500
"""The maximum of points per line: more cannot be distinguished, and would make the file of a long run large."""
_ROOM = 0.009
"""The width of a letter of a phase's name, as a share of the axis."""
_NARROW = 0.012
"""A phase with a smaller share of the axis gets no name."""

Phases = Sequence[Mapping[str, Any]]


def timeline(columns: Mapping[str, Sequence[float]], phases: Phases, caption: str) -> Canvas:
    """``phases``: each with "name", and "from" and "to" in the seconds of the time column."""
    time = next((name for name in TIME if name in columns), next(iter(columns)))
    troubles = _troubles(phases)
    panels = group([name for name in columns if name != time])
    canvas = Canvas(figsize=(12, 1.4 + 1.4 * len(panels)))
    canvas.set_layout_engine("constrained")
    canvas.suptitle(caption, weight="bold")
    all_axes = canvas.subplots(len(panels), 1, sharex=True, squeeze=False)[:, 0]
    for axes, (label, names) in zip(all_axes, panels.items(), strict=True):
        reduce = statistics.fmean if label == RATES else max  # of times and sizes, thinning must keep the maximum
        seconds = _thinned(columns[time], max)
        _panel(axes, label, seconds, {name: _thinned(columns[name], reduce) for name in names})
        for phase in troubles:
            shade = _SHADE_BACK if phase["name"].startswith(_BACK) else _SHADE
            axes.axvspan(phase["from"], phase["to"], color=shade, alpha=0.1, lw=0)
            axes.axvline(phase["from"], color=shade, alpha=0.5, lw=0.8)
    _name(all_axes[0], troubles)
    shades = "" if not troubles else "; orange: beacon in trouble"
    shades += (
        "; green: back, until the backlog is gone" if any(each["name"].startswith(_BACK) for each in troubles) else ""
    )
    all_axes[-1].set_xlabel(f"seconds since the start{shades}")
    canvas.align_ylabels()
    return canvas


def group(names: Sequence[str]) -> dict[str, list[str]]:
    """The columns of each panel, by its label."""
    panels: dict[str, list[str]] = {label: [] for label, _ in PANELS}
    for name in names:
        known = next((label for label, pattern in PANELS if re.search(pattern, name)), name)
        panels.setdefault(known, []).append(name)
    return {label: columns for label, columns in panels.items() if columns}


def _panel(axes: Axes, label: str, seconds: Sequence[float], columns: Mapping[str, Sequence[float]]) -> None:
    times = 100 if label == SHARES else 1
    lines = {name: [times * value for value in values] for name, values in columns.items()}
    for (name, values), colour in zip(lines.items(), _LINES * len(lines), strict=False):
        axes.plot(seconds, values, lw=1.6, color=colour, label=_NAMES.get(name, name.replace("_", " ")))
    if len(lines) == 1:
        axes.fill_between(seconds, next(iter(lines.values())), color=_LINES[0], alpha=0.2, lw=0)
    else:
        axes.legend(loc="center left", bbox_to_anchor=(1, 0.5), frameon=False)
    axes.set_ylabel(label)
    axes.set_xlim(seconds[0], seconds[-1])
    axes.set_ylim(bottom=0)
    axes.grid(alpha=0.25)
    axes.yaxis.set_major_formatter(lambda value, _: number(value))
    if label == PAUSED:
        axes.set_yticks([0, 1], ["no", "yes"])


def _thinned(values: Sequence[float], reduce: Callable[[Sequence[float]], float]) -> list[float]:
    """At most ``_POINTS`` values, each reduced from the same number of consecutive ones. NaN values are ignored."""
    size = math.ceil(len(values) / _POINTS)
    parts = (values[start : start + size] for start in range(0, len(values), size))
    known = ([value for value in part if not math.isnan(value)] for part in parts)
    return [reduce(part) if part else math.nan for part in known]


def _troubles(phases: Phases) -> Phases:
    """The phases without the healthy ones between the troubles, which are not marked."""
    return [phase for phase in phases if phase["name"] != HEALTHY]


def _name(axes: Axes, phases: Phases) -> None:
    """Write the names of the phases above the top panel; rotated if they would overlap."""
    start, end = axes.get_xlim()
    shares = [(phase["to"] - phase["from"]) / (end - start) for phase in phases]
    slanted = any(share < _ROOM * len(phase["name"]) for phase, share in zip(phases, shares, strict=True))
    for phase, share in zip(phases, shares, strict=True):
        if share >= _NARROW:
            axes.text(
                phase["from"] if slanted else (phase["from"] + phase["to"]) / 2,
                1.04,
                phase["name"],
                transform=axes.get_xaxis_transform(),
                rotation=25 if slanted else 0,
                ha="left" if slanted else "center",
                va="bottom",
                size=9,
            )
