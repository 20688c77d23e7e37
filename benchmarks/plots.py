"""The pictures of a result: ratios, tables of peers, distributions, and time series.

Each picture is an SVG and a PNG with the same name. Its content depends only on the result and the version of
matplotlib, so that a committed picture changes only when its numbers do. Importing this module raises ``ImportError``
where matplotlib is missing.
"""

from __future__ import annotations

import math
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Canvas
from matplotlib.ticker import LogLocator, NullFormatter

from benchmarks.distributions import PART, distributions
from benchmarks.figures import Figure, Result
from benchmarks.numbers import number
from benchmarks.places import DATABASES
from benchmarks.targets import Aim, aims
from benchmarks.timeline import timeline

COLOURS = dict(zip(DATABASES, ("#0072b2", "#009e73", "#cc79a7"), strict=True))
"""From the palette of Okabe and Ito, which colour-blind people can distinguish."""
OURS, BASE, OTHER, TARGET = "#0072b2", "#999999", "#56b4e9", "#d55e00"
_STYLE: dict[Any, Any] = {
    "svg.hashsalt": "outbox",
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
}
_NO_DATE: dict[str, dict[str, str | None]] = {"svg": {"Date": None, "Creator": None}, "png": {"Software": None}}
Table = Mapping[str, Mapping[str, float | None]]
"""{peer: {column: value}}; None or missing: the peer does not support it."""
_LOG_FROM = 8
"""The axis is logarithmic if the largest value is this many times the smallest one, or the base. It has no zero that a
bar could begin at, so values are points there."""
_FEW_TENS = 200
"""An axis that spans less than this has labels between the powers of ten."""
_SEPARATORS = re.compile(r"[^\w.]+")


@dataclass(frozen=True)
class Picture:
    """``path``: the file of the SVG."""

    path: Path
    caption: str


def draw(result: Result, folder: Path) -> list[Picture]:
    """Draw every kind of picture for which the result has data."""
    folder.mkdir(parents=True, exist_ok=True)
    with mpl.rc_context():
        mpl.rcdefaults()  # ignore a matplotlibrc
        mpl.rcParams.update(_STYLE)
        return [_save(canvas, folder / f"{result.name}-{name}.svg", caption) for name, caption, canvas in _all(result)]


def _save(canvas: Canvas, path: Path, caption: str) -> Picture:
    if engine := canvas.get_layout_engine():
        engine.execute(canvas)
        canvas.set_layout_engine("none")  # otherwise each savefig would compute the layout again
    for kind, metadata in _NO_DATE.items():
        canvas.savefig(path.with_suffix(f".{kind}"), dpi=110, metadata=metadata)
    return Picture(path, caption)


def _all(result: Result) -> Iterator[tuple[str, str, Canvas]]:
    """The name, caption and canvas of each picture."""
    based = [each for each in result.figures if each.base]
    for better in ("higher", "lower"):
        if figures := [each for each in based if not each.is_share and each.better == better]:
            caption = f"{result.name}: ratios, {better} is better"
            yield "ratios" if better == "higher" else "ratios-lower", caption, ratios(figures, caption)
    if figures := [each for each in based if each.is_share]:
        caption = f"{result.name}: shares, in percent"
        yield "shares", caption, shares(figures, caption)
    for unit, table in _tables(result.facts).items():
        better = "higher" if unit.endswith("/s") else "lower"
        caption = f"{result.name}: {unit}, {better} is better"
        yield "table-" + _SEPARATORS.sub("-", unit), caption, peers(table, caption, better)
    series = {name: each for name, each in result.series.items() if all(each.values())}
    if empty := [name for name in result.series if name not in series]:
        print(f"{result.name}: nothing was sampled of {', '.join(empty)}: no picture", file=sys.stderr)
    if tables := {name: each for name, each in series.items() if PART in each}:
        caption = f"{result.name}: the whole distribution, lower is better"
        yield "distributions", caption, distributions(tables, caption)
    for name in (each for each in series if each not in tables):
        caption = f"{result.name}: {name} over time"
        yield _SEPARATORS.sub("-", name), caption, timeline(series[name], _phases(result, name), caption)


def _tables(facts: Mapping[str, Any]) -> dict[str, Table]:
    """The tables of peers in the facts, by unit."""
    tables: dict[str, Table] = facts.get("tables", {})
    return tables or ({"rows/s": facts["table"]} if "table" in facts else {})


def _phases(result: Result, name: str) -> list[Mapping[str, Any]]:
    """The phases that apply to all series or to the series ``name``."""
    return [phase for phase in result.facts.get("phases", []) if phase.get("series", name) == name]


def ratios(figures: Sequence[Figure], caption: str) -> Canvas:
    """A bar or a point for each figure with a line for its spread, a mark for its target, a dashed line at ratio 1, and
    the numbers on the right: in orange if the target is not reached."""
    canvas = _canvas(1.8 + 0.34 * len(figures), caption)
    axes = canvas.subplots()
    wanted = [_aim(each) for each in figures]
    bounds = [aim.target.reach for aim in wanted if aim]
    values = [value for each in figures for value in (each.ratio, *each.spread)]
    _scale(axes, [1.0, *values, *bounds], log_from=_LOG_FROM)
    for place, (each, aim) in enumerate(zip(figures, wanted, strict=True)):
        if math.isfinite(each.ratio):
            _value(axes, place, each.ratio, _colour(each))
        if len(each.ours) > 1 and all(map(math.isfinite, each.spread)):
            axes.plot(each.spread, [place, place], color="black", lw=1.2, marker="|", ms=7)
        if aim:
            axes.plot([aim.target.reach], [place], color=TARGET, marker="|", ms=15, mew=2.5, ls="")
        numbers = f"{number(each.value)} : {number(each.base_value)} {each.unit}"
        _at_the_right(axes, place, each.read, 8, "bold", TARGET if aim and not aim.reached else "black")
        _at_the_right(axes, place, numbers, 58, "normal")
    axes.axvline(1, color="black", lw=1.2, ls="--")
    names = _base_names(figures)
    one = names[0] if len(names) == 1 else ""
    axes.text(1, 1, one or "equal", transform=axes.get_xaxis_transform(), ha="center", va="bottom", size=9)
    _label(axes, [each.title if one else f"{each.title} ({each.base_name})" for each in figures])
    marks = ["thin lines: lowest to highest sample"] if any(len(each.ours) > 1 for each in figures) else []
    marks += ["orange marks: to reach, orange numbers: not reached"] if bounds else []
    legend = f"\n({'; '.join(marks)})" if marks else ""
    axes.set_xlabel(f"ratio to {f'“{one}”' if one else 'what is in brackets'}{legend}")
    return canvas


def _aim(figure: Figure) -> Aim | None:
    return next((aim for aim in aims([figure]) if aim.target.of == "ratio"), None)


def shares(figures: Sequence[Figure], caption: str) -> Canvas:
    """A bar for each share, from 0, with its counts on the right."""
    canvas = _canvas(1.8 + 0.34 * len(figures), caption)
    axes = canvas.subplots()
    found = [(each, _aim(each)) for each in figures]
    for place, (each, aim) in enumerate(found):
        axes.barh(place, 100 * each.ratio if math.isfinite(each.ratio) else 0, height=0.66, color=_colour(each))
        if aim:
            axes.plot([100 * aim.target.reach], [place], color=TARGET, marker="|", ms=15, mew=2.5, ls="")
        _at_the_right(axes, place, each.read, 8, "bold", TARGET if aim and not aim.reached else "black")
        _at_the_right(axes, place, f"{number(each.value)} of {number(each.base_value)} {each.unit}", 68, "normal")
    axes.set_xlim(left=0)
    _label(axes, [each.title for each in figures])
    axes.set_xlabel(
        "%" + (" (orange marks: no more than this is to be reached)" if any(aim for _, aim in found) else "")
    )
    return canvas


def _value(axes: Axes, place: float, value: float, colour: str) -> None:
    if axes.get_xscale() == "log":
        axes.plot([value], [place], color=colour, marker="o", ms=9, ls="")
    else:
        axes.barh(place, value, height=0.66, color=colour)


def _at_the_right(axes: Axes, place: int, text: str, offset: int, weight: str, colour: str = "black") -> None:
    outside = ("axes fraction", "data")
    axes.annotate(
        text,
        (1, place),
        (offset, 0),
        xycoords=outside,
        textcoords="offset points",
        va="center",
        weight=weight,
        color=colour,
    )


def peers(table: Table, caption: str, better: str = "higher") -> Canvas:
    """A group of bars or points for each column of the table, the best on top, all with the same axis; outbox is
    highlighted."""
    groups = {column: _measured(table, column, better) for row in table.values() for column in row}
    sizes = [max(len(group), 1) for group in groups.values()]
    canvas = _canvas(1.2 + 0.45 * len(groups) + 0.27 * sum(sizes), caption)
    panels = canvas.subplots(len(groups), 1, sharex=True, squeeze=False, height_ratios=sizes)[:, 0]
    values = [value for group in groups.values() for _, value in group]
    _scale(panels[-1], values, log_from=_LOG_FROM * min(values, default=1))
    for axes, (column, measured) in zip(panels, groups.items(), strict=True):
        for place, (peer, value) in enumerate(measured):
            _value(axes, place, value, OURS if peer.startswith("outbox") else BASE)
            _at_the_end(axes, place, value)
        axes.set_title(column, loc="left", size=10)
        _label(axes, [peer for peer, _ in measured])
    if panels[-1].get_xscale() == "log":
        panels[-1].set_xlabel("each labelled line is ten times the one before it")
    return canvas


def _measured(table: Table, column: str, better: str) -> list[tuple[str, float]]:
    found = [(peer, value) for peer, row in table.items() if (value := row.get(column))]
    return sorted(found, key=lambda each: each[1], reverse=better == "higher")


def _canvas(height: float, caption: str) -> Canvas:
    canvas = Canvas(figsize=(11, height))
    canvas.set_layout_engine("constrained")
    canvas.suptitle(caption, weight="bold")
    return canvas


def _label(axes: Axes, names: Sequence[str]) -> None:
    axes.set_yticks(range(len(names)), names)
    axes.set_ylim(len(names) - 0.4, -0.6)
    axes.tick_params(axis="y", length=0)
    axes.grid(axis="x", alpha=0.25)
    axes.set_axisbelow(True)


def _scale(axes: Axes, values: Sequence[float], log_from: float) -> None:
    """A linear axis from 0; a logarithmic one if a value reaches ``log_from``: short bars would be unreadable."""
    values = [value for value in values if math.isfinite(value)]
    largest = max(values, default=1)
    if largest < log_from:
        axes.set_xlim(0, largest * 1.1)
        return
    axes.set_xscale("log")
    smallest = min((value for value in values if value > 0), default=0.1)
    axes.set_xlim(smallest / 2, largest * 2)
    if largest < _FEW_TENS * smallest:
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter(lambda value, _: number(value))
    axes.xaxis.set_minor_formatter(NullFormatter())


def _at_the_end(axes: Axes, place: float, value: float) -> None:
    axes.annotate(number(value), (value, place), (8, 0), textcoords="offset points", va="center", size=9)


def _base_names(figures: Sequence[Figure]) -> list[str]:
    return list(dict.fromkeys(each.base_name for each in figures if each.base))


def _colour(figure: Figure) -> str:
    return next((COLOURS[name] for name in figure.key.split("/") if name in COLOURS), OTHER)
