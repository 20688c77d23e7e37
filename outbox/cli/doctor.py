"""``outbox doctor``: every problem in one run, each with its remedy."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING

import typer

from outbox.cli.context import FAILURE, Globals
from outbox.cli.output import Form, Output, show_rows, tell
from outbox.core.text import printable

if TYPE_CHECKING:
    from outbox.doctor import Finding

COLUMNS = ("status", "check", "found", "mend")
STYLES = {"ok": "green", "warning": "yellow", "problem": "bold red", "skipped": "dim"}


def register(app: typer.Typer) -> None:
    app.command()(doctor)


def doctor(context: typer.Context, output: Output = Form.TABLE) -> None:
    """Look for every problem at once, and say what mends each. Changes nothing. Ends with 1 when there is one."""
    from outbox.doctor import Status, examine

    given: Globals = context.obj
    findings = list(examine(given.config, given.database_url))
    if output is Form.TABLE and sys.stdout.isatty():
        _on_terminal(findings)
    else:
        show_rows([asdict(finding) for finding in findings], COLUMNS, output)
    counts = Counter(finding.status for finding in findings)
    if output is Form.TABLE:
        tell(", ".join(f"{counts[status]} {status}" for status in Status))
    if counts[Status.PROBLEM]:
        raise typer.Exit(FAILURE)


def _on_terminal(findings: Sequence[Finding]) -> None:
    """Print a table whose text columns are wrapped to the terminal's width: unlike other tables this one is prose."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(header_style="bold", show_lines=True)
    for name in COLUMNS:
        table.add_column(name, no_wrap=name in ("status", "check"), overflow="fold")
    for finding in findings:
        status = Text(finding.status, style=STYLES[finding.status])
        table.add_row(status, finding.check, Text(printable(finding.found)), Text(printable(finding.mend or "-")))
    Console().print(table)
