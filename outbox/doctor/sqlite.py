"""SQLite: the database file, its disk, the library's version, and the pragmas stored in the file."""

from __future__ import annotations

import re
import shlex
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, Engine, create_engine, event
from sqlalchemy.pool import NullPool

from outbox.doctor import files
from outbox.doctor.finding import Finding, ok, problem, skipped, warning
from outbox.doctor.patient import DATABASE_SECONDS, Check, Need, Patient
from outbox.settings_values import human_bytes
from outbox.store.database import Database
from outbox.store.dialects.open_files import holders

Version = tuple[int, ...]

WAL_RESET_FIXED: Version = (3, 51, 3)
WAL_RESET_BACKPORTS: tuple[Version, ...] = ((3, 50, 7), (3, 44, 6))
LONG_LOG_BYTES = 256 * 1024**2
_MOUNTS = Path("/proc/self/mounts")


def reader(database: Database) -> Engine:
    """An engine that opens the file with ``mode=ro``.

    The outbox's own engine cannot be used: it sets pragmas of the file when it connects, which writes to it.
    """
    path = path_of(database)

    def connect() -> sqlite3.Connection:
        database.dialect.require_store(database.url)
        uri = f"{path.absolute().as_uri()}?mode=ro"
        return sqlite3.connect(uri, uri=True, timeout=DATABASE_SECONDS, check_same_thread=False, isolation_level=None)

    engine = create_engine("sqlite+pysqlite://", creator=connect, poolclass=NullPool, hide_parameters=True)
    event.listen(engine, "begin", _begin)
    return engine


def _begin(connection: Connection) -> None:
    connection.exec_driver_sql("BEGIN")  # one snapshot: in autocommit mode each SELECT would have its own


def path_of(database: Database) -> Path:
    return Path(re.sub(r"^file:|\?.*$", "", str(database.url.database)))


def has_wal_reset_bug(version: Version) -> bool:
    """Whether a checkpoint may lose committed pages where several connections write (https://sqlite.org/wal.html)."""
    if version >= WAL_RESET_FIXED:
        return False
    return not any(version[:2] == fixed[:2] and version >= fixed for fixed in WAL_RESET_BACKPORTS)


def judge_version(version: Version) -> Finding:
    name = f"SQLite {'.'.join(map(str, version))}"
    if not has_wal_reset_bug(version):
        return ok(name)
    return warning(
        f"{name} has the WAL-reset bug: with several connections a checkpoint at the wrong moment can corrupt the file",
        "use a Python with SQLite 3.51.3 or later (also 3.50.7, 3.44.6); until then one process writes the file",
    )


def _files(patient: Patient) -> Iterator[Finding]:
    path = path_of(patient.database)
    if not path.exists():
        yield skipped(f"{path}: there is no such file yet")
        return
    yield from files.modes([path.with_name(path.name + suffix) for suffix in ("", "-wal", "-shm")])
    yield from files.folder(path.absolute().parent)


def _removed(patient: Patient) -> Iterator[Finding]:
    for holder in holders(str(path_of(patient.database))):
        yield problem(
            f"still open in {holder}, though removed or replaced: {', '.join(holder.names)}",
            f"end process {holder.pid}, then start it again; stop all that uses the file before you move or restore it",
        )


def _disk(patient: Patient) -> Iterator[Finding]:
    folder = path_of(patient.database).absolute().parent
    if not folder.is_dir():
        yield problem(f"{folder}: there is no such folder", f"mkdir -p {shlex.quote(str(folder))}")
        return
    yield from files.space(folder)
    kind = files.filesystem(folder.resolve(), _MOUNTS.read_text()) if _MOUNTS.exists() else ""
    if files.is_network(kind):
        yield problem(
            f"{folder} is on a network file system ({kind}), where SQLite's locks and its log do not work",
            "OUTBOX_DATABASE_URL=sqlite:////a/local/disk/outbox.db, or use PostgreSQL",
        )


def _version(_patient: Patient) -> Iterator[Finding]:
    yield judge_version(sqlite3.sqlite_version_info)


def _durability(patient: Patient) -> Iterator[Finding]:
    with patient.read() as connection:
        journal = _pragma(connection, "journal_mode")
    if journal != "wal":
        yield warning(
            f"journal_mode is {journal}: readers and writers wait for each other",
            _sql(patient, "PRAGMA journal_mode = WAL"),
        )
    if patient.settings.sqlite_synchronous == "FULL":
        yield ok("synchronous FULL: what is committed survives a power cut")
    else:
        yield warning("synchronous NORMAL: a power cut may lose the last commits", "OUTBOX_SQLITE_SYNCHRONOUS=FULL")


def _vacuum(patient: Patient) -> Iterator[Finding]:
    path = path_of(patient.database)
    with patient.read() as connection:
        mode = _pragma(connection, "auto_vacuum")
        free = _pragma(connection, "freelist_count") * _pragma(connection, "page_size")
    if mode:
        yield ok(f"auto_vacuum is on; {human_bytes(free)} of {human_bytes(path.stat().st_size)} are free inside")
    else:
        yield warning(
            f"auto_vacuum is off: the file never shrinks, {human_bytes(free)} of it are free inside",
            _sql(patient, "PRAGMA auto_vacuum = INCREMENTAL; VACUUM"),
        )
    log = path.with_name(path.name + "-wal")
    state = files.stat_of(log)
    if state is not None and state.st_size > LONG_LOG_BYTES:
        yield warning(
            f"{log.name} has {human_bytes(state.st_size)}: a long read holds the checkpoint back",
            f"end what reads, then: {_sql(patient, 'PRAGMA wal_checkpoint(TRUNCATE)')}",
        )


def _pragma(connection: Connection, name: str) -> Any:
    return connection.exec_driver_sql(f"PRAGMA {name}").scalar_one()


def _sql(patient: Patient, statement: str) -> str:
    return f"sqlite3 {shlex.quote(str(path_of(patient.database)))} {shlex.quote(statement)}"


CHECKS = (
    Check("files", Need.SETTINGS, _files),
    Check("removed", Need.SETTINGS, _removed),
    Check("disk", Need.SETTINGS, _disk),
    Check("version", Need.SETTINGS, _version),
    Check("durability", Need.DATABASE, _durability),
    Check("vacuum", Need.DATABASE, _vacuum),
)
