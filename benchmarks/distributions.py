"""Plots of whole distributions of latency: a panel per table, percentiles on a logarithmic scale of nines."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure as Canvas
from matplotlib.ticker import LogLocator, NullFormatter

from benchmarks.numbers import number

PART = "part"
"""The column with the shares of a distribution. Each other column has the milliseconds that this share of one side's
values does not exceed."""
_MARKS = (0.5, 0.9, 0.99, 0.999)
_COLOURS = ("#0072b2", "#999999", "#d55e00", "#009e73")
_NAMES = {"ours_ms": "outbox", "hand_ms": "by hand"}
_WAYS = {"inside": "in one process", "across": "across processes"}
_PANELS_A_ROW = 4


def distributions(tables: Mapping[str, Mapping[str, Sequence[float]]], caption: str) -> Canvas:
    """``tables``: the columns of each panel, by the panel's title."""
    wide = min(len(tables), _PANELS_A_ROW)
    high = math.ceil(len(tables) / wide)
    canvas = Canvas(figsize=(12, 1.2 + 2.6 * high))
    canvas.set_layout_engine("constrained")
    canvas.suptitle(caption, weight="bold")
    panels = list(canvas.subplots(high, wide, sharex=True, sharey=True, squeeze=False).flat)
    for axes, (title, columns) in zip(panels, tables.items(), strict=False):
        _panel(axes, title, columns)
    panels[0].legend(loc="upper left", frameon=False)
    for axes in panels[len(tables) :]:
        axes.set_visible(False)
    canvas.supxlabel("percentile")
    canvas.supylabel("ms")
    return canvas


def _panel(axes: Axes, title: str, columns: Mapping[str, Sequence[float]]) -> None:
    nines = [_nines(part) for part in columns[PART]]
    others = [name for name in columns if name != PART]
    for name, colour in zip(others, _COLOURS, strict=False):
        axes.plot(nines, columns[name], lw=1.8, color=colour, label=_NAMES.get(name, name))
    axes.set_yscale("log")
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter(lambda value, _: number(value))
    axes.yaxis.set_minor_formatter(NullFormatter())
    axes.set_xticks([_nines(part) for part in _MARKS], [f"p{100 * part:g}" for part in _MARKS])
    axes.set_title(_words(title), size=10)
    axes.grid(alpha=0.25)


def _words(title: str) -> str:
    """ "sqlite/inside/200" is "sqlite, in one process" and, below, "200 rows/s"."""
    words = [f"\n{int(part):,} rows/s" if part.isdigit() else _WAYS.get(part, part) for part in title.split("/")]
    return ", ".join(words).replace(", \n", "\n")


def _nines(part: float) -> float:
    """The position on the axis: 1 for p90, 2 for p99."""
    return -math.log10(1 - part)
