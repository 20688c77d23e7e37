"""``outbox bench report``: the results of a folder as REPORT.md, with tables and pictures."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.bars import Check, check, load
from benchmarks.figures import Figure, NotAResult, Result, number, read
from benchmarks.places import DATABASES

_MEASURED = ("load_at_start", "fdatasync_ms")
_HEAD = """\
# Benchmarks: the report

Made by `outbox bench report` from the results in `{folder}`; nothing here is written by hand. Each table names the
command of its result; `outbox bench all --full && outbox bench report` makes it all anew. README.md says how it is
measured. **Ratios carry to other machines, rows a second do not.**

A ratio is outbox ÷ the named base, which is mostly a loop by hand on the raw driver, both measured in turns in the same
run: that of the medians, then the lowest and the highest of a round.
"""


def report(folder: Path, target: Path, order: Sequence[str] = ()) -> int:
    """Write ``target`` from every ``folder/*.json``. Returns 0.

    ``order``: names of the benchmarks that come first, in this order. Raises ``NotAResult`` if there is no result, or
    if a file is not one.
    """
    results = [read(path) for path in sorted(folder.glob("*.json"))]
    if not results:
        raise NotAResult(f"no result in {folder}; make them by: outbox bench all --full")
    results.sort(key=lambda each: order.index(each.name) if each.name in order else len(order))
    pictures = _pictures(results, folder, target)
    blocks = [_HEAD.format(folder=os.path.relpath(folder, target.parent))]
    if pictures is None:
        blocks.append("There are no pictures: matplotlib is missing; install beacon-outbox[demo].\n")
    if absent := [name for name in order if name not in {each.name for each in results}]:
        blocks.append(f"Not measured: {', '.join(absent)}.\n")
    blocks += _where_from(results)
    for result in results:
        blocks += section(result, (pictures or {}).get(result.name, []))
    target.write_text("\n".join(blocks))
    print(f"written: {target}")
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


def _where_from(results: Sequence[Result]) -> list[str]:
    """The section on provenance: machine, versions, and the time and commit of each result."""
    runs = [
        {
            "benchmark": each.name,
            "profile": each.profile,
            "commit": each.commit,
            "started": each.started,
            "seconds": each.seconds,
            "load before": each.machine.get("load_at_start"),
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


def section(result: Result, pictures: Sequence[str]) -> list[str]:
    """The section of one result: heading, command, pictures, figures, bars, notes and facts."""
    blocks = [f"## {result.name}\n", f"`{command(result)}`\n", *pictures]
    checks = check(result, load())
    if result.figures:
        bars = {each.key: _bar(each) for each in checks}
        blocks.append(table([_row(each, bars.get(each.key, "")) for each in result.figures]))
    if missed := [each for each in checks if not each.holds]:
        blocks.append("".join(f"- MISSED: {each}\n" for each in missed))
    if notes := [each for each in result.figures if each.note]:
        blocks.append("".join(f"- {each.title}: {each.note}\n" for each in notes))
    return blocks + list(_facts(result.facts))


def command(result: Result) -> str:
    """The command line that reproduces the result."""
    databases = result.settings.get("databases", DATABASES)
    narrowed = [] if set(databases) == set(DATABASES) else [f"--database {name}" for name in databases]
    return " ".join(["outbox bench", result.name, *(["--full"] if result.profile == "full" else []), *narrowed])


def _row(figure: Figure, bar: str) -> dict[str, Any]:
    row: dict[str, Any] = {"": figure.title, "outbox": f"{number(figure.value)} {figure.unit}"}
    if not figure.base:
        return row
    low, high = figure.spread
    return row | {
        "base": f"{number(figure.base_value)} ({figure.base_name})",
        "ratio": f"**{figure.ratio:.2f}**",
        "rounds: spread, number": f"{low:.2f} to {high:.2f}, {len(figure.ours)}",
        "better": figure.better,
        "bar": bar,
    }


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
            rest += list(_lines(name, value))
        elif all(_all_mappings(each.values()) for each in value.values()):
            for title, each in value.items():
                yield from (f"### {name}, {title}\n", _of_rows(each))
        else:
            yield from (f"### {name}\n", _of_rows(value))
    if rest:
        yield table([{"counted": name, "": value} for name, value in rest])


def _all_mappings(values: Iterable[Any]) -> bool:
    return all(isinstance(each, Mapping) for each in values)


def _of_rows(value: Mapping[str, Mapping[str, Any]]) -> str:
    return table([{"": row} | dict(columns) for row, columns in value.items()])


def _lines(name: str, value: Any) -> Iterator[tuple[str, Any]]:
    """Flatten a fact: each mapping inside a mapping becomes a line of its own."""
    if isinstance(value, Mapping) and any(isinstance(each, Mapping) for each in value.values()):
        for inner, each in value.items():
            yield from _lines(f"{name}: {inner}", each)
    else:
        yield name, value


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
