"""The context of every command: the global options, and the outbox and settings that they select."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from outbox import wiring
from outbox.errors import OutboxError

if TYPE_CHECKING:
    from outbox.producer import Outbox
    from outbox.settings import Settings

FAILURE = 1
NOT_FOUND = 3
WORK_REMAINS = 3
INTERRUPTED = 130


class Interrupted(OutboxError):
    """Ended by Ctrl-C, or by the signal ``by``. The exit code is the shell's convention, 128 + the signal's number."""

    def __init__(self, message: str, by: int | None = None) -> None:
        super().__init__(message)
        self.exit_code = INTERRUPTED if by is None else 128 + by


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
    """The outbox that the global options select; it is closed at the end of the block."""
    given: Globals = context.obj
    box = wiring.open_box(given.config, given.database_url)
    try:
        yield box
    finally:
        box.close()
