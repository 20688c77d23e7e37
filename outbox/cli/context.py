"""What every command is given: the global options, and an outbox made of them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from outbox import wiring

if TYPE_CHECKING:
    from outbox.producer import Outbox
    from outbox.settings import Settings

FAILURE = 1
NOT_FOUND = 3
WORK_REMAINS = 3
INTERRUPTED = 130


@dataclass(slots=True)
class Globals:
    """The global options."""

    database_url: str | None = None
    config: Path | None = None
    debug: bool = False


def settings_of(context: typer.Context) -> Settings:
    given: Globals = context.obj
    return wiring.load_settings(given.config, given.database_url)


@contextmanager
def box_of(context: typer.Context) -> Iterator[Outbox]:
    """The outbox of the global options, closed at the end."""
    given: Globals = context.obj
    box = wiring.open_box(given.config, given.database_url)
    try:
        yield box
    finally:
        box.close()
