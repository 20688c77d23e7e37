"""``outbox bench report``: the results of a folder as REPORT.md, with tables and pictures."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import takewhile
from pathlib import Path
from typing import Any

from benchmarks import targets
from benchmarks.bars import Check, check, load
from benchmarks.figures import PARTIAL, Figure, NotAResult, Result, read, with_unit
from benchmarks.files import short, usual, write_whole
from benchmarks.keys import EACH
from benchmarks.numbers import number
from benchmarks.places import DATABASES
from benchmarks.words import ABOUT, COUNTED, NO_ANSWER

_MEASURED = ("load_at_start", "fdatasync_ms")
_HEAD = """\
# Benchmarks: the report

Made by `outbox bench report` from the results in `{folder}`; nothing here is written by hand. README.md says how it is
measured, and each section with which command. **Ratios carry to other machines, rows a second do not.**

A ratio is outbox ÷ the named base, which is mostly a loop by hand on the raw driver, both measured in turns in the
same run: that of the medians, then the lowest and the highest of a sample, which is a round, or a second of a phase.
*To reach* is a target (`targets.toml`; in brackets what would be better still), *bar* is what a run must not fall
behind in CI (`bars.toml`).
"""


def report(folder: Path, target: Path, order: Sequence[str] = ()) -> int:
    """Write ``target`` from every ``folder/*.json``. Returns 0.

    ``order``: names of the benchmarks that come first, in this order. Raises ``NotAResult`` if there is no result, or
    if a file is not one.
    """
    results = [read(path) for path in sorted(folder.glob("*.json")) if not path.name.endswith(PARTIAL)]
    if not results:
        raise NotAResult(f"no result in {folder}; make them by: outbox bench all --full")
    results.sort(key=lambda each: order.index(each.name) if each.name in order else len(order))
    pictures = _pictures(results, folder, target)
    blocks = [_HEAD.format(folder=os.path.relpath(folder, target.parent))]
    if pictures is None:
        blocks.append("There are no pictures: matplotlib is missing; install beacon-outbox[demo].\n")
    if absent := [name for name in order if name not in {each.name for each in results}]:
        blocks.append(f"Not measured: {', '.join(absent)}.\n")
    blocks += _reached(results)
    blocks += _where_from(results)
    for result in results:
        blocks += section(result, folder, (pictures or {}).get(result.name, []))
    write_whole(target, "\n".join(blocks))
    print(f"written: {target}, from {len(results)} results in {short(folder)}")
    return 0


def _pictures(results: Sequence[Result], folder: Path, target: Path) -> dict[str, list[str]] | None:
    """The Markdown of each result's pictures, by the result's name; None, with a message, if matplotlib is missing."""
    try:
        from benchmarks.plots import draw
    except ImportError as error:
        print(f"no pictures: {error.name} is missing; install beacon-outbox[demo]", file=sys.stderr)
        return None
    return {
        result.name: [
            f"![{each.caption}]({os.path.relpath(each.path, target.parent)})\n" for each in draw(result, folder)
        ]
        for result in results
    }


def _reached(results: Sequence[Result]) -> list[str]:
    """The summary of the targets: how many are reached, each that is not, and each that was not measured."""
    figures = [figure for result in results for figure in result.figures]
    aims = targets.aims(figures)
    missed = [each for each in aims if not each.reached]
    counted = f"**{len(aims) - len(missed)} of {len(aims)} targets are reached, {len(missed)} not**"
    stretched = sum(each.stretched for each in aims)
    blocks = [
        "## What is reached\n",
        f"{counted}; {stretched} reach what stands in brackets, too.\n"
        if aims
        else "No target is for these figures.\n",
    ]
    if missed:
        rows = [
            {"not reached": title(each.figure, figures), "is": f"**{each.now}**", "to reach": each.bound}
            for each in missed
        ]
        blocks.append(table(rows))
    if absent := targets.not_measured(figures):
        blocks.append(f"Not measured here, so neither reached nor missed: {_absent(absent)}.\n")
    return blocks


def _absent(absent: Sequence[targets.Target]) -> str:
    """Their keys, once for all databases: "`scale/{database}/10M` (sqlite, mariadb)"."""
    found: dict[str, dict[str, None]] = {}
    for each in absent:
        name = next((name for name in DATABASES if name in each.key), "")
        found.setdefault(each.key.replace(name, EACH) if name else each.key, {})[name] = None
    return ", ".join(f"`{key}`" + (f" ({', '.join(names)})" if all(names) else "") for key, names in found.items())


def title(figure: Figure, figures: Iterable[Figure]) -> str:
    """With its base, where another figure is called the same."""
    alike = sum(each.title == figure.title for each in figures)
    return figure.title if alike < 2 else f"{figure.title}, beside {figure.base_name}"


def _where_from(results: Sequence[Result]) -> list[str]:
    """The section on provenance: machine, versions, and the time and commit of each result."""
    runs = [
        {
            "benchmark": each.name,
            "profile": each.profile,
            "commit": each.commit,
            "started": each.started,
            "seconds": each.seconds,
            "load at the start": each.machine.get("load_at_start"),
            "fdatasync, ms": each.machine.get("fdatasync_ms"),
        }
        for each in results
    ]
    blocks = ["## Where the figures are from\n", table(runs)]
    if len({each.commit for each in results}) > 1:
        blocks.append("**The results are of different commits.**\n")
    if any(each.commit.endswith("+") for each in results):
        blocks.append("A commit with + had changes that were not committed.\n")
    if len(_cards(results)) > 1:
        blocks.append("**The results are of different machines.**\n")
    return [*blocks, table([dict(card) for card in _cards(results)]), _versions(results)]


def _cards(results: Sequence[Result]) -> list[tuple[tuple[str, Any], ...]]:
    """Each distinct machine once, without the measured fields of its card."""
    cards = (tuple((name, value) for name, value in each.machine.items() if name not in _MEASURED) for each in results)
    return list(dict.fromkeys(cards))


def _versions(results: Sequence[Result]) -> str:
    found: dict[str, dict[str, None]] = {}
    for result in results:
        for name, version in result.versions.items():
            found.setdefault(name, {})[version] = None
    return "Versions: " + ", ".join(f"{name} {' and '.join(each)}" for name, each in found.items()) + ".\n"


def section(result: Result, folder: Path, pictures: Sequence[str]) -> list[str]:
    """The section of one result: heading, command, words, pictures, figures, bars, notes and facts."""
    blocks = [f"## {result.name}\n", f"`{command(result, folder)}`\n"]
    if about := ABOUT.get(result.name):
        blocks.append(f"{about}\n")
    blocks += pictures
    checks = check(result, load())
    if result.figures:
        bars = {each.key: _bar(each) for each in checks}
        blocks.append(table([_row(each, result.figures, bars.get(each.key, "")) for each in result.figures]))
    if missed := [each for each in checks if not each.holds]:
        blocks.append("".join(f"- MISSED: {each}\n" for each in missed))
    return blocks + list(_notes(result.figures)) + list(_facts(result.facts))


def _notes(figures: Sequence[Figure]) -> Iterator[str]:
    """Each note once, with the figures that have it."""
    noted: dict[str, list[str]] = {}
    for each in figures:
        if each.note:
            noted.setdefault(each.note, []).append(title(each, figures))
    if noted:
        yield "".join(f"- {_these(titles)}: {note}\n" for note, titles in noted.items())


def _these(titles: Sequence[str]) -> str:
    """The title, or how several begin: "producers' p99, sqlite, ... (12 figures)"."""
    if len(titles) == 1:
        return titles[0]
    parts = takewhile(lambda each: len(set(each)) == 1, zip(*(each.split(", ") for each in titles), strict=False))
    return f"{', '.join([each[0] for each in parts] + ['…'])} ({len(titles)} figures)"


def command(result: Result, folder: Path) -> str:
    """The command line that makes the result anew, in its folder."""
    databases = result.settings.get("databases", DATABASES)
    narrowed = [] if set(databases) == set(DATABASES) else [f"--database {name}" for name in databases]
    full = result.profile == "full"
    out = [] if usual(full=full) == folder.resolve() else [f"--out {short(folder)}"]
    variables = [f"{name}={value}" for name, value in result.settings.get("environment", {}).items()]
    return " ".join([*variables, "outbox bench", result.name, *(["--full"] if full else []), *narrowed, *out])


def _row(figure: Figure, figures: Sequence[Figure], bar: str) -> dict[str, Any]:
    row: dict[str, Any] = {"": title(figure, figures), "outbox": with_unit(figure.value, figure.unit)}
    if not figure.base:
        return row
    return row | {
        "base": f"{number(figure.base_value)} ({figure.base_name})",
        "ratio": f"**{figure.read}**",
        "samples: spread, number": f"{figure.read_spread}, {len(figure.ours)}".removeprefix(", "),
        "better": figure.better,
        "to reach": "; ".join(map(_aim, targets.aims([figure]))),
        "bar": bar,
    }


def _aim(aim: targets.Aim) -> str:
    return f"{'✓' if aim.reached else '**✗ not reached:**'} {aim.bound}"


def _bar(checked: Check) -> str:
    return str(checked.bar) if checked.holds else f"{checked.bar}: **missed**"


def _facts(facts: Mapping[str, Any]) -> Iterator[str]:
    """A table for each fact that is a table, and one for all the others."""
    rest = []
    for name, value in facts.items():
        if name == "phases" or (name == "table" and value in facts.get("tables", {}).values()):
            continue  # phases are drawn, and this table is among the tables
        if isinstance(value, list) and value and _all_mappings(value):
            yield from (f"### {name}\n", table(value))
        elif not isinstance(value, Mapping) or not value or not _all_mappings(value.values()):
            rest += [(name, value)] if not isinstance(value, Mapping) else list(_counts(name, value))
            yield from _by_phase(name, value) if isinstance(value, Mapping) else ()
        elif all(_all_mappings(each.values()) for each in value.values()):
            for what, each in value.items():
                yield from (f"### {name}, {what}\n", _of_rows(each))
        else:
            yield from (f"### {name}\n", _of_rows(value))
    if rest:
        yield table([{"counted": _counted(name), "": _words(value)} for name, value in rest])


def _counts(where: str, facts: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """The facts of a database that are no tables themselves."""
    for name, value in facts.items():
        if not _is_table(value):
            yield f"{where}: {name}", value


def _by_phase(where: str, facts: Mapping[str, Any]) -> Iterator[str]:
    """A table for each fact of a database that has a line for each phase."""
    for name, value in facts.items():
        if _is_table(value):
            yield from (
                f"### {_counted(f'{where}: {name}')}\n",
                _of_rows({row: _words(each) for row, each in value.items()}),
            )


def _is_table(value: Any) -> bool:
    return isinstance(value, Mapping) and bool(value) and _all_mappings(value.values())


def _counted(name: str) -> str:
    where, _, what = name.rpartition(": ")
    words = COUNTED.get(what, what)
    return f"{where}: {words}" if where else words


def _words(value: Any) -> Any:
    """Counts by status with words for the status of a request that was not answered."""
    if not isinstance(value, Mapping):
        return value
    return {NO_ANSWER if name == "0" else name: each for name, each in value.items()}


def _all_mappings(values: Iterable[Any]) -> bool:
    return all(isinstance(each, Mapping) for each in values)


def _of_rows(value: Mapping[str, Mapping[str, Any]]) -> str:
    return table([{"": row} | dict(columns) for row, columns in value.items()])


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """A Markdown table with every column that any row has; columns of numbers are right-aligned."""
    columns = list(dict.fromkeys(column for row in rows for column in row))
    at_right = [all(isinstance(row.get(column, 0), int | float | None) for row in rows) for column in columns]
    lines = [columns, ["---:" if right else "---" for right in at_right]]
    lines += [[_cell(row.get(column)) for column in columns] for row in rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def _cell(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int | float):
        return f"{value:,}" if isinstance(value, int) else number(value)
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {_cell(each)}" for name, each in value.items())
    if isinstance(value, list | tuple):
        return ", ".join(map(_cell, value))
    return "" if value is None else str(value).replace("|", r"\|")
