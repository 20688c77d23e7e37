"""MySQL and MariaDB, by PyMySQL; the host may also use asyncmy."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, nullcontext, suppress
from typing import TYPE_CHECKING, Any, ClassVar, cast

from sqlalchemy import Connection, PoolProxiedConnection, text
from sqlalchemy.engine import URL
from sqlalchemy.engine import Dialect as Driver
from sqlalchemy.exc import DBAPIError, IntegrityError, SQLAlchemyError

from outbox.core.runs import Runs
from outbox.core.text import mask_password
from outbox.errors import NOTHING_WRITTEN, DatabaseUnavailable
from outbox.store.dialects.base import Dialect, Place, Row, asked, first_of

if TYPE_CHECKING:
    from sqlalchemy.dialects.mysql.base import MySQLDialect

MIGRATION_TURN_SECONDS = 60
"""How long to wait for another process that migrates the same database."""
MIGRATION_LOCK_SECONDS = 5
"""How long a migration waits for a table's metadata lock."""
MIGRATION_LOCK = "CONCAT_WS(' ', 'outbox migrate', SHA1(LOWER(DATABASE())))"
"""SQL for the name of the migration lock. Such names are server-wide, so it includes the database, hashed: a lock's
name may have 64 characters, and a database's name alone as many."""

_FULL = (
    "The disk of the database is full, or its tablespace has a largest size (innodb_data_file_path): make room; what"
    " waits is delivered by itself then."
)
_TAKEN = (
    "All connections that the server or the account may have ({limit}) are taken: raise that limit, or let what is"
    " connected use fewer (pool_size of each service)."
)
_READ_ONLY = (
    "This server or session takes no writes ({why}): make it writable, or name the primary in OUTBOX_DATABASE_URL."
)
_TOO_LONG = (
    "A statement took longer than {limit} allows: raise it for the account of the outbox, or see by SHOW PROCESSLIST"
    " what holds the server up."
)
_NOT_GRANTED = (
    "The account lacks this privilege. As an administrator, run: GRANT SELECT, INSERT ON (the log) TO (the account)"
    " for a producer, GRANT SELECT, INSERT, UPDATE, DELETE ON (the table) for a worker, GRANT ALL ON (the database).*"
    " for outbox migrate; the README lists them (Accounts)."
)
_IN_TRANSACTION, _COMMITS_EACH = 1, 2
"""The protocol's status flags SERVER_STATUS_IN_TRANS and SERVER_STATUS_AUTOCOMMIT."""


class MySQL(Dialect):
    name = "mysql"
    sync_driver = "pymysql"
    keeps_each_step = True
    missing_table_codes = (1146,)
    missing_column_codes = (1054,)
    lost_claim_codes = (1213, 1205, 1020)
    lock_timeout_codes = (1205,)
    read_only_codes = (1290, 1792, 1836)
    denied_codes = (1142, 1143)
    advice = {  # noqa: RUF012 - ClassVar in the base
        1021: _FULL,
        1114: _FULL,
        1040: _TAKEN.format(limit="max_connections"),
        1203: _TAKEN.format(limit="max_user_connections"),
        1226: _TAKEN.format(limit="max_user_connections"),
        1290: _READ_ONLY.format(why="read_only, as on a standby"),
        1792: _READ_ONLY.format(why="transaction_read_only, before MariaDB 11.1 tx_read_only"),
        1836: _READ_ONLY.format(why="innodb_read_only"),
        1044: _NOT_GRANTED,
        1142: _NOT_GRANTED,
        1143: _NOT_GRANTED,
        1045: "Check user and password in OUTBOX_DATABASE_URL, and that the account may connect from this host.",
        1049: "Create it (CREATE DATABASE), or correct its name in OUTBOX_DATABASE_URL.",
        1665: "The server logs by statement, which READ COMMITTED does not allow: SET GLOBAL binlog_format = ROW (or"
        " MIXED), and the same in its configuration; then restart what is connected.",
        1205: "Another session holds the lock: end it (KILL) if information_schema.innodb_trx shows it open for long.",
        1969: _TOO_LONG.format(limit="max_statement_time"),
        3024: _TOO_LONG.format(limit="max_execution_time"),
        1153: "An entry may have 4 MiB, and the server takes less at once: SET GLOBAL max_allowed_packet = 67108864,"
        " and the same in its configuration.",
    }
    duplicate_key = 1062
    autocommits = True
    optimistic_write = "apart"
    # In MariaDB's sql_mode ORACLE, BEGIN means something else. With completion_type = CHAIN a plain COMMIT begins the
    # next transaction.
    transaction = ("START TRANSACTION", "COMMIT AND NO CHAIN", "ROLLBACK AND NO CHAIN")
    inserted_at_once, inserted_at_once_bytes = 100, 256 * 1024
    """PyMySQL's own way with many rows costs two round trips more."""
    aggregates_slowly = True
    """GROUP_CONCAT creates a table on disk: 0.7 ms, however little it joins."""

    session: ClassVar[Mapping[str, str]] = {
        "innodb_lock_wait_timeout": "5",
        "group_concat_max_len": "1073741824",  # GROUP_CONCAT truncates at it, with a warning only
        # In MariaDB's sql_mode ORACLE the driver's BEGIN would begin a program block.
        "sql_mode": "REPLACE(REPLACE(@@sql_mode, 'ORACLE', ''), 'SIMULTANEOUS_ASSIGNMENT', '')",
        "sql_select_limit": "18446744073709551615",  # any SELECT would end at it: rows not seen are taken for holes
        "sql_big_selects": "1",  # 0: max_join_size refuses what may read many rows
        "unique_checks": "1",  # 0: a second row of the same id may go unnoticed
        "default_storage_engine": "InnoDB",  # of the tables that a migration creates: MyISAM has no transactions
        "completion_type": "NO_CHAIN",  # else the autocommitted statement after a COMMIT is part of another transaction
    }
    """The session variables that the outbox needs, and their values in SQL."""
    aiomysql_only = ("auth_plugin", "echo")
    """Options of a URL that PyMySQL rejects."""

    def sync_url(self, url: URL) -> URL:
        left_out = self.aiomysql_only if url.get_driver_name() == "aiomysql" else ()
        return super().sync_url(url.difference_update_query(left_out))

    def session_setup(self, *, synchronous: str) -> Sequence[str]:
        return (f"SET SESSION {', SESSION '.join(f'{name} = {value}' for name, value in self.session.items())}",)

    def borrow(self, driver_connection: Any, driver: Driver) -> Callable[[], None]:
        level, each = driver.get_isolation_level(driver_connection), bool(driver_connection.get_autocommit())
        with closing(driver_connection.cursor()) as cursor:
            cursor.execute(f"SELECT {', '.join(f'@@SESSION.{name}' for name in self.session)}")
            before = cursor.fetchone()
        self.prepare(driver_connection, synchronous="")

        def restore() -> None:
            driver_connection.rollback()
            driver.set_isolation_level(driver_connection, level)
            with closing(driver_connection.cursor()) as cursor:
                cursor.execute(f"SET SESSION {', SESSION '.join(f'{name} = %s' for name in self.session)}", before)
            self.commit_each(driver_connection, each)

        return restore

    def end(self, driver_connection: Any) -> None:
        getattr(driver_connection, "_force_close", driver_connection.close)()  # PyMySQL's: of the socket, says nothing

    def engine_arguments(self, *, synchronous: str) -> dict[str, Any]:
        return {"pool_reset_on_return": None}  # saves a round trip: each block ends its transaction itself

    def begin(self, pooled: PoolProxiedConnection) -> None:
        driver_connection: Any = pooled.driver_connection
        if driver_connection.get_autocommit():  # set by the host's engine
            driver_connection.begin()

    def commit_each(self, driver_connection: Any, each: bool) -> None:
        if bool(driver_connection.get_autocommit()) != each:
            driver_connection.autocommit(each)

    def insertion(self, table: str, rows: Sequence[Row], driver: str) -> tuple[str, Sequence[Any]]:
        # A plain INSERT, and a SELECT only when an id is there: INSERT IGNORE would also swallow truncation and
        # CHECK violations, and ON DUPLICATE KEY UPDATE counts and locks wrongly.
        marks = ", ".join(["(%s, %s, %s)"] * (len(rows) if self.at_once(rows) else 1))
        sql = f"INSERT INTO {table} (id, payload, size) VALUES {marks}"  # noqa: S608 - our name
        return sql, tuple([value for row in rows for value in row]) if self.at_once(rows) else list(rows)

    def commits_each(self, connection: Connection) -> bool:
        driver_connection: Any = connection.connection.driver_connection
        # From the last answer, however a transaction was begun.
        status: int | None = getattr(driver_connection, "server_status", None)
        if status is None:  # MySQL Connector, mysqlclient
            each = connection.exec_driver_sql("SELECT @@autocommit").scalar()
            return bool(each) and not getattr(driver_connection, "in_transaction", False)
        return status & (_IN_TRANSACTION | _COMMITS_EACH) == _COMMITS_EACH

    def insert(self, connection: Connection, table: str, rows: Sequence[Row]) -> int:
        fresh = list(rows)
        while fresh:  # fewer each time, until no concurrent insert adds another of the ids
            try:
                # InnoDB undoes a failed statement; drivers split many rows into several statements.
                with nullcontext() if self.at_once(fresh) else self.all_or_none(connection, "outbox_insert"):
                    connection.exec_driver_sql(*self.insertion(table, fresh, connection.dialect.driver))
            except IntegrityError as error:
                if self.error_code(error) != self.duplicate_key:
                    raise
                known = self._known(connection, table, [id for id, *_ in fresh])
                if not known:  # the taken key is seq, not id
                    raise
                fresh = [row for row in fresh if row[0] not in known]
            else:
                break
        return len(fresh)

    def numbering(self, rows: Sequence[Row], by: Driver) -> str:
        several = len(rows) > 1 and self.at_once(rows)
        return " RETURNING seq" if several and by.insert_returning else ""  # MySQL has none

    def first_number(self, cursor: Any, rows: int) -> int | None:
        if rows == 1:
            return int(cursor.lastrowid)
        return first_of(cursor.fetchall()) if cursor.description else None  # auto_increment_increment may be above 1

    @staticmethod
    def _known(connection: Connection, table: str, ids: Sequence[bytes]) -> frozenset[bytes]:
        """Those of ``ids`` that are there now. A locking read: the host's snapshot may be older than the duplicate."""
        marks = ", ".join(["%s"] * len(ids))
        sql = f"SELECT id FROM {table} WHERE id IN ({marks}) LOCK IN SHARE MODE"  # noqa: S608 - our names
        return frozenset(bytes(row[0]) for row in connection.exec_driver_sql(sql, tuple(ids)))

    def delete_runs(self, connection: Connection, table: str, members: Runs) -> None:
        # With a LIMIT the scan stops at the last row of the run. Without, it reads the row after it as well, and waits
        # for the lock of a producer that has just inserted that row.
        for lo, hi in members:
            sql = f"DELETE FROM {table} WHERE seq BETWEEN {lo} AND {hi} ORDER BY seq LIMIT {hi - lo + 1}"  # noqa: S608
            connection.exec_driver_sql(sql)

    def sequence_position(self, connection: Connection, table: str) -> int:
        driver = cast("MySQLDialect", connection.dialect)
        if not driver.is_mariadb:  # MySQL 8 caches this for up to a day; MariaDB has no such variable
            connection.execute(text("SET SESSION information_schema_stats_expiry = 0"))
        next_number = connection.execute(
            text(
                "SELECT auto_increment FROM information_schema.tables"
                " WHERE table_schema = DATABASE() AND table_name = :t"
            ),
            {"t": table},
        ).scalar()
        highest = connection.execute(text(f"SELECT max(seq) FROM {table}")).scalar()  # noqa: S608 - our name
        return max((next_number or 1) - 1, highest or 0)

    def advance_sequence(self, connection: Connection, table: str, beyond: int) -> None:
        # The ALTER waits for producers' open transactions, and new ones wait behind it: for a second at most. InnoDB
        # itself keeps the next number above the highest one present.
        connection.execute(text("SET SESSION lock_wait_timeout = 1"))
        try:
            connection.execute(text(self.advance_sequence_sql(table, beyond)))
        finally:
            connection.execute(text("SET SESSION lock_wait_timeout = DEFAULT"))

    def advance_sequence_sql(self, table: str, beyond: int) -> str:
        return f"ALTER TABLE {table} AUTO_INCREMENT = {beyond + 1}"

    def place(self, connection: Connection) -> Place:
        # Where the server ignores the case of names, it repeats each as its client wrote it.
        [name] = asked(connection, "SELECT IF(@@lower_case_table_names, LOWER(DATABASE()), DATABASE())")
        return Place(name)

    @contextmanager
    def migration_lock(self, connection: Connection) -> Iterator[None]:
        if connection.execute(text(f"SELECT GET_LOCK({MIGRATION_LOCK}, {MIGRATION_TURN_SECONDS})")).scalar() != 1:
            holder = connection.execute(text(f"SELECT IS_USED_LOCK({MIGRATION_LOCK})")).scalar()
            where = mask_password(connection.engine.url.render_as_string(hide_password=True))
            raise DatabaseUnavailable(
                f"{where}: another process ({f'session {holder}' if holder else 'gone by now'}) has been migrating for"
                f" {MIGRATION_TURN_SECONDS} s. {NOTHING_WRITTEN} Run it again when that one has ended;"
                " end its session if it is stuck."
            )
        try:
            # An ALTER waits even for transactions that only read the table, and all others wait behind it: by default
            # for up to a day.
            connection.execute(text(f"SET SESSION lock_wait_timeout = {MIGRATION_LOCK_SECONDS}"))
            yield
        except BaseException:
            with suppress(SQLAlchemyError):  # an ended session holds no lock, and the first error says why
                self._let_others_migrate(connection)
            raise
        self._let_others_migrate(connection)

    @staticmethod
    def _let_others_migrate(connection: Connection) -> None:
        connection.execute(text("SET SESSION lock_wait_timeout = DEFAULT"))
        connection.execute(text(f"SELECT RELEASE_LOCK({MIGRATION_LOCK})"))

    def drop_columns(self, table: str, columns: Sequence[str]) -> Sequence[str]:
        return [f"ALTER TABLE {table} {', '.join(f'DROP COLUMN {column}' for column in columns)}"]

    def drop_tables(self, tables: Sequence[str], view: str) -> Sequence[str]:
        # One statement locks all tables before it drops the first. The view comes last: it does not need its tables,
        # and when another session's lock stops the drop, an upgrade would not create the view again.
        return [f"DROP TABLE IF EXISTS {', '.join(tables)}", f"DROP VIEW IF EXISTS {view}"]

    def readable_time(self, column: str) -> str:
        return f"TIMESTAMPADD(MICROSECOND, {column}, '1970-01-01 00:00:00')"

    def member_of(self, seq: str, members: str) -> str:
        runs = f"""JSON_TABLE(CONCAT('["', REPLACE({members}, ',', '","'), '"]'), '$[*]' COLUMNS (r VARCHAR(48) PATH '$'))"""  # noqa: E501
        lo, hi = "SUBSTRING_INDEX(j.r, '-', 1)", "SUBSTRING_INDEX(j.r, '-', -1)"
        return (
            f"EXISTS (SELECT 1 FROM {runs} AS j WHERE {seq}"  # noqa: S608 - column names
            f" BETWEEN CAST({lo} AS UNSIGNED) AND CAST({hi} AS UNSIGNED))"
        )

    def error_code(self, error: DBAPIError) -> Any:
        arguments = getattr(error.orig, "args", ())
        return getattr(error.orig, "errno", None) or (arguments[0] if arguments else None)
