"""PostgreSQL, by psycopg 3; the host may also use asyncpg."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, suppress
from threading import Event
from typing import Any

from sqlalchemy import Connection, Engine, PoolProxiedConnection, text
from sqlalchemy.engine import URL
from sqlalchemy.engine import Dialect as Driver
from sqlalchemy.exc import DBAPIError

from outbox.core.lane import LANES
from outbox.errors import ConfigError
from outbox.store.dialects.base import Announce, Inserted, Look, Place, Row, asked, first_of
from outbox.store.dialects.postgresql_sessions import IDLE, Sessions, pooler_of

COPIED_AT_ONCE = 100
"""Rows sent in one write of a COPY."""

_TAKEN, _ANOTHERS = "23505 of a log's number", "08P01 of a prepared statement"
_NO_SCHEMA = "42501 of a schema"
"""Error codes of our own, for SQLSTATEs that mean this only together with the constraint or the message."""
_REFUSED = {
    "53300": re.compile("too many clients already|connection slots are reserved|too many connections for"),
    "3D000": re.compile('database ".*" does not exist'),
    "28000": re.compile('role ".*" does not exist|authentication failed for|no password supplied|no pg_hba.conf entry'),
}
"""Messages of a server that refuses a connection, by SQLSTATE: libpq does not report it for them."""
_NOT_LET_IN = "Check user and password in OUTBOX_DATABASE_URL, and that the account may connect (pg_hba.conf)."
_POOLED = (
    "A connection pooler hands each transaction to another session (PgBouncer in transaction mode), where a prepared"
    " statement is somebody else's: name the server itself in OUTBOX_DATABASE_URL, or give the engine"
    " connect_args={'prepare_threshold': None}."
)


def _fields_of(error: DBAPIError) -> Mapping[str, str]:
    """The fields of a pg8000 error, by their letters in the protocol; empty for other drivers."""
    first = next(iter(getattr(error.orig, "args", ())), None)
    return first if isinstance(first, dict) else {}


def _indexes(log: str) -> Sequence[str]:
    """The indexes of a log. They grow at their end, as numbers and ids (UUIDv7) ascend: free space in their pages would
    stay unused."""
    return f"{log}_pkey", f"uq_{log}_id"


class PostgreSQL(Sessions):
    name = "postgresql"
    sync_driver = "psycopg"
    host_drivers = ("psycopg2", "pg8000")
    storage_statements = (
        "ALTER TABLE outbox_lane SET (fillfactor = 50)",  # its rows are updated all the time
        *(f"ALTER INDEX {index} SET (fillfactor = 100)" for lane in LANES.values() for index in _indexes(lane.table)),
    )
    missing_table_codes = ("42P01",)
    missing_column_codes = ("42703",)
    lost_claim_codes = ("40001", "40P01", "55P03")
    lock_timeout_codes = ("55P03",)
    read_only_codes = ("25006",)
    denied_codes = ("42501", _NO_SCHEMA)
    advice = {  # noqa: RUF012 - ClassVar in the base
        "25006": "This server is a standby, or default_transaction_read_only is on: make it writable, or name every"
        " host in OUTBOX_DATABASE_URL (...@/name?host=a:5432&host=b:5432&target_session_attrs=read-write).",
        "53100": "Make room on the disk of the database; what waits is delivered by itself then.",
        "53300": "All connections that the server, the database or the account may have are taken: raise"
        " max_connections (or CONNECTION LIMIT), or let what is connected use fewer (pool_size of each service).",
        "3D000": "Create it (CREATE DATABASE), or correct its name in OUTBOX_DATABASE_URL.",
        "28000": _NOT_LET_IN,
        "28P01": _NOT_LET_IN,
        "57014": "Somebody cancelled the statement, or it took longer than statement_timeout allows: raise that for the"
        " account of the outbox (ALTER ROLE ... SET statement_timeout), or see by pg_stat_activity what it waits for.",
        "42501": "The account lacks a privilege. As the owner of the tables, run: GRANT SELECT, INSERT ON (the log) TO"
        " (the account) for a producer, GRANT SELECT, INSERT, UPDATE, DELETE ON (the table) for a worker; the README"
        " lists them (Accounts). Only the owner may run outbox migrate.",
        _NO_SCHEMA: "The account may not use that schema, or not create tables in it (since PostgreSQL 15 nobody may in"
        " public but its owner). As its owner, run: GRANT USAGE, CREATE ON SCHEMA (its name) TO (the account). Only"
        " outbox migrate needs CREATE.",
        "26000": _POOLED,
        "42P05": _POOLED,
        _ANOTHERS: _POOLED,
        _TAKEN: "The sequence of the log was set back (a restore, TRUNCATE, setval). Run: outbox audit --mend",
        "55P03": "Another session holds the lock: end it if pg_stat_activity shows it 'idle in transaction'.",
    }
    read_isolation = "AUTOCOMMIT"  # one round trip for three, BEGIN and ROLLBACK being the others
    autocommits = True
    optimistic_write = "joined"
    reads_while_writing = True
    reads_ahead = "beside"
    copy_from_rows = 1000
    """From this many rows on COPY is faster than one INSERT of arrays (measured: 116k against 60k rows/s)."""

    connect_defaults = {  # noqa: RUF012 - ClassVar
        "connect_timeout": "5",
        "keepalives_idle": "10",
        "keepalives_interval": "5",
        "keepalives_count": "3",
        "tcp_user_timeout": "10000",
        "client_encoding": "utf8",  # else of SQL_ASCII the driver returns bytes where SQLAlchemy reads text
    }
    """A server that vanished without closing its sockets (a power cut, a failover that moves its address) is given up
    after seconds. By default the kernel waits a quarter of an hour for an answer, and two hours on an idle
    connection."""

    asyncpg_only = (
        "async_fallback",
        "command_timeout",
        "max_cacheable_statement_size",
        "max_cached_statement_lifetime",
        "prepared_statement_cache_size",
        "statement_cache_size",
    )
    """Options of a URL that psycopg rejects, and that the outbox's own connections can do without."""

    def sync_url(self, url: URL) -> URL:
        if url.get_driver_name() == "asyncpg":
            ssl = {"sslmode": url.query["ssl"]} if "ssl" in url.query else {}
            url = url.difference_update_query(["ssl", *self.asyncpg_only]).update_query_dict(ssl)
        left = {name: value for name, value in self.connect_defaults.items() if name not in url.query}
        return super().sync_url(url).update_query_dict(left)

    def insertion(self, table: str, rows: Sequence[Row], driver: str) -> tuple[str, Sequence[Any]]:
        if len(rows) > 1:
            return self._insertion_of_many(table, rows, driver)
        # Without arrays: those take the server half as long again.
        [(id, payload, size)] = rows
        numbered = driver == "asyncpg"
        first, second, third, again = ("$1", "$2", "$3", "$1") if numbered else ("%s", "%s", "%s", "%s")
        sql = (
            f"INSERT INTO {table} (id, payload, size) SELECT {first}::uuid, {second}::text, {third}::int"  # noqa: S608
            f" WHERE NOT EXISTS (SELECT 1 FROM {table} e WHERE e.id = {again}::uuid) ON CONFLICT (id) DO NOTHING"
        )
        return sql, (id.hex(), payload, size) if numbered else (id.hex(), payload, size, id.hex())

    @staticmethod
    def _insertion_of_many(table: str, rows: Sequence[Row], driver: str) -> tuple[str, Sequence[Any]]:
        if driver == "asyncpg":
            marks = ("$1", "$2", "$3")
        else:  # psycopg in binary: arrays are seven times faster than as text
            marks = ("%b", "%b", "%b") if driver == "psycopg" else ("%s", "%s", "%s")
        # NOT EXISTS before ON CONFLICT: a duplicate that is already there must not burn a number. Its join returns
        # rows in any order, and numbers follow the order of the messages.
        sql = (
            f"INSERT INTO {table} (id, payload, size) SELECT m.id, m.payload, m.size"  # noqa: S608 - our names
            f" FROM unnest({marks[0]}::text[]::uuid[], {marks[1]}::text[], {marks[2]}::int[])"
            f" WITH ORDINALITY AS m (id, payload, size, n) WHERE NOT EXISTS (SELECT 1 FROM {table} e WHERE e.id = m.id)"
            " ORDER BY m.n ON CONFLICT (id) DO NOTHING"
        )
        return sql, ([id.hex() for id, _, _ in rows], [payload for _, payload, _ in rows], [size for *_, size in rows])

    def commits_each(self, connection: Connection) -> bool:
        begins: Any = connection.connection.dbapi_connection
        driver_connection: Any = connection.connection.driver_connection
        if not begins.autocommit:
            return False
        if connection.dialect.driver == "asyncpg":
            return not driver_connection.is_in_transaction()
        # By the server's last answer, however a transaction was begun.
        if connection.dialect.driver == "pg8000":
            return not driver_connection._in_transaction
        return bool(driver_connection.info.transaction_status == IDLE)

    def insert(self, connection: Connection, table: str, rows: Sequence[Row]) -> int:
        """Many rows by COPY on the caller's own connection. When it fails, an id is already there, or the INSERT that
        follows fails too and raises SQLAlchemy's error instead of the driver's."""
        driver = connection.dialect.driver
        if driver == "psycopg" and not connection.dialect.is_async and len(rows) >= self.copy_from_rows:
            from psycopg import Error

            with suppress(Error):
                with self.all_or_none(connection, "outbox_copy"):
                    self._copy(connection.connection, table, rows)
                return len(rows)
        return connection.exec_driver_sql(*self.insertion(table, rows, driver)).rowcount

    def error_code(self, error: DBAPIError) -> Any:
        """The SQLSTATE, or a code of our own: for a duplicate sequence number, for a schema that is not granted, and
        for parameters that do not match a prepared statement. One connection too many is recognised by its English
        message."""
        fields = _fields_of(error)
        broken = getattr(getattr(error.orig, "diag", None), "constraint_name", fields.get("n"))
        if broken in [f"{lane.table}_pkey" for lane in LANES.values()]:
            return _TAKEN
        raised = error.orig
        code = getattr(raised, "sqlstate", None) or getattr(raised, "pgcode", None) or fields.get("C")
        if code is None:
            return next((state for state, words in _REFUSED.items() if words.search(str(error.orig))), None)
        if code == "42501" and "for schema" in str(error.orig):
            return _NO_SCHEMA
        return _ANOTHERS if code == "08P01" and "prepared statement" in str(error.orig) else code

    def message(self, error: DBAPIError) -> str:
        return str(_fields_of(error).get("M") or error.orig)

    def at_once(self, rows: Sequence[Row]) -> bool:
        return True

    def put(
        self, pooled: PoolProxiedConnection, table: str, rows: Sequence[Row], by: Driver, *, numbered: bool = False
    ) -> Inserted:
        if by.driver == self.sync_driver and len(rows) >= self.copy_from_rows:
            from psycopg.errors import UniqueViolation

            with suppress(UniqueViolation):
                self._copy(pooled, table, rows)
                return Inserted(len(rows))
        return super().put(pooled, table, rows, by, numbered=numbered)

    def numbering(self, rows: Sequence[Row], by: Driver) -> str:
        return " RETURNING seq"

    def first_number(self, cursor: Any, rows: int) -> int | None:
        return first_of(cursor.fetchall())

    @staticmethod
    def _copy(pooled: PoolProxiedConnection, table: str, rows: Sequence[Row]) -> None:
        driver_connection: Any = pooled.driver_connection
        with (
            driver_connection.cursor() as cursor,
            cursor.copy(f"COPY {table} (id, payload, size) FROM STDIN") as copy,
        ):
            # In parts: the server works on one while the next is assembled. Payloads are ASCII JSON without control
            # characters, so only the backslash needs escaping.
            for start in range(0, len(rows), COPIED_AT_ONCE):
                some = rows[start : start + COPIED_AT_ONCE]
                lines = "".join([f"{id.hex()}\t{payload}\t{size}\n" for id, payload, size in some])
                copy.write(lines.replace("\\", "\\\\"))

    def sequence_position(self, connection: Connection, table: str) -> int:
        sequence = connection.execute(text("SELECT pg_get_serial_sequence(:t, 'seq')"), {"t": table}).scalar_one()
        row = connection.execute(text(f"SELECT last_value, is_called FROM {sequence}")).one()  # noqa: S608
        return int(row.last_value) - (not row.is_called)

    def advance_sequence(self, connection: Connection, table: str, beyond: int) -> None:
        # setval does not wait for a concurrent nextval, and could hand its numbers out again. An INSERT locks the table
        # before it takes a number, so a lock that conflicts with it makes the check and the setval atomic. It waits for
        # producers' open transactions, and new ones wait behind it: for a second at most.
        before = connection.execute(text("SELECT current_setting('lock_timeout')")).scalar_one()
        connection.execute(text("SET LOCAL lock_timeout = '1s'"))
        connection.execute(text(f"LOCK TABLE {table} IN SHARE ROW EXCLUSIVE MODE"))
        connection.execute(text("SELECT set_config('lock_timeout', :before, true)"), {"before": before})
        if self.sequence_position(connection, table) < beyond:
            connection.execute(text("SELECT setval(pg_get_serial_sequence(:t, 'seq'), :n)"), {"t": table, "n": beyond})

    def advance_sequence_sql(self, table: str, beyond: int) -> str:
        return f"SELECT setval(pg_get_serial_sequence('{table}', 'seq'), {beyond})"

    notifies = announces = True
    channel = "outbox"
    listen_seconds = 0.2
    """The longest wait for a notification: an upper bound for how late ``watch_commits`` sees that it must stop."""

    @contextmanager
    def announcing(self, engine: Engine) -> Iterator[Announce]:
        with self._own_connection(engine) as connection:

            def announce(tables: Sequence[str]) -> None:
                # Mostly one table: faster than a SELECT of pg_notify. A transaction that only notifies waits for no
                # disk and no standby, whatever synchronous_commit says: it wrote nothing durable.
                for table in tables:
                    connection.execute(f"NOTIFY {self.channel}, '{table}'")

            yield announce

    @contextmanager
    def watch_commits(self, engine: Engine, lanes: Mapping[str, str], here: Mapping[str, int]) -> Iterator[Look]:
        with self._own_connection(engine) as connection:
            listens = pooler_of(connection) is None
            if listens:
                connection.execute(f"LISTEN {self.channel}")

            def look(stop: Event) -> set[str]:
                if not listens:  # behind a pooler the session's next client would get the notifications
                    stop.wait()
                    return set()
                return {told.payload for told in connection.notifies(timeout=self.listen_seconds, stop_after=1)}

            yield look

    @contextmanager
    def _own_connection(self, engine: Engine) -> Iterator[Any]:
        """A psycopg connection outside the pool, in autocommit; its session ends at the end, and so do its LISTENs."""
        pooled = engine.raw_connection()
        connection: Any = pooled.driver_connection
        pooled.detach()
        with closing(connection):
            try:
                connection.autocommit = True
                yield connection
            finally:
                self.end(connection)

    def writers(self, connection: Connection, table: str) -> frozenset[str] | None:
        # An INSERT locks the table before it takes a number, and COPY does so before it has a transaction id: so the
        # virtual transaction identifies a writer. PREPARE TRANSACTION changes the virtual id; "prepared" stands for all
        # prepared transactions.
        holders = connection.execute(
            text(
                "SELECT DISTINCT CASE WHEN pid IS NULL THEN 'prepared' ELSE virtualtransaction END FROM pg_locks"
                " WHERE locktype = 'relation' AND mode = 'RowExclusiveLock' AND granted"
                " AND database = (SELECT oid FROM pg_database WHERE datname = current_database())"
                " AND relation = CAST(:t AS regclass) AND pid IS DISTINCT FROM pg_backend_pid()"
            ),
            {"t": table},
        )
        return frozenset(holders.scalars())

    def place(self, connection: Connection) -> Place:
        # By the catalog as it is now: the caller's snapshot may be older than the tables. Both quote the name.
        database, current, found = asked(
            connection,
            "SELECT current_database(), quote_ident(current_schema()),"
            " (pg_identify_object('pg_class'::regclass, to_regclass('outbox_usage'), 0)).schema",
        )
        return Place(database, found or current, found is not None)

    def search_path(self, pooled: PoolProxiedConnection) -> Any:
        """PostgreSQL reports each change of it to its clients since version 18."""
        driver_connection: Any = pooled.driver_connection
        if hasattr(driver_connection, "pgconn"):  # psycopg, whose own look-up takes four times as long
            return driver_connection.pgconn.parameter_status(b"search_path")
        if hasattr(driver_connection, "get_settings"):  # asyncpg
            return getattr(driver_connection.get_settings(), "search_path", None)
        return None

    same_place = (
        "Give both the same search_path: to Outbox a synchronous Engine whose connect_args or listeners (from before"
        " Outbox is made) set it, since of an AsyncEngine only the URL is used; or write it into OUTBOX_DATABASE_URL:"
        " ?options=-csearch_path%3DNAME"
    )

    def require_place(self, connection: Connection, where: str) -> None:
        name, schema = connection.execute(text("SELECT current_database(), current_schema()")).one()
        if schema is None:
            raise ConfigError(
                f"{where}: search_path names no schema that is there: tables are neither made nor found. Run:"
                f' ALTER DATABASE "{name}" SET search_path = public'
            )

    @contextmanager
    def migration_lock(self, connection: Connection) -> Iterator[None]:
        connection.execute(text("SELECT pg_advisory_xact_lock(hashtext('outbox migrate'))"))
        yield

    def readable_time(self, column: str) -> str:
        return f"to_timestamp({column} / 1000000.0)"

    def member_of(self, seq: str, members: str) -> str:
        lo, hi = "split_part(r, '-', 1)::bigint", "split_part(r || '-' || r, '-', 2)::bigint"
        return f"EXISTS (SELECT 1 FROM unnest(string_to_array({members}, ',')) AS r WHERE {seq} BETWEEN {lo} AND {hi})"  # noqa: S608
