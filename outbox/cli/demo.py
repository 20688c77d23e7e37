"""``outbox demo``: producers, an outage, a crash and recovery on this machine."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from outbox.errors import ConfigError


def register(app: typer.Typer) -> None:
    app.command()(demo)


def demo(
    folder: Annotated[Path | None, typer.Option(help="Where to work; by default a new temporary folder.")] = None,
    seconds: Annotated[float, typer.Option(min=3, max=60, help="How long the producers write.")] = 12.0,
) -> None:
    """Play the whole story. Producers, an outage, a killed worker, recovery; ends with a table and a picture."""
    try:
        import matplotlib  # noqa: F401 - fail early: the picture is drawn at the end

        from outbox.demo import run
    except ImportError as error:
        raise ConfigError(f"the demo needs {error.name}; install beacon-outbox[demo]") from error
    if folder is not None:
        folder = folder.resolve()
        _make(folder)
        if (folder / "outbox.db").exists():
            raise ConfigError(f"{folder} holds the outbox of an earlier demo; name another --folder")
    raise typer.Exit(run(folder, seconds=seconds))


def _make(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"cannot work in {folder}: {error.strerror}; name another --folder") from error
