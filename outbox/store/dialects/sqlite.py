"""SQLite: one file, one writer at a time."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, Engine, PoolProxiedConnection, text
from sqlalchemy.engine import URL
from sqlalchemy.engine import Dialect as Driver
from sqlalchemy.exc import DBAPIError

from outbox.errors import ConfigError, DatabaseUnavailable, SchemaOutOfDate
from outbox.store.dialects.base import Dialect, Inserted, Look, Row
from outbox.store.dialects.sqlite_watch import watching

_DRIVERS = ("pysqlite", "aiosqlite")
_NOT_OURS = (
    "is not Python's own sqlite3, by which the outbox opens its file: an encrypted file would become a plain one, and"
    " two libraries in one process undo each other's locks on a file. Give the outbox a file of its own:"
    " sqlite:///outbox.db"
)
_SHORT_READ = "SQLITE_IOERR_SHORT_READ"


class SQLite(Dialect):
    name = "sqlite"
    sync_driver = "pysqlite"
    worker_isolation = None  # one isolation level: serializable
    snapshot_isolation = None  # a deferred transaction reads one snapshot in WAL mode
    single_writer = autocommits = True
    optimistic_write = "triggered"
    reads_ahead = "before"
    inserted_at_once, inserted_at_once_bytes = 50, 32 * 1024
    """One statement takes two thirds of the time that one for each row takes. The driver caches a statement for each
    number of rows, with the parameters it was given last."""
    waits_ms = 30_000
    """How long a transaction waits for a lock."""
    purge_chunk = 500  # producers wait while we hold the only write lock

    def sync_url(self, url: URL) -> URL:
        # A shared cache has locks of its own between the connections of a process, and no timeout for them.
        return super().sync_url(url).difference_update_query(["cache"])

    def check_url(self, url: URL) -> None:
        if url.get_driver_name() not in _DRIVERS:
            raise ConfigError(f"OUTBOX_DATABASE_URL: {url.drivername} {_NOT_OURS}")
        kept = url.query.items()
        named = str(url.database or "").removeprefix("file:")
        if named in ("", ":memory:") or ("mode", "memory") in kept or ("vfs", "memdb") in kept:
            raise ConfigError(
                "OUTBOX_DATABASE_URL: an outbox in memory is lost with its process. Name a file: sqlite:///outbox.db"
            )

    def check_host(self, engine: Engine) -> None:
        module = getattr(engine.dialect.loaded_dbapi, "sqlite", engine.dialect.loaded_dbapi)  # under aiosqlite
        if not issubclass(getattr(module, "Error", Exception), sqlite3.Error):
            raise ConfigError(f"The host's engine: {module.__name__} {_NOT_OURS}")
        if engine.url.database is None:
            raise ConfigError(
                "The host's engine: its URL names no file (it is in memory, or creator= knows it), and the outbox opens"
                " the file itself. Name it: create_engine('sqlite:///outbox.db')"
            )

    def create_store(self, url: URL) -> None:
        # Created readable by its owner alone; SQLite gives -wal and -shm the mode of the database file.
        try:
            os.close(os.open(self._path(url), os.O_CREAT | os.O_RDWR, 0o600))
        except OSError as error:
            raise DatabaseUnavailable(
                f"{url.database}: {error.strerror}. Name a file in a folder that exists and is writable."
            ) from error

    def require_store(self, url: URL) -> None:
        if not Path(self._path(url)).exists():
            raise SchemaOutOfDate(f"{url.database}: there is no such file. Run: outbox migrate")

    @staticmethod
    def _path(url: URL) -> str:
        return str(url.database).removeprefix("file:")

    def prepare(self, driver_connection: Any, *, synchronous: str) -> None:
        driver_connection.isolation_level = None  # the driver begins no transaction: sqlite_lock.begin does, IMMEDIATE
        (pages,) = driver_connection.execute("PRAGMA page_count").fetchone()
        if not pages:  # takes effect on an empty file only; on any other it would wait for the write lock
            driver_connection.execute("PRAGMA auto_vacuum = INCREMENTAL")
        super().prepare(driver_connection, synchronous=synchronous)

    def session_setup(self, *, synchronous: str) -> Sequence[str]:
        return (
            "PRAGMA journal_mode = WAL",
            f"PRAGMA synchronous = {synchronous}",
            f"PRAGMA busy_timeout = {self.waits_ms}",
            "PRAGMA journal_size_limit = 67108864",  # shrinks a -wal file that a burst has grown
        )

    def engine_arguments(self, *, synchronous: str) -> dict[str, Any]:
        return {"connect_args": {"timeout": 30.0, "check_same_thread": False}}

    def insertion(self, table: str, rows: Sequence[Row], driver: str) -> tuple[str, Sequence[Any]]:
        # The conflict target matters: without it a taken seq would silently swallow the row.
        several = len(rows) > 1 and self.at_once(rows)
        marks = ", ".join(["(?, ?, ?)"] * len(rows)) if several else "(?, ?, ?)"
        sql = f"INSERT INTO {table} (id, payload, size) VALUES {marks} ON CONFLICT (id) DO NOTHING"  # noqa: S608
        if several:
            return sql, tuple([value for row in rows for value in row])
        return sql, rows[0] if len(rows) == 1 else list(rows)

    def _chunks(self, rows: Sequence[Row]) -> Iterator[Sequence[Row]]:
        most = self.inserted_at_once
        return (rows[start : start + most] for start in range(0, len(rows), most))

    def insert(self, connection: Connection, table: str, rows: Sequence[Row]) -> int:
        statements = (self.insertion(table, some, connection.dialect.driver) for some in self._chunks(rows))
        with nullcontext() if self.at_once(rows) else self.all_or_none(connection, "outbox_insert"):
            return sum(connection.exec_driver_sql(sql, values).rowcount for sql, values in statements)

    def commits_each(self, connection: Connection) -> bool:
        driver_connection: Any = connection.connection.driver_connection
        each = driver_connection.isolation_level is None or getattr(driver_connection, "autocommit", None) is True
        return each and not driver_connection.in_transaction

    def all_or_none(self, connection: Connection, savepoint: str) -> AbstractContextManager[None]:
        # In an open transaction the caller rolls back: a savepoint copies pages, which costs 30 % more for each row.
        block = super().all_or_none(connection, savepoint)
        return block if self.commits_each(connection) else nullcontext()

    def put(
        self, pooled: PoolProxiedConnection, table: str, rows: Sequence[Row], by: Driver, *, numbered: bool = False
    ) -> Inserted:
        if self.at_once(rows):
            return super().put(pooled, table, rows, by, numbered=numbered)
        return Inserted(sum(super(SQLite, self).put(pooled, table, some, by).rows for some in self._chunks(rows)))

    def first_number(self, cursor: Any, rows: int) -> int | None:
        return int(cursor.lastrowid) - rows + 1  # lastrowid is the last row's; no other transaction writes meanwhile

    def sequence_position(self, connection: Connection, table: str) -> int:
        found = connection.execute(text("SELECT seq FROM sqlite_sequence WHERE name = :t"), {"t": table}).scalar()
        highest = connection.execute(text(f"SELECT max(seq) FROM {table}")).scalar()  # noqa: S608 - our name
        return max(found or 0, highest or 0)  # AUTOINCREMENT continues from the larger of the two

    def advance_sequence(self, connection: Connection, table: str, beyond: int) -> None:
        parameters = {"t": table, "n": beyond}
        connection.execute(text("DELETE FROM sqlite_sequence WHERE name = :t AND seq < :n"), parameters)
        connection.execute(
            text(
                "INSERT INTO sqlite_sequence (name, seq) SELECT :t, :n"
                " WHERE NOT EXISTS (SELECT 1 FROM sqlite_sequence WHERE name = :t)"
            ),
            parameters,
        )

    def advance_sequence_sql(self, table: str, beyond: int) -> str:
        return (
            f"DELETE FROM sqlite_sequence WHERE name = '{table}'; "  # noqa: S608 - shown, not run
            f"INSERT INTO sqlite_sequence (name, seq) VALUES ('{table}', {beyond})"
        )

    notifies = True

    def watch_commits(
        self, engine: Engine, lanes: Mapping[str, str], here: Mapping[str, int]
    ) -> AbstractContextManager[Look]:
        return watching(engine, lanes, here, self.waits_ms)

    spare_pages = 256
    give_back_pages = 64
    """Pages returned at a time: producers wait for a millisecond or two."""

    def give_back(self, connection: Connection) -> bool:
        free = connection.exec_driver_sql("PRAGMA freelist_count").scalar_one()
        pages = connection.exec_driver_sql("PRAGMA page_count").scalar_one()
        surplus = free - max(self.spare_pages, pages // 10)  # some stay for the next rows
        for _ in range(min(surplus, self.give_back_pages)):
            connection.exec_driver_sql("PRAGMA incremental_vacuum(1)")  # one page a call: the driver steps once
        return bool(surplus > self.give_back_pages)

    def make_room(self, connection: Connection) -> None:
        # The next write begins the -wal file anew. By itself SQLite does this after a commit that makes the file 1,000
        # pages long: on a full disk no commit does.
        connection.exec_driver_sql("PRAGMA wal_checkpoint(PASSIVE)")

    def writers(self, connection: Connection, table: str) -> frozenset[str] | None:
        return frozenset()  # the caller holds the only write lock

    def readable_time(self, column: str) -> str:
        return f"strftime('%Y-%m-%dT%H:%M:%fZ', {column} / 1000000.0, 'unixepoch')"

    def member_of(self, seq: str, members: str) -> str:
        runs = f"json_each('[\"' || replace({members}, ',', '\",\"') || '\"]')"
        lo = "CAST(value AS INTEGER)"  # reads digits up to the dash
        hi = "CAST(substr(value, instr(value, '-') + 1) AS INTEGER)"  # without a dash: the whole value
        return f"EXISTS (SELECT 1 FROM {runs} WHERE {seq} BETWEEN {lo} AND {hi})"  # noqa: S608 - column names

    def error_code(self, error: DBAPIError) -> Any:
        """SQLite's primary error name: SQLITE_IOERR also for SQLITE_IOERR_FSYNC."""
        name = getattr(error.orig, "sqlite_errorname", None)
        if name == _SHORT_READ:
            return name
        return name and "_".join(name.split("_")[:2])

    def may_hold(self, error: DBAPIError) -> bool:
        return self.error_code(error) in (
            "SQLITE_IOERR",
            _SHORT_READ,
            "SQLITE_FULL",
            "SQLITE_NOMEM",
            "SQLITE_INTERRUPT",
        )

    def is_missing_table(self, error: DBAPIError) -> bool:
        return "no such table" in str(error.orig)

    def is_missing_column(self, error: DBAPIError) -> bool:
        return "no such column" in str(error.orig) or "has no column named" in str(error.orig)

    damaged_codes = ("SQLITE_NOTADB", "SQLITE_CORRUPT")
    advice = {  # noqa: RUF012 - ClassVar in the base
        "SQLITE_BUSY": "Another connection held the write lock all the time, perhaps an open transaction of this very"
        " process: end what it does, then try again.",
        "SQLITE_FULL": "Make room on the disk of the file; what waits is delivered by itself then.",
        "SQLITE_READONLY": "Let this account write the file and its folder, then try again.",
        "SQLITE_CANTOPEN": "Let this account read and write the file and its folder, then try again.",
        "SQLITE_IOERR": "The disk failed, the kernel's log says how; try again when it is well.",
        _SHORT_READ: "The file, or its log, is shorter than SQLite knows it to be: its -wal or -shm file was perhaps"
        " removed while it was in use. Stop every process that uses the file, then start them again: the last one to"
        " end writes what the log holds into the file.",
        "SQLITE_NOTADB": "It is damaged or another program's: check OUTBOX_DATABASE_URL, or restore a backup.",
        "SQLITE_CORRUPT": "The file is damaged. Keep it, its -wal file too; restore a backup, or save what can be read:"
        " sqlite3 FILE .recover",
    }
