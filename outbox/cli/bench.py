"""``outbox bench``: runs the benchmarks, which are in the source checkout and not in the installed package."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

import typer

import outbox
from outbox.errors import ConfigError

_HELP = "--help"
_PACKAGE = Path(outbox.__file__).resolve().parent


def register(app: typer.Typer) -> None:
    # All options, --help included, are passed on to the command line of the benchmarks.
    passes_on = {"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []}
    app.command(context_settings=passes_on, options_metavar="NAME [OPTIONS]")(bench)


def bench(context: typer.Context) -> None:
    """Measure against a loop written by hand. Needs a source checkout; its benchmarks: outbox bench --help."""
    checkout = _checkout()
    if checkout is None and _HELP in context.args:
        typer.echo(context.get_help())
        raise typer.Exit
    if checkout is None:
        raise ConfigError(
            "the benchmarks are not installed with the package: clone its repository, "
            "and run there: make bench, or outbox bench NAME"
        )
    if checkout != _PACKAGE.parent:
        typer.echo(f"what is measured is the installed package, {_PACKAGE}", err=True)
    sys.path.insert(0, str(checkout))
    try:
        command = importlib.import_module("benchmarks.command")
    except ImportError as error:
        raise ConfigError(f"the benchmarks need {error.name}; run them in {checkout} by: make bench") from error
    raise typer.Exit(command.main(context.args))


def _checkout() -> Path | None:
    """The folder above the package, or else the current folder, if it contains the benchmarks; None if neither does."""
    return next((folder for folder in (_PACKAGE.parent, Path.cwd()) if _has_benchmarks(folder)), None)


def _has_benchmarks(folder: Path) -> bool:
    return (folder / "benchmarks" / "bars.toml").is_file()  # another project may have a folder "benchmarks" too
