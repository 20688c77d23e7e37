"""The command line: ``outbox``, or ``python -m outbox``.

    main ── app ─┬─ enqueue    JSON Lines in
                 ├─ dispatch   worker, drain
                 ├─ inspect    migrate, status, show, audit, config show
                 ├─ preview    the next request bodies, without sending them
                 ├─ dead       list, show, requeue, discard
                 ├─ doctor     every problem in one run, each with its remedy
                 ├─ simulate   beacon
                 ├─ demo       producers, an outage, a crash and recovery on this machine
                 └─ bench      the benchmarks of a source checkout

Data goes to stdout, everything else to stderr. Exit codes: 0 ok, 1 failure, 2 usage, 3 not found or work remains,
4 licence refused, 6 schema out of date, 75 transient, 130 interrupted, 143 ended by SIGTERM.
"""

from __future__ import annotations

import sys
import traceback
from collections.abc import Sequence
from functools import cache
from io import TextIOWrapper
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer
from typer.core import TyperGroup

from outbox import __version__
from outbox.cli import bench, dead, demo, dispatch, doctor, enqueue, inspect, preview, simulate
from outbox.cli.context import Globals, Interrupted
from outbox.cli.output import write
from outbox.errors import OutboxError

_GLOBAL = ("--database-url", "--config")
"""The global options that take a value."""


class _Commands(TyperGroup):
    def parse_args(self, context: Any, args: list[str]) -> list[str]:
        return super().parse_args(context, _globals_first(args))

    def invoke(self, context: Any) -> Any:
        try:
            return super().invoke(context)
        except KeyboardInterrupt:  # typer would exit with 130 without a message
            raise Interrupted("interrupted; what is there by now: outbox status") from None


def _globals_first(arguments: Sequence[str]) -> list[str]:
    """The arguments with the global options in front, where typer expects them: a person may write them anywhere."""
    first: list[str] = []
    others: list[str] = []
    rest = iter(arguments)
    for each in rest:
        if each == "--":
            others += [each, *rest]
        elif each in _GLOBAL:
            if (value := next(rest, None)) is None:
                return [*first, each]  # alone, so that typer says what it lacks
            first += [each, value]
        elif each == "--debug" or each.startswith(tuple(f"{name}=" for name in _GLOBAL)):
            first.append(each)
        else:
            others.append(each)
    return first + others


app = typer.Typer(
    name="outbox",
    cls=_Commands,
    help="The transactional outbox for usage and telemetry.",
    no_args_is_help=True,
    rich_markup_mode=None,  # plain help and errors, which stay readable in logs
    pretty_exceptions_enable=False,  # they would print the values of local variables, a licence among them
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
    """The tree of commands, built once: typer inspects the signature of every command for it."""
    command = typer.main.get_command(app)
    assert isinstance(command, TyperGroup)
    return command


def main(arguments: list[str] | None = None) -> NoReturn:
    """Run one command and exit with its code. ``arguments``: ``sys.argv[1:]`` by default."""
    given = Globals()
    if isinstance(sys.stdout, TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # characters that the locale cannot encode are escaped
    try:
        _command()(arguments, prog_name="outbox", obj=given)
    except OutboxError as error:
        _fail(str(error), error.exit_code, given)
    except Exception as error:  # noqa: BLE001 - the outermost frame: print one line instead of a traceback
        # The text of an unforeseen error is left out: it may contain a secret.
        hint = "" if given.debug else "; run it again as: outbox --debug ..."
        _fail(f"unexpected {type(error).__name__}{hint}", 1, given)
    sys.exit(0)


def _fail(what: str, exit_code: int, given: Globals) -> NoReturn:
    if given.debug:
        traceback.print_exc()
    typer.echo(f"error: {what}", err=True)
    sys.exit(exit_code)
