"""Data on stdout, in one of three forms.

| form  | a list                    | one document               |
|-------|---------------------------|----------------------------|
| table | a row each                | a row a field              |
| json  | one array, indented       | one object, indented       |
| jsonl | one object a line         | one object on one line     |

On a terminal a table has colours and lines (``NO_COLOR`` takes the colours away); elsewhere it is plain text in
columns that no width folds.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping, Sequence
from enum import StrEnum
from typing import Annotated, Any

import msgspec
import typer


class Form(StrEnum):
    TABLE = "table"
    JSON = "json"
    JSONL = "jsonl"


Output = Annotated[Form, typer.Option("--output", "-o", help="How the data is written.")]

Row = Mapping[str, object]


def plain(value: object) -> Any:
    """``value`` (dataclasses, UUIDs, datetimes and enums included) as JSON's own types."""
    return msgspec.to_builtins(value, str_keys=True)


def show_rows(rows: Sequence[Row], columns: Sequence[str], form: Form) -> None:
    """A list. ``columns`` chooses what a table shows; the other forms have everything."""
    match form:
        case Form.JSON:
            write(json.dumps(plain(rows), indent=2))
        case Form.JSONL:
            for row in rows:
                write(json.dumps(plain(row)))
        case Form.TABLE:
            table(columns, [[row[name] for name in columns] for row in rows])


def show_document(document: object, form: Form, as_table: Callable[[], None] | None = None) -> None:
    """One object. ``as_table`` writes the table, where a row a field would not do."""
    match form:
        case Form.JSON:
            write(json.dumps(plain(document), indent=2))
        case Form.JSONL:
            write(json.dumps(plain(document)))
        case Form.TABLE if as_table is not None:
            as_table()
        case Form.TABLE:
            table(("field", "value"), list(plain(document).items()))


def write(line: str) -> None:
    """One line of data, flushed: whoever reads it may act on it."""
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def tell(line: str) -> None:
    """One line for the person, on stderr."""
    typer.echo(line, err=True)


def table(columns: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    cells = [[_cell(value) for value in row] for row in rows]
    if sys.stdout.isatty():
        _rich_table(columns, cells)
        return
    widths = [max(map(len, column)) for column in zip(columns, *cells, strict=True)]
    for row in (list(columns), *cells):
        padded = (cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        write("  ".join(padded).rstrip())


def _rich_table(columns: Sequence[str], cells: Sequence[Sequence[str]]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    made = Table(header_style="bold")
    for name in columns:
        made.add_column(name, overflow="fold")
    for row in cells:
        made.add_row(*map(Text, row))  # Text: square brackets in data are no markup
    Console().print(made)


def _cell(value: object) -> str:
    """One line of printable text: what a server answered must not move the cursor of a terminal."""
    simple = plain(value)
    if simple is None:
        return "-"
    if isinstance(simple, float):
        return f"{simple:.1f}"
    text = simple if isinstance(simple, str) else json.dumps(simple)
    return "".join(char if char.isprintable() else " " for char in text)
