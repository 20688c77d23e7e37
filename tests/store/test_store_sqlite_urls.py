"""SQLite: which URLs and engines name a file that can hold an outbox."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path
from types import ModuleType

import pytest
from sqlalchemy import create_engine

from outbox import ConfigError, Outbox
from tests.support.intervals import interval


@pytest.mark.parametrize(
    "url",
    [
        "sqlite://",
        "sqlite:///:memory:",
        "sqlite:///file::memory:?uri=true",
        "sqlite:///file::memory:?cache=shared&uri=true",
        "sqlite:///file:name?mode=memory&cache=shared&uri=true",
        "sqlite:///file:/name?vfs=memdb&uri=true",
    ],
)
def test_a_database_in_memory_is_refused_however_it_is_spelled(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match="in memory is lost with its process"):
        Outbox(url)


def test_an_engine_whose_url_names_no_file_is_told_to_name_it(tmp_path: Path) -> None:
    host = create_engine("sqlite://", creator=lambda: sqlite3.connect(tmp_path / "outbox.db"))
    with pytest.raises(ConfigError, match=r"names no file .* creator= .* Name it: create_engine\('sqlite:///outbox.db"):
        Outbox(host)


def test_an_engine_of_another_library_such_as_sqlcipher_is_refused_and_its_file_left_alone(tmp_path: Path) -> None:
    library = ModuleType("sqlcipher3")
    vars(library).update({name: value for name, value in vars(sqlite3).items() if not name.startswith("__")})
    setattr(library, "Error", type("Error", (Exception,), {}))  # noqa: B010 - mypy: it has no such attribute
    host = create_engine(f"sqlite:///{tmp_path / 'secret.db'}", module=library)
    with pytest.raises(ConfigError, match="sqlcipher3 is not Python's own sqlite3"):
        Outbox(host)
    assert not list(tmp_path.iterdir())


def test_a_url_of_another_library_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"sqlite\+pysqlcipher is not Python's own sqlite3") as refused:
        Outbox(f"sqlite+pysqlcipher://:secret@/{tmp_path / 'secret.db'}")
    assert ":secret" not in str(refused.value)


def test_the_outbox_waits_for_no_lock_of_a_cache_that_the_host_shares(tmp_path: Path) -> None:
    host = create_engine(f"sqlite:///file:{tmp_path / 'outbox.db'}?cache=shared&uri=true")
    with Outbox(host) as box:
        box.migrate()
        with closing(host.raw_connection()) as connection, closing(connection.cursor()) as cursor:
            cursor.execute("BEGIN")
            cursor.execute("SELECT * FROM outbox_usage")
            cursor.fetchall()
            [id] = box.put(interval())
            connection.rollback()
        assert box.find(id) is not None
    host.dispose()
