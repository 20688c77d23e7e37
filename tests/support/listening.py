"""What an engine does while a block runs, heard through SQLAlchemy's events."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from sqlalchemy import Engine, event


@contextmanager
def statements(engine: Engine) -> Iterator[list[str]]:
    """The SQL of each statement that ``engine`` executes, in order."""
    heard: list[str] = []
    with _listening(engine, "before_cursor_execute", lambda _connection, _cursor, sql, *_: heard.append(sql)):
        yield heard


@contextmanager
def checkouts(engine: Engine) -> Iterator[list[Any]]:
    """The driver's connection of each checkout from the pool of ``engine``, in order."""
    heard: list[Any] = []
    with _listening(engine, "checkout", lambda connection, *_: heard.append(connection)):
        yield heard


@contextmanager
def _listening(engine: Engine, name: str, listener: Callable[..., object]) -> Iterator[None]:
    event.listen(engine, name, listener)
    try:
        yield
    finally:
        event.remove(engine, name, listener)
