"""What a database must offer, and what holds for most of them."""

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
"""Runs in one WHERE: SQLite bounds the depth of an expression, at 1000."""

Row = tuple[bytes, str, int]
"""An entry to insert: the 16 bytes of its id, its payload (ASCII JSON text), the payload's size in bytes."""


class Inserted(NamedTuple):
    """``first``: the number of the first row, where it is known and the others follow without a gap."""

    rows: int
    first: int | None = None


def first_of(returned: Sequence[tuple[int]]) -> int | None:
    """Of the numbers that RETURNING gave: the first, if the others follow it without a gap."""
    first = returned[0][0]
    return first if all(number == first + at for at, (number,) in enumerate(returned)) else None


SOON = " soon"
"""After a table's name, in what is announced and looked for: rows are about to be committed."""
OptimisticWrite = Literal["joined", "triggered", "apart"]
"""How ``optimistic_write.py`` writes: one WITH statement, rows for a view with a trigger, or a short transaction."""
Announce = Callable[[Sequence[str]], None]
"""Announces to watchers the tables in which rows were committed."""
Look = Callable[[Event], Iterable[str]]
"""The tables in which rows were committed since the last look; waits for some, but not once the event is set."""


@contextmanager
def all_or_none(connection: Connection, savepoint: str, *, alone: bool) -> Iterator[None]:
    """What the block does is undone when it raises, and nothing else that the caller's transaction has done. ``alone``:
    there is none, for the connection commits each statement."""
    begin, end, undo = f"SAVEPOINT {savepoint}", f"RELEASE SAVEPOINT {savepoint}", f"ROLLBACK TO SAVEPOINT {savepoint}"
    if alone:
        begin, end, undo = "BEGIN", "COMMIT", "ROLLBACK"
    connection.exec_driver_sql(begin)
    try:
        yield
    except BaseException:
        if not connection.invalidated:
            try:
                connection.exec_driver_sql(undo)
            except DBAPIError:
                if connection.invalidated:
                    raise  # else what was raised before says more
        raise
    connection.exec_driver_sql(end)


class Dialect(ABC):
    """What holds for most databases."""

    name: ClassVar[str]
    sync_driver: ClassVar[str]
    worker_isolation: ClassVar[str | None] = "READ COMMITTED"
    read_isolation: ClassVar[str | None] = None
    """Of a transaction that reads once; None: as any other."""
    snapshot_isolation: ClassVar[str | None] = "REPEATABLE READ"
    single_writer: ClassVar[bool] = False
    """One transaction writes at a time: numbers commit in order, so there are no holes."""
    autocommits: ClassVar[bool] = False
    """A statement can be a transaction of its own, without a word to the server about it."""
    optimistic_write: ClassVar[OptimisticWrite | None] = None
    """How a worker that is alone, and decides without the lane's lock (store/optimistic.py), writes what it decided."""
    reads_ahead: ClassVar[Literal["before", "beside"] | None] = None
    """Whether to read a full batch before its claim has the lane, or beside the one before it (store/read_ahead.py)."""
    reads_while_writing: ClassVar[bool] = False
    """The one statement that a plain step writes reads the entries too."""
    aggregates_slowly: ClassVar[bool] = False
    """Joining payloads takes longer than reading a few row by row."""
    inserted_at_once: ClassVar[int] = 1
    inserted_at_once_bytes: ClassVar[int] = 0
    """Bounds of one INSERT of several rows: how many, and the bytes of their payloads. One row has no bound."""
    purge_chunk: ClassVar[int] = 2_000
    """Rows deleted in one transaction. Producers feel it on servers too: their COMMIT waits for what it writes."""
    storage_statements: ClassVar[tuple[str, ...]] = ()
    keeps_each_step: ClassVar[bool] = False
    """DDL commits by itself: a migration that is cut off leaves what it has done so far."""
    missing_table_codes: ClassVar[tuple[Any, ...]] = ()
    missing_column_codes: ClassVar[tuple[Any, ...]] = ()
    lost_claim_codes: ClassVar[tuple[Any, ...]] = ()
    lock_timeout_codes: ClassVar[tuple[Any, ...]] = ()
    read_only_codes: ClassVar[tuple[Any, ...]] = ()
    damaged_codes: ClassVar[tuple[Any, ...]] = ()
    """What is stored cannot be read as a database: trying again does not help."""
    advice: ClassVar[Mapping[Any, str]] = {}
    """What a person should do about a database that cannot be used now, by error code, where it is not obvious."""

    def sync_url(self, url: URL) -> URL:
        """The URL that the worker's synchronous engine uses, whatever driver the host chose."""
        return url.set(drivername=f"{self.name}+{self.sync_driver}")

    def check_url(self, url: URL) -> None:  # noqa: B027 - only a file needs it
        """Raise ``ConfigError`` for a URL that cannot hold an outbox."""

    def create_store(self, url: URL) -> None:  # noqa: B027 - only a file needs it
        """Make what must exist before the first connection. Raises ``DatabaseUnavailable``."""

    def require_store(self, url: URL) -> None:  # noqa: B027 - only a file needs it
        """Called before each connection. Raises ``SchemaOutOfDate`` when connecting would invent an empty store."""

    def prepare(self, driver_connection: Any, *, synchronous: str) -> None:
        """Set up a new connection of ours."""
        with closing(driver_connection.cursor()) as cursor:
            for statement in self.session_setup(synchronous=synchronous):
                cursor.execute(statement)
        driver_connection.commit()

    def engine_arguments(self, *, synchronous: str) -> dict[str, Any]:
        """Keyword arguments for ``create_engine``."""
        return {}

    def session_setup(self, *, synchronous: str) -> Sequence[str]:
        """Statements for each new connection of ours."""
        return ()

    def begin(self, pooled: PoolProxiedConnection) -> None:  # noqa: B027 - most drivers begin by themselves
        """Begin a transaction where the driver would not."""

    def commit_each(self, driver_connection: Any, each: bool) -> None:
        """Whether each statement commits itself, where it ``autocommits``."""
        if driver_connection.autocommit != each:
            driver_connection.autocommit = each

    @abstractmethod
    def insertion(self, table: str, rows: Sequence[Row], driver: str) -> tuple[str, Sequence[Any]]:
        """The statement that inserts the rows, and its parameters; a list of those: to be run for each. A row whose id
        is there already is not inserted, or raises the driver's ``IntegrityError``."""

    def at_once(self, rows: Sequence[Row]) -> bool:
        """Whether ``put`` inserts them by one statement."""
        return len(rows) == 1 or (
            len(rows) <= self.inserted_at_once and sum([size for *_, size in rows]) <= self.inserted_at_once_bytes
        )

    def put(
        self, pooled: PoolProxiedConnection, table: str, rows: Sequence[Row], by: Driver, *, numbered: bool = False
    ) -> Inserted:
        """As ``insert``, on a connection of our driver. Raises the driver's errors; its ``IntegrityError`` undid all
        rows or some. ``numbered``: somebody asks for the numbers, if they are easily known."""
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
        """At the end of an INSERT whose numbers are asked for."""
        return ""

    @abstractmethod
    def first_number(self, cursor: Any, rows: int) -> int | None:
        """The number of the first of the ``rows`` that the cursor has just inserted, if the others follow it."""

    @abstractmethod
    def insert(self, connection: Connection, table: str, rows: Sequence[Row]) -> int:
        """Insert the rows whose id is not there yet, on the caller's connection; how many were."""

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
        """The statement that an operator types to do the same."""

    notifies: ClassVar[bool] = False
    """``watch_commits`` learns of commits in other processes."""
    announces: ClassVar[bool] = False
    """It does so only of those that ``announcing`` told."""

    def announcing(self, engine: Engine) -> AbstractContextManager[Announce]:
        """A connection that tells other processes of commits."""
        return nullcontext(lambda _tables: None)

    def watch_commits(
        self, engine: Engine, lanes: Mapping[str, str], here: Mapping[str, int]
    ) -> AbstractContextManager[Look]:
        """A connection that learns of commits in other processes. ``lanes``: the lane of each table. ``here``: the last
        number in a table that this process has told of itself."""
        return nullcontext(lambda _stop: ())

    def give_back(self, connection: Connection) -> bool:
        """Return some of the room that deleted rows left to the disk; whether there is more to return."""
        return False

    def writers(self, connection: Connection, table: str) -> frozenset[str] | None:
        """Transactions that may still fill a hole in the log. None: the database cannot tell, go by age."""
        return None

    @contextmanager
    def migration_lock(self, connection: Connection) -> Iterator[None]:
        """Held around an upgrade, so that several processes may start at once. Raises ``DatabaseUnavailable`` when
        another one has it for too long."""
        yield

    def drop_columns(self, table: str, columns: Sequence[str]) -> Sequence[str]:
        """Statements that drop columns, of which there is one at least: the first of them first."""
        return [f"ALTER TABLE {table} DROP COLUMN {column}" for column in columns]

    def drop_tables(self, tables: Sequence[str], view: str) -> Sequence[str]:
        """Statements that drop tables, the first of them first, and a view of them. What is gone is no obstacle."""
        return [f"DROP VIEW IF EXISTS {view}", *(f"DROP TABLE IF EXISTS {table}" for table in tables)]

    @abstractmethod
    def readable_time(self, column: str) -> str:
        """SQL that shows ``column`` (µs since the epoch) as a UTC timestamp."""

    @abstractmethod
    def member_of(self, seq: str, members: str) -> str:
        """SQL condition: number ``seq`` is in the runs of ``members``. For people at a SQL prompt only."""

    def error_code(self, error: DBAPIError) -> Any:
        return getattr(error.orig, "sqlstate", None)

    def is_missing_table(self, error: DBAPIError) -> bool:
        return self.error_code(error) in self.missing_table_codes

    def is_missing_column(self, error: DBAPIError) -> bool:
        return self.error_code(error) in self.missing_column_codes

    def is_lost_claim(self, error: DBAPIError) -> bool:
        """Another transaction won: roll back and look again. Not a fault."""
        return self.error_code(error) in self.lost_claim_codes

    def is_lock_timeout(self, error: DBAPIError) -> bool:
        """Somebody held a lock for too long: who tries at once waits as long again."""
        return self.error_code(error) in self.lock_timeout_codes

    def may_hold(self, error: DBAPIError) -> bool:
        """Whether a statement that commits itself may hold although it failed so."""
        return error.connection_invalidated

    def is_read_only(self, error: DBAPIError) -> bool:
        """This session may not write. Another one may, now or later, on this server or the next."""
        return self.error_code(error) in self.read_only_codes
