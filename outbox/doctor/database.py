"""The checks that every kind of database shares: reachable, schema revision, clock skew against this host."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from sqlalchemy import Engine, select

from outbox.doctor import mysql, postgresql, sqlite
from outbox.doctor.finding import Finding, ok, problem_of
from outbox.doctor.patient import Check, Need, Patient
from outbox.doctor.skew import judge_skew
from outbox.errors import OutboxError
from outbox.store import migrate
from outbox.store.database import Database
from outbox.store.dialects import Dialect, now_us
from outbox.store.dialects.mysql import MySQL
from outbox.store.dialects.postgresql import PostgreSQL
from outbox.store.dialects.sqlite import SQLite


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind of database: ``reader`` makes a read-only engine, ``checks`` are those that only this kind has."""

    reader: Callable[[Database], Engine]
    checks: Sequence[Check]


KINDS: dict[type[Dialect], Kind] = {
    SQLite: Kind(sqlite.reader, sqlite.CHECKS),
    PostgreSQL: Kind(postgresql.reader, postgresql.CHECKS),
    MySQL: Kind(mysql.reader, mysql.CHECKS),
}


def checks_of(patient: Patient) -> Sequence[Check]:
    """The checks of the configured kind of database; none where the settings do not say which kind it is."""
    return KINDS[type(patient.database.dialect)].checks if patient.knows_database else ()


def _database(patient: Patient) -> Iterator[Finding]:
    started = time.monotonic()
    try:
        patient.open(KINDS[type(patient.database.dialect)].reader)
        with patient.read() as connection:
            migrate.schema_status(connection)  # reads a table: SQLite does not open its file for a SELECT 1
    except OutboxError as error:
        answers = patient.knows_database and patient.database.denied(error)
        if not answers:  # else each other check says what it may not read
            patient.lack(Need.DATABASE, "the database cannot be used")
            yield problem_of(error)
            return
    yield ok(f"{patient.database.safe_url} answers in {(time.monotonic() - started) * 1000:.0f} ms")


def _schema(patient: Patient) -> Iterator[Finding]:
    try:
        with patient.read() as connection:
            migrate.require_head(connection, patient.database.safe_url)
    except OutboxError as error:
        if patient.database.denied(error):
            raise
        patient.lack(Need.TABLES, "the tables are not those of this version")
        yield problem_of(error)
        return
    yield ok(f"at revision {migrate.head()}")


def _clock(patient: Patient) -> Iterator[Finding]:
    if patient.database.dialect.single_writer:
        yield ok("the database goes by the clock of this host")
        return
    with patient.read() as connection:
        connection.execute(select(1))  # a round trip first: the time to connect must not count as clock skew
        before = time.time()
        now = connection.execute(select(now_us())).scalar_one() / 1_000_000
        after = time.time()
    # Leases, retries and retention all use the database's clock, so skew against this host breaks none of them.
    means = "times in the log and in the tables do not compare"
    yield judge_skew("the database", (before + after) / 2 - now, (after - before) / 2, means=means, bearable=math.inf)


OPENING = (Check("database", Need.DATABASE, _database),)
CHECKS = (Check("schema", Need.DATABASE, _schema), Check("database clock", Need.DATABASE, _clock))
