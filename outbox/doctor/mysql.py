"""MySQL and MariaDB: version, durability, isolation and binlog format, old transactions, storage engine."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import closing
from typing import Any

from sqlalchemy import Connection, Engine, create_engine, event, text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.pool import NullPool

from outbox.doctor.finding import Finding, ok, problem, skipped, warning
from outbox.doctor.patient import DATABASE_SECONDS, Check, Need, Patient
from outbox.errors import OutboxError
from outbox.store.database import Database

Version = tuple[int, ...]

OLDEST: dict[bool, Version] = {True: (10, 6), False: (8, 0, 16)}
"""By whether the server is MariaDB: the first version with SKIP LOCKED, JSON_TABLE and enforced CHECK constraints."""
REMEMBERS: dict[bool, Version] = {True: (10, 2, 4), False: (8, 0)}
"""By whether the server is MariaDB: the first version whose AUTO_INCREMENT survives a restart. Older servers continue
from the highest number in the table, and so hand numbers of purged rows out again."""
OLD_SECONDS = 300
"""The age from which an open transaction is reported: the server keeps old row versions for it."""
ACCESS_DENIED = 1227


def reader(database: Database) -> Engine:
    """An engine of read-only REPEATABLE READ transactions, with the driver that the outbox itself uses."""
    seconds = int(DATABASE_SECONDS)
    engine = create_engine(
        database.dialect.sync_url(database.url),
        poolclass=NullPool,
        isolation_level="REPEATABLE READ",
        connect_args={"connect_timeout": seconds, "read_timeout": seconds, "write_timeout": seconds},
        hide_parameters=True,
    )
    event.listen(engine, "connect", _only_read)
    return engine


def _only_read(driver_connection: Any, _record: Any) -> None:
    with closing(driver_connection.cursor()) as cursor:
        cursor.execute("SET SESSION TRANSACTION READ ONLY")


def judge_version(reported: str) -> Iterator[Finding]:
    """``reported``: the result of ``SELECT VERSION()``, such as ``8.0.36`` or ``10.11.6-MariaDB-0+deb12u1``."""
    mariadb = "mariadb" in reported.lower()
    version = tuple(map(int, re.findall(r"\d+", reported.removeprefix("5.5.5-"))[:3]))  # MariaDB's replication prefix
    name = f"{'MariaDB' if mariadb else 'MySQL'} {'.'.join(map(str, version))}"
    oldest = ".".join(map(str, OLDEST[mariadb]))
    mend = f"upgrade to {oldest} or later"
    if version < REMEMBERS[mariadb]:
        yield problem(f"{name} forgets AUTO_INCREMENT at a restart: rows may come where nobody looks", mend)
    if version < OLDEST[mariadb]:
        yield problem(f"{name} lacks SKIP LOCKED, JSON_TABLE or enforced CHECK constraints", mend)
    else:
        yield ok(f"{name}; its sequences survive a restart")


def _version(patient: Patient) -> Iterator[Finding]:
    with patient.read() as connection:
        reported = str(connection.execute(text("SELECT VERSION()")).scalar_one())
        read_only = _variable(connection, "read_only")
    yield from judge_version(reported)
    if read_only == "ON":
        yield problem("read_only is on: nothing can be written", "SET GLOBAL read_only = OFF, or name the primary")


def _durability(patient: Patient) -> Iterator[Finding]:
    with patient.read() as connection:
        flush = _variable(connection, "innodb_flush_log_at_trx_commit")
    if flush == "1":
        yield ok("innodb_flush_log_at_trx_commit 1: what is committed survives a crash")
    else:
        yield warning(
            f"innodb_flush_log_at_trx_commit is {flush}: a crash may lose the last commits",
            "SET GLOBAL innodb_flush_log_at_trx_commit = 1",
        )


def _isolation(patient: Patient) -> Iterator[Finding]:
    with patient.read() as connection:
        level = _variable(connection, "transaction_isolation") or _variable(connection, "tx_isolation")
        logging, form = _variable(connection, "log_bin"), _variable(connection, "binlog_format")
    yield judge_isolation(level or "unknown", logging, form)


def judge_isolation(level: str, logging: str | None, form: str | None) -> Finding:
    """``level``: the server's default isolation level; ``logging``, ``form``: log_bin and binlog_format."""
    if logging == "ON" and form == "STATEMENT":
        return problem(
            "binlog_format is STATEMENT, which refuses the writes of workers: they are READ COMMITTED",
            "SET GLOBAL binlog_format = 'ROW'",
        )
    if level == "SERIALIZABLE":
        return warning(
            "the server's default is SERIALIZABLE: what hosts only read they lock, and workers wait for them",
            "SET GLOBAL TRANSACTION ISOLATION LEVEL READ COMMITTED",
        )
    return ok(f"workers are READ COMMITTED, whatever the server's default ({level})")


def _storage(patient: Patient) -> Iterator[Finding]:
    with patient.read() as connection:
        rows = connection.execute(
            text(
                "SELECT table_name AS name, engine AS engine FROM information_schema.tables"
                " WHERE table_schema = DATABASE() AND table_type = 'BASE TABLE' AND table_name LIKE 'outbox\\_%'"
                " AND engine <> 'InnoDB'"
            )
        ).all()
    for row in rows:
        yield problem(
            f"{row.name} is kept by {row.engine}, which knows no transactions: what is rolled back would be sent",
            f"ALTER TABLE {row.name} ENGINE = InnoDB",
        )
    if not rows:
        yield ok("every table is kept by InnoDB")


def _transactions(patient: Patient) -> Iterator[Finding]:
    try:
        with patient.read() as connection:
            rows = _old_transactions(connection)
    except OutboxError as error:
        cause = error.__cause__
        if not isinstance(cause, DBAPIError) or patient.database.dialect.error_code(cause) != ACCESS_DENIED:
            raise
        yield skipped("this account may not look at them; GRANT PROCESS ON *.* lets it")
        return
    for row in rows:
        yield warning(
            f"session {row.session} has a transaction open for {row.seconds} s: old rows are kept for it,"
            " and late ones are waited for",
            f"KILL {row.session}",
        )
    if not rows:
        yield ok(f"none that this account sees is open for more than {OLD_SECONDS} s")


def _old_transactions(connection: Connection) -> list[Any]:
    query = text(
        "SELECT t.trx_mysql_thread_id AS session, TIMESTAMPDIFF(SECOND, t.trx_started, NOW()) AS seconds"
        " FROM information_schema.innodb_trx t JOIN information_schema.processlist p ON p.id = t.trx_mysql_thread_id"
        " WHERE p.db = DATABASE() AND t.trx_mysql_thread_id <> CONNECTION_ID()"
        " AND t.trx_started <= NOW() - INTERVAL :old SECOND ORDER BY t.trx_started LIMIT 5"
    )
    return list(connection.execute(query, {"old": OLD_SECONDS}))


def _variable(connection: Connection, name: str) -> str | None:
    """The value of a global variable; None if this server has no such variable."""
    row = connection.execute(text("SHOW GLOBAL VARIABLES LIKE :name"), {"name": name}).first()
    return None if row is None else str(row[1])


CHECKS = (
    Check("version", Need.DATABASE, _version),
    Check("durability", Need.DATABASE, _durability),
    Check("isolation", Need.DATABASE, _isolation),
    Check("transactions", Need.DATABASE, _transactions),
    Check("storage", Need.TABLES, _storage),
)
