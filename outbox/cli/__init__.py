"""The command line: ``outbox``, or ``python -m outbox``.

    main ── app ─┬─ enqueue    JSON Lines in
                 ├─ dispatch   worker, drain
                 ├─ inspect    migrate, status, show, audit, config show
                 ├─ preview    what would leave next
                 ├─ dead       list, show, requeue, discard
                 ├─ doctor     every problem at once, with what mends it
                 ├─ simulate   beacon
                 ├─ demo       the whole story on this machine
                 └─ bench      benchmarks, of a source checkout

Data goes to stdout, everything else to stderr. Exit codes: 0 ok, 1 failure, 2 usage, 3 not found or work remains,
4 licence refused, 6 schema out of date, 75 try again later, 130 interrupted.
"""

from __future__ import annotations

import sys
import traceback
from functools import cache
from io import TextIOWrapper
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer
from typer.core import TyperGroup

from outbox import __version__
from outbox.cli import bench, dead, demo, dispatch, doctor, enqueue, inspect, preview, simulate
from outbox.cli.context import INTERRUPTED, Globals
from outbox.cli.output import write
from outbox.errors import OutboxError


class Interrupted(OutboxError):
    """Ctrl-C."""

    exit_code = INTERRUPTED


class _Commands(TyperGroup):
    def invoke(self, context: Any) -> Any:
        try:
            return super().invoke(context)
        except KeyboardInterrupt:  # typer would end with 130, and say nothing
            raise Interrupted("interrupted; what is there by now: outbox status") from None


app = typer.Typer(
    name="outbox",
    cls=_Commands,
    help="The transactional outbox for usage and telemetry.",
    no_args_is_help=True,
    rich_markup_mode=None,  # plain help and errors: they are read in logs too
    pretty_exceptions_enable=False,  # would show the values of variables, a licence among them
)
for _commands in (enqueue, dispatch, inspect, preview, dead, doctor, simulate, demo, bench):
    _commands.register(app)


def _tell_version(wanted: bool) -> None:
    if wanted:
        write(f"outbox {__version__}")
        raise typer.Exit


@app.callback()
def _globals(
    context: typer.Context,
    database_url: Annotated[
        str | None, typer.Option(help="The database, as a SQLAlchemy URL; wins over OUTBOX_DATABASE_URL.")
    ] = None,
    config: Annotated[
        Path | None, typer.Option(help="A .toml or .yaml file to read in place of those of the current directory.")
    ] = None,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
    _version: Annotated[
        bool, typer.Option("--version", is_eager=True, callback=_tell_version, help="Tell the version.")
    ] = False,
) -> None:
    given: Globals = context.obj
    given.database_url = database_url
    given.config = config
    given.debug = debug


@cache
def _command() -> TyperGroup:
    """The tree of commands: typer reads every signature for it."""
    command = typer.main.get_command(app)
    assert isinstance(command, TyperGroup)
    return command


def main(arguments: list[str] | None = None) -> NoReturn:
    """Run one command and exit with its code. ``arguments``: ``sys.argv[1:]`` by default."""
    given = Globals()
    if isinstance(sys.stdout, TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # a locale without a letter of the data does not stop it
    try:
        _command()(arguments, prog_name="outbox", obj=given)
    except OutboxError as error:
        _fail(str(error), error.exit_code, given)
    except Exception as error:  # noqa: BLE001 - the outermost frame: a person gets a line, not a stack
        # Not its text: that of an unforeseen error may hold anything.
        hint = "" if given.debug else "; run it again as: outbox --debug ..."
        _fail(f"unexpected {type(error).__name__}{hint}", 1, given)
    sys.exit(0)


def _fail(what: str, exit_code: int, given: Globals) -> NoReturn:
    if given.debug:
        traceback.print_exc()
    typer.echo(f"error: {what}", err=True)
    sys.exit(exit_code)
