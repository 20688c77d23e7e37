from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import Connection, Engine

from tests.cli.command import Command
from tests.support.databases import Database


@pytest.fixture
def offline(tmp_path: Path) -> Command:
    """``outbox`` on a fresh migrated SQLite file, offline."""
    outbox = Command(tmp_path, offline="true")
    assert outbox("migrate").code == 0
    return outbox


@pytest.fixture
def unmigrated(tmp_path: Path, database: Database) -> Command:
    """``outbox`` offline, on each of the databases; there are no tables yet."""
    return Command(tmp_path, offline="true", database_url=database.url)


@pytest.fixture
def migrated(unmigrated: Command) -> Command:
    assert unmigrated("migrate").code == 0
    return unmigrated


@pytest.fixture
def admin(engine: Engine) -> Iterator[Connection]:
    """Where an operator types SQL: each statement by itself."""
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        yield connection
