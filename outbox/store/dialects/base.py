"""The interface of a dialect, with the defaults that fit most databases."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, closing, contextmanager, nullcontext
from threading import Event
from typing import Any, ClassVar, Literal, NamedTuple

from sqlalchemy import Connection, Engine, PoolProxiedConnection
from sqlalchemy.engine import URL
from sqlalchemy.engine import Dialect as Driver
from sqlalchemy.exc import DBAPIError

from outbox.core.runs import Runs

RUNS_AT_ONCE = 200
"""The most runs in one WHERE: SQLite limits the depth of an expression to 1000."""

Row = tuple[bytes, str, int]
"""An entry to insert: the 16 bytes of its id, its payload (ASCII JSON text), the payload's size in bytes."""


class Inserted(NamedTuple):
    """``rows`` were inserted. ``first``: the first row's number, where it is known and the others follow without a
    gap."""

    rows: int
    first: int | None = None


def first_of(returned: Sequence[tuple[int]]) -> int | None:
    """The first of the numbers that RETURNING gave, if the others follow it without a gap; else None."""
    first = returned[0][0]
    return first if all(number == first + at for at, (number,) in enumerate(returned)) else None


class Place(NamedTuple):
    """Where a connection finds the outbox tables, as the server spells the names. ``schema``: without tables, where
    they would be made; None: there is none, or the database has no schemas."""

    database: str | None
    schema: str | None = None
    has_tables: bool = True

    def in_words(self) -> str:
        database = "no database" if self.database is None else f"database {self.database}"
        return database if self.schema is None else f"{database}, schema {self.schema}"


SOON = " soon"
"""Suffix of a table's name in a notification: its rows are about to be committed."""
OptimisticWrite = Literal["joined", "triggered", "apart"]
"""How ``optimistic_write.py`` writes: one WITH statement, rows for a view with a trigger, or a short transaction."""
Announce = Callable[[Sequence[str]], None]
"""Notifies watchers of the tables in which rows were committed."""
Look = Callable[[Event], Iterable[str]]
"""Waits for commits and returns the tables that got rows since the last look; returns early once the event is set."""


@contextmanager
def all_or_none(connection: Connection, savepoint: str, *, alone: tuple[str, str, str] | None) -> Iterator[None]:
    """Undo what the block did when it raises, and nothing else of the caller's transaction. ``alone``: the connection
    is in autocommit without an open transaction, and these statements begin, commit and roll back one; None: use a
    savepoint."""
    begin, end, undo = f"SAVEPOINT {savepoint}", f"RELEASE SAVEPOINT {savepoint}", f"ROLLBACK TO SAVEPOINT {savepoint}"
    if alone:
        begin, end, undo = alone
    try:
        connection.exec_driver_sql(begin)
        yield
        connection.exec_driver_sql(end)
    except BaseException as raised:
        by_database = isinstance(raised, (DBAPIError, connection.dialect.loaded_dbapi.Error))
        if not connection.invalidated:
            try:
                connection.exec_driver_sql(undo)
            except DBAPIError:
                if connection.invalidated and by_database:
                    raise  # SQLAlchemy's own error for a broken connection; otherwise the first error says more
        raise


def asked(connection: Connection, sql: str) -> Sequence[Any]:
    """The row of a SELECT on the caller's connection, whose driver may return text as bytes (SQL_ASCII)."""
    row = connection.exec_driver_sql(sql).one()
    return [value.decode(errors="backslashreplace") if isinstance(value, bytes) else value for value in row]


class Dialect(ABC):
    """One database's behaviour; the defaults are those of most databases."""

    name: ClassVar[str]
    sync_driver: ClassVar[str]
    host_drivers: ClassVar[tuple[str, ...]] = ()
    """Other drivers of which a host's engine may be given to Outbox."""
    worker_isolation: ClassVar[str | None] = "READ COMMITTED"
    read_isolation: ClassVar[str | None] = None
    """The isolation level of a transaction that only reads; None: the engine's."""
    snapshot_isolation: ClassVar[str | None] = "REPEATABLE READ"
    single_writer: ClassVar[bool] = False
    """One transaction writes at a time: numbers commit in order, so there are no holes."""
    autocommits: ClassVar[bool] = False
    """The driver has autocommit: one statement can be a transaction of its own, without BEGIN and COMMIT."""
    optimistic_write: ClassVar[OptimisticWrite | None] = None
    """How a worker that has the lane to itself writes its optimistic step (store/optimistic.py). None: it makes
    none."""
    reads_ahead: ClassVar[Literal["before", "beside"] | None] = None
    """Whether a full batch is read just before its claim locks the lane, or by another thread while the batches before
    it are in flight (store/read_ahead.py). None: not ahead."""
    reads_while_writing: ClassVar[bool] = False
    """The single statement of an optimistic step can read the entries too."""
    aggregates_slowly: ClassVar[bool] = False
    """Aggregating payloads (``lines_of``) takes longer than reading a few rows one by one."""
    transaction: ClassVar[tuple[str, str, str]] = ("BEGIN", "COMMIT", "ROLLBACK")
    """The statements that begin, commit and roll back a transaction."""
    inserted_at_once: ClassVar[int] = 1
    inserted_at_once_bytes: ClassVar[int] = 0
    """Bounds of one INSERT of several rows: how many, and the bytes of their payloads. One row has no bound."""
    purge_chunk: ClassVar[int] = 2_000
    """Rows deleted in one transaction. It slows producers on servers too: their COMMIT waits for its writes."""
    storage_statements: ClassVar[tuple[str, ...]] = ()
    keeps_each_step: ClassVar[bool] = False
    """DDL commits implicitly: an interrupted migration keeps the statements it has run."""
    missing_table_codes: ClassVar[tuple[Any, ...]] = ()
    missing_column_codes: ClassVar[tuple[Any, ...]] = ()
    lost_claim_codes: ClassVar[tuple[Any, ...]] = ()
    lock_timeout_codes: ClassVar[tuple[Any, ...]] = ()
    read_only_codes: ClassVar[tuple[Any, ...]] = ()
    denied_codes: ClassVar[tuple[Any, ...]] = ()
    """The account lacks a privilege."""
    damaged_codes: ClassVar[tuple[Any, ...]] = ()
    """The stored data cannot be read as a database: a retry does not help."""
    advice: ClassVar[Mapping[Any, str]] = {}
    """What an operator should do, by error code, where it is not obvious."""

    def sync_url(self, url: URL) -> URL:
        """The URL that the worker's synchronous engine uses, whatever driver the host chose."""
        return url.set(drivername=f"{self.name}+{self.sync_driver}")

    def check_url(self, url: URL) -> None:  # noqa: B027 - only a file needs it
        """Raise ``ConfigError`` for a URL that cannot hold an outbox."""

    def check_host(self, engine: Engine) -> None:  # noqa: B027 - only a file needs it
        """Raise ``ConfigError`` for a host's engine that opens its database as the outbox cannot."""

    def create_store(self, url: URL) -> None:  # noqa: B027 - only a file needs it
        """Create what must exist before the first connection. Raises ``DatabaseUnavailable``."""

    def require_store(self, url: URL) -> None:  # noqa: B027 - only a file needs it
        """Called before each connection. Raises ``SchemaOutOfDate`` when connecting would create an empty database."""

    def prepare(self, driver_connection: Any, *, synchronous: str) -> None:
        """Set up a new connection of the outbox's own engine."""
        with closing(driver_connection.cursor()) as cursor:
            for statement in self.session_setup(synchronous=synchronous):
                cursor.execute(statement)
        driver_connection.commit()

    def is_borrowed(self, driver_connection: Any, driver: Driver) -> bool:
        """Whether closing a connection that the host's engine opened gives it back to a pool of the host's: its class
        is not the driver's, or overrides ``close``."""
        its = getattr(driver.loaded_dbapi, "Connection", None)
        kind = driver_connection.__class__  # not type(): of an instrumented connection that is the proxy's
        return isinstance(its, type) and not (issubclass(kind, its) and kind.close is its.close)  # type: ignore[attr-defined]

    def borrow(self, driver_connection: Any, driver: Driver) -> Callable[[], None]:
        """Set up such a connection. Returns the function that restores its state. Of a file nothing is borrowed: the
        outbox opens it itself."""
        return lambda: None

    def end(self, driver_connection: Any) -> None:
        """End the connection's session for good, wherever ``close`` gives it back to."""
        driver_connection.close()

    def engine_arguments(self, *, synchronous: str) -> dict[str, Any]:
        """Keyword arguments for ``create_engine``."""
        return {}

    def session_setup(self, *, synchronous: str) -> Sequence[str]:
        """The statements that :meth:`prepare` runs."""
        return ()

    def begin(self, pooled: PoolProxiedConnection) -> None:  # noqa: B027 - most drivers begin by themselves
        """Begin a transaction where the driver does not do so implicitly."""

    def commit_each(self, driver_connection: Any, each: bool) -> None:
        """Switch a connection's autocommit on or off, where the dialect ``autocommits``."""
        if driver_connection.autocommit != each:
            driver_connection.autocommit = each

    def end_begun(self, driver_connection: Any) -> None:  # noqa: B027 - most drivers commit it when they are switched
        """Commit the transaction that a host's listener has begun on a connection on its way out of the pool, if any:
        its SET is meant to hold."""

    @abstractmethod
    def insertion(self, table: str, rows: Sequence[Row], driver: str) -> tuple[str, Sequence[Any]]:
        """The INSERT and its parameters; a list of parameters: for ``executemany``. A row whose id is there already is
        not inserted, or raises the driver's ``IntegrityError``."""

    def at_once(self, rows: Sequence[Row]) -> bool:
        """Whether :meth:`put` inserts the rows with one statement."""
        return len(rows) == 1 or (
            len(rows) <= self.inserted_at_once and sum([size for *_, size in rows]) <= self.inserted_at_once_bytes
        )

    def put(
        self, pooled: PoolProxiedConnection, table: str, rows: Sequence[Row], by: Driver, *, numbered: bool = False
    ) -> Inserted:
        """:meth:`insert` on a driver connection. Raises the driver's errors; after its ``IntegrityError`` some rows may
        be inserted, until the caller rolls back. ``numbered``: ask for the first number, where that is cheap."""
        sql, values = self.insertion(table, rows, by.driver)
        if numbered:
            sql += self.numbering(rows, by)
        cursor = pooled.cursor()
        try:
            if isinstance(values, list):
                cursor.executemany(sql, values)
            else:
                cursor.execute(sql, values)
            inserted = int(cursor.rowcount)
            first = self.first_number(cursor, inserted) if numbered and inserted == len(rows) else None
            return Inserted(inserted, first)
        finally:
            cursor.close()

    def numbering(self, rows: Sequence[Row], by: Driver) -> str:
        """The clause that makes an INSERT return the rows' numbers, or nothing."""
        return ""

    @abstractmethod
    def first_number(self, cursor: Any, rows: int) -> int | None:
        """The number of the first of the ``rows`` that the cursor has just inserted. None: unknown, or there is a
        gap."""

    @abstractmethod
    def insert(self, connection: Connection, table: str, rows: Sequence[Row]) -> int:
        """Insert the rows whose id is not there yet, on the caller's connection. Returns how many."""

    @abstractmethod
    def commits_each(self, connection: Connection) -> bool:
        """Whether the caller's connection is in autocommit and has no open transaction."""

    def all_or_none(self, connection: Connection, savepoint: str) -> AbstractContextManager[None]:
        """See :func:`all_or_none`. Nested blocks need different names: MySQL replaces a savepoint of the same name."""
        if not connection.in_transaction():
            connection.begin()  # as the next statement would: a host's listener may say BEGIN then
        return all_or_none(connection, savepoint, alone=self.transaction if self.commits_each(connection) else None)

    def delete_runs(self, connection: Connection, table: str, members: Runs) -> None:
        """Delete the rows of the log whose numbers are in ``members``."""
        for start in range(0, len(members), RUNS_AT_ONCE):
            some = " OR ".join(f"seq BETWEEN {lo} AND {hi}" for lo, hi in members[start : start + RUNS_AT_ONCE])
            connection.exec_driver_sql(f"DELETE FROM {table} WHERE {some}")  # noqa: S608 - our name, and integers

    @abstractmethod
    def sequence_position(self, connection: Connection, table: str) -> int:
        """The highest number handed out so far, committed or not; 0 when none was."""

    @abstractmethod
    def advance_sequence(self, connection: Connection, table: str, beyond: int) -> None:
        """Make the next number larger than ``beyond``."""

    @abstractmethod
    def advance_sequence_sql(self, table: str, beyond: int) -> str:
        """The statement of :meth:`advance_sequence` for an operator to run."""

    notifies: ClassVar[bool] = False
    """``watch_commits`` reports commits of other processes."""
    announces: ClassVar[bool] = False
    """``watch_commits`` reports only the commits that ``announcing`` announced."""

    def announcing(self, engine: Engine) -> AbstractContextManager[Announce]:
        """A connection that notifies other processes of commits."""
        return nullcontext(lambda _tables: None)

    def watch_commits(
        self, engine: Engine, lanes: Mapping[str, str], here: Mapping[str, int]
    ) -> AbstractContextManager[Look]:
        """A connection that learns of commits of other processes. ``lanes``: the lane of each table. ``here``: by
        table, the last number that this process has notified its own worker of."""
        return nullcontext(lambda _stop: ())

    def give_back(self, connection: Connection) -> bool:
        """Return some of the space of deleted rows to the file system, beyond what the next rows need. Returns whether
        there is more."""
        return False

    def make_room(self, connection: Connection) -> None:  # noqa: B027 - only a file needs it
        """On a full disk: let the next writes take space that the database holds and needs no more."""

    def writers(self, connection: Connection, table: str) -> frozenset[str] | None:
        """The transactions that may still fill a hole in the log. None: the database does not tell, so age decides."""
        return None

    def place(self, connection: Connection) -> Place:
        """Where the connection finds the tables: one statement, which fails in a transaction that has failed. Whether
        there are tables is only told where a connection may see those of several schemas. A file has none: the path is
        its place, and ``same_file`` tells whether it is still there."""
        return Place(connection.engine.url.database)

    def search_path(self, pooled: PoolProxiedConnection) -> Any:
        """What the driver knows of the session's settings that decide on :meth:`place`, without a round trip. None:
        nothing."""
        return None

    same_place: ClassVar[str] = ""
    """How the host and the outbox get the same :meth:`place`, where the database is the same."""

    def require_place(self, connection: Connection, where: str) -> None:  # noqa: B027 - most databases are the place
        """Raise ``ConfigError`` where tables without a schema's name can neither be made nor found."""

    @contextmanager
    def migration_lock(self, connection: Connection) -> Iterator[None]:
        """A lock around a migration, so that several processes may start at once. Raises ``DatabaseUnavailable`` when
        another process holds it for too long."""
        yield

    def drop_columns(self, table: str, columns: Sequence[str]) -> Sequence[str]:
        """Statements that drop columns (at least one), in the order given."""
        return [f"ALTER TABLE {table} DROP COLUMN {column}" for column in columns]

    def drop_tables(self, tables: Sequence[str], view: str) -> Sequence[str]:
        """Statements that drop the tables in the order given, and a view of them; what does not exist is skipped."""
        return [f"DROP VIEW IF EXISTS {view}", *(f"DROP TABLE IF EXISTS {table}" for table in tables)]

    @abstractmethod
    def readable_time(self, column: str) -> str:
        """SQL that shows ``column`` (µs since the epoch) as a UTC timestamp."""

    @abstractmethod
    def member_of(self, seq: str, members: str) -> str:
        """SQL condition: number ``seq`` is in the runs of ``members``. Only the view for people uses it."""

    @abstractmethod
    def error_code(self, error: DBAPIError) -> Any:
        """The database's own code for the error; None: there is none."""

    def message(self, error: DBAPIError) -> str:
        """The error in the database's words."""
        return str(error.orig)

    def is_missing_table(self, error: DBAPIError) -> bool:
        return self.error_code(error) in self.missing_table_codes

    def is_missing_column(self, error: DBAPIError) -> bool:
        return self.error_code(error) in self.missing_column_codes

    def is_lost_claim(self, error: DBAPIError) -> bool:
        """Whether another transaction won (serialization failure, deadlock, lock timeout): roll back and retry."""
        return self.error_code(error) in self.lost_claim_codes

    def is_lock_timeout(self, error: DBAPIError) -> bool:
        """Whether another session held a lock for too long: a retry at once may wait as long again."""
        return self.error_code(error) in self.lock_timeout_codes

    def may_hold(self, error: DBAPIError) -> bool:
        """Whether an autocommitted statement that failed with ``error`` may hold all the same."""
        return error.connection_invalidated

    def is_read_only(self, error: DBAPIError) -> bool:
        """Whether this session may not write. Another may, now or later, on this server or another."""
        return self.error_code(error) in self.read_only_codes
