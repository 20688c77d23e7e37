"""Data on stdout, in one of three forms.

| form  | a list                    | one document               |
|-------|---------------------------|----------------------------|
| table | one row per item          | one row per field          |
| json  | one array, indented       | one object, indented       |
| jsonl | one object per line       | one object on one line     |

On a terminal a table has borders, and only its last column is wrapped. A table that is still wider than the terminal is
transposed, to one line per field; if that is too wide too, each row is printed as a table of its own. Where stdout is
not a terminal, a table is plain text in aligned columns without wrapping.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping, Sequence
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Any, TextIO

import msgspec
import typer

from outbox.core.text import printable
from outbox.errors import OutboxError

if TYPE_CHECKING:
    from rich.table import Table


class Form(StrEnum):
    TABLE = "table"
    JSON = "json"
    JSONL = "jsonl"


Output = Annotated[Form, typer.Option("--output", "-o", help="How the data is written.")]

Row = Mapping[str, object]

FOLDED_WIDTH = 24
"""The minimum width to which the last column of a table is wrapped on a terminal, in characters."""
BORDER_WIDTH = 3
"""The characters of border and padding per column of a table on a terminal."""


def plain(value: object) -> Any:
    """``value`` (dataclasses, UUIDs, datetimes and enums included) as types that ``json`` can encode."""
    return msgspec.to_builtins(value, str_keys=True)


def show_rows(rows: Sequence[Row], columns: Sequence[str], form: Form) -> None:
    """Print a list. ``columns`` are the fields that a table shows; the other forms contain all fields."""
    match form:
        case Form.JSON:
            write(json.dumps(plain(rows), indent=2))
        case Form.JSONL:
            for row in rows:
                write(json.dumps(plain(row)))
        case Form.TABLE:
            table(columns, [[row[name] for name in columns] for row in rows])


def show_document(document: object, form: Form, as_table: Callable[[], None] | None = None) -> None:
    """Print one object. ``as_table`` prints the table; without it a table has one row per field."""
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
    """Write one line of data and flush it, so that a reading process gets it at once.

    Raises ``OutboxError`` if stdout is closed or cannot be written, for example on a full disk.
    """
    out = _stdout()
    try:
        out.write(line + "\n")
        out.flush()
    except BrokenPipeError:
        raise  # typer exits quietly: the reader has ended, as in `outbox dead list | head -1`
    except OSError as error:
        raise OutboxError(f"cannot write to standard output: {error.strerror}; give it another place") from error


def _stdout() -> TextIO:
    """sys.stdout, which is None if the process was started with a closed stdout; then raises ``OutboxError``."""
    if sys.stdout is None:
        raise OutboxError("standard output is closed; give it another place")
    return sys.stdout


def is_interactive() -> bool:
    return sys.stdin.isatty() and sys.stderr.isatty()


def agrees(question: str) -> bool:
    """Ask on stderr; whether the answer on stdin is yes."""
    sys.stderr.write(f"{question} [y/N]: ")
    sys.stderr.flush()
    return sys.stdin.readline().strip().lower() in ("y", "yes")


def tell(line: str) -> None:
    """Write one line for the operator to stderr."""
    typer.echo(line, err=True)


def table(columns: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    cells = [[_cell(value) for value in row] for row in rows]
    if _stdout().isatty():
        _rich_table(columns, cells)
        return
    widths = [max(map(len, column)) for column in zip(columns, *cells, strict=True)]
    for row in (list(columns), *cells):
        padded = (cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        write("  ".join(padded).rstrip())


def _rich_table(columns: Sequence[str], cells: Sequence[Sequence[str]]) -> None:
    from rich.console import Console

    console = Console()
    turned = _turned(columns, cells)
    if not cells:
        console.print("(none)")
    elif _width(columns, cells) <= console.width:
        console.print(_lined(columns, cells))
    elif _width(*turned) <= console.width:
        console.print(_lined(*turned))
    else:
        for row in cells:
            console.print(_lined(*_turned(columns, [row])))


def _turned(columns: Sequence[str], cells: Sequence[Sequence[str]]) -> tuple[Sequence[str], Sequence[Sequence[str]]]:
    """The table transposed: one line per column, one column per row."""
    head, *lines = zip(columns, *cells, strict=True)
    return head, lines


def _width(columns: Sequence[str], cells: Sequence[Sequence[str]]) -> int:
    """The minimum width of a table in terminal cells, with the last column wrapped to FOLDED_WIDTH."""
    from rich.cells import cell_len

    *whole, last = [max(map(cell_len, column)) for column in zip(columns, *cells, strict=True)]
    return sum(whole) + min(last, FOLDED_WIDTH) + BORDER_WIDTH * len(columns) + 1


def _lined(columns: Sequence[str], cells: Sequence[Sequence[str]]) -> Table:
    from rich.table import Table
    from rich.text import Text

    made = Table(header_style="bold")
    for name in columns[:-1]:
        made.add_column(name, no_wrap=True)
    made.add_column(columns[-1], overflow="fold")
    for row in cells:
        made.add_row(*map(Text, row))  # Text: rich would read square brackets in a str as markup
    return made


def _cell(value: object) -> str:
    """``value`` as one line of printable text: text of a server's answer must not move the terminal's cursor."""
    simple = plain(value)
    if simple is None:
        return "-"
    if isinstance(simple, float):
        return f"{simple:.1f}"
    text = simple if isinstance(simple, str) else json.dumps(simple)
    return printable(text)
