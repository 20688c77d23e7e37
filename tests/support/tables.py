"""Creates the outbox's tables in a test's database faster than ``migrate`` does: most tests need no upgrade.

On SQLite it copies a file that was migrated once. On servers it runs the SQL script, which tests/test_migrate.py shows
to make the same schema. Both are cached by folder of revisions, since some tests have one of their own.
"""

from __future__ import annotations

import atexit
import shutil
import tempfile
from contextlib import closing
from functools import cache
from pathlib import Path

from sqlalchemy import create_engine, make_url

from outbox import Outbox, Settings
from outbox.store import migrate
from tests.support.databases import Database


def make_tables(database: Database, box: Outbox) -> None:
    """Bring the empty ``database`` of ``box`` to the newest revision."""
    if database.name == "sqlite":
        shutil.copyfile(_migrated_file(migrate.SCRIPTS), str(make_url(database.url).database))
        return
    engine = create_engine(database.url, isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        for statement in _statements(database.name, box):
            connection.exec_driver_sql(statement)
    engine.dispose()


@cache
def _migrated_file(_revisions: str) -> Path:
    folder = Path(tempfile.mkdtemp(prefix="outbox-tables-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    path = folder / "outbox.db"
    with closing(Outbox(f"sqlite:///{path}", settings=Settings())) as box:
        box.migrate()
    return path


_SCRIPTS: dict[tuple[str, str], list[str]] = {}


def _statements(name: str, box: Outbox) -> list[str]:
    key = (name, migrate.SCRIPTS)
    if key not in _SCRIPTS:
        parts = (part.strip() for part in box.migration_sql().split(";\n"))
        _SCRIPTS[key] = [part for part in parts if part and part not in ("BEGIN", "COMMIT", "COMMIT;")]
    return _SCRIPTS[key]
