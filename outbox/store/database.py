"""Engines and transactions as the outbox needs them, whatever the host's engine says.

`Database.write()` and `Database.read()` are the two ways in; `alone()`, `insert_one()` and `look()` are the same for a
few statements, by the driver alone. A write on SQLite begins IMMEDIATE: a deferred transaction that upgrades later
fails at once with BUSY, whatever the timeout.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager, nullcontext
from sqlite3 import SQLITE_BUSY
from sqlite3 import OperationalError as SQLiteError
from typing import Any, TypeVar

from sqlalchemy import Connection, Engine, PoolProxiedConnection, create_engine, event, make_url
from sqlalchemy.engine import URL
from sqlalchemy.exc import (
    ArgumentError,
    DBAPIError,
    IntegrityError,
    NoSuchModuleError,
    OperationalError,
)

from outbox.errors import ConfigError, DatabaseUnavailable, OutboxError, OutcomeUnknown, SchemaOutOfDate
from outbox.observe import uninstrumented
from outbox.store.connections import Connections
from outbox.store.dialects import Dialect, Row, dialect_named
from outbox.store.forks import ForkGuard, told_of_forks
from outbox.store.prepared import Prepared, Values, heard, own_transaction, rolled_back, translated

T = TypeVar("T")

_READ = "outbox_read"
_WAITS_MS, _WAITS_NOW_MS, _WAL = "outbox_waits_ms", "outbox_waits_now_ms", "outbox_wal"

FIRST_LOCK_PAUSE_SECONDS, LOCK_PAUSE_SECONDS = 0.0002, 0.0005
"""How long a write sleeps between two looks whether SQLite's one write lock is free."""
TURN_PAUSE_SECONDS = 2 * LOCK_PAUSE_SECONDS
"""Between two turns at it: whoever waits for the lock has looked by then."""


class Database:
    """A database that holds an outbox. ``bind``: a URL, or a synchronous engine of the host.

    Raises ``ConfigError`` when the URL names no database that outbox knows or no installed driver.
    """

    def __init__(self, bind: str | URL | Engine, *, synchronous: str = "FULL") -> None:
        self.url = _parse(bind.url if isinstance(bind, Engine) else bind)
        self.dialect = _dialect(self.url)
        with uninstrumented():
            self.engine = _engine(bind, self.url, self.dialect, synchronous)
        one_writer = self.dialect.single_writer
        self._connections = Connections(self.engine, served=not one_writer, autocommit=self.dialect.autocommits)
        self._guard = ForkGuard(self.engine, str(self.url.database), self._connections) if one_writer else None
        told_of_forks(self._guard or self._connections)
        self._turn_over_at = -math.inf
        self._pid = os.getpid()

    @property
    def safe_url(self) -> str:
        """The URL without its password, for people."""
        return self.url.render_as_string(hide_password=True)

    def close(self) -> None:
        self.engine.dispose()

    @contextmanager
    def write(self, *, in_turn: bool = False) -> Iterator[Connection]:
        """One transaction that may write; committed at the end of the block, rolled back by an exception.

        ``in_turn``: one of many, of a worker. Between two of them producers find SQLite's write lock free: a worker
        that takes it again at once has it for as long as it is busy.

        Raises ``OutcomeUnknown`` when the COMMIT itself failed, ``DatabaseUnavailable`` and ``SchemaOutOfDate``
        for what they say.
        """
        self._after_fork()
        with (
            uninstrumented(),
            self._turn() if in_turn and self.dialect.single_writer else nullcontext(),
            self._guard.writer if self._guard else nullcontext(),
            self.explained(),
            self.engine.connect() as connection,
        ):
            transaction = connection.begin()
            try:
                yield connection
            except BaseException:
                transaction.rollback()
                raise
            try:
                transaction.commit()
            except DBAPIError as error:
                raise self._commit_failed(error) from error

    @contextmanager
    def _turn(self) -> Iterator[None]:
        pause = self._turn_over_at + TURN_PAUSE_SECONDS - time.monotonic()
        if pause > 0:
            time.sleep(pause)
        try:
            yield
        finally:
            self._turn_over_at = time.monotonic()

    def insert_one(self, table: str, row: Row) -> int | None:
        """Insert a row in a transaction of its own: how many were, 0 where it is there. None: see ``alone``."""

        def insert(pooled: PoolProxiedConnection) -> int:
            with closing(pooled.cursor()) as cursor:
                cursor.execute(*self.dialect.insertion(table, row, self.engine.dialect.driver))
                return int(cursor.rowcount)

        return self.alone(insert)

    def alone(self, work: Callable[[PoolProxiedConnection], T | None], *, in_turn: bool = False) -> T | None:
        """Do ``work`` on a connection of the driver, in a transaction of its own: SQLAlchemy's Connection takes longer
        than a statement. None, and nothing is written: ``work`` said so, or it takes a :meth:`write`.

        Where a statement can commit itself, ``work`` must be one. ``in_turn`` and what is raised: as :meth:`write`; a
        statement that commits itself may hold or not when its connection breaks.
        """
        if heard(self.engine):
            return None
        dialect, alone = self.engine.dialect, self.dialect.autocommits
        may_hold = False
        with (
            self._turn() if in_turn and self.dialect.single_writer else nullcontext(),
            self._guard.writer if self._guard else nullcontext(),
            self.explained(),
        ):
            try:
                with self._raw() as pooled, nullcontext() if alone else own_transaction(dialect, pooled):
                    done = work(pooled)
                    may_hold = done is not None
                    if not alone:
                        (dialect.do_commit if may_hold else dialect.do_rollback)(pooled)
                    return done
            except DBAPIError as error:
                if may_hold or (alone and error.connection_invalidated):
                    self._connections.distrust()
                    raise self._commit_failed(error) from error
                if isinstance(error, IntegrityError) or self.dialect.is_lost_claim(error):
                    return None
                raise

    def look(self, statement: Prepared, values: Values) -> Sequence[Any]:
        """The rows of one SELECT. Raises as :meth:`read`."""
        if heard(self.engine):
            with self.read() as connection:
                return statement.rows(connection, values)
        dialect, alone = self.engine.dialect, self.dialect.autocommits
        with (
            self.explained(),
            self._raw() as pooled,
            nullcontext() if alone else rolled_back(dialect, pooled),
        ):
            if self.dialect.single_writer:
                _let_wait(pooled, _waits_ms(pooled))
            return statement.fetched(pooled, dialect, values)

    @contextmanager
    def _raw(self) -> Iterator[PoolProxiedConnection]:
        """A connection of the driver; its errors become SQLAlchemy's."""
        self._after_fork()
        with uninstrumented(), self._connections.one() as pooled:
            try:
                yield pooled
            except self.engine.dialect.loaded_dbapi.Error as raised:
                error = translated(raised, self.engine.dialect, pooled)
                if error.connection_invalidated and pooled.is_valid:
                    pooled.invalidate(raised)
                raise error from raised

    @contextmanager
    def read(self, *, snapshot: bool = False) -> Iterator[Connection]:
        """A transaction that only reads; with ``snapshot`` every statement in it sees the same moment."""
        self._after_fork()
        level = self.dialect.snapshot_isolation if snapshot else self.dialect.read_isolation
        options: dict[str, Any] = {"isolation_level": level} if level else {}
        with uninstrumented(), self.explained(), self.engine.connect().execution_options(**options) as connection:
            pooled = connection.info
            pooled[_READ] = True
            try:
                yield connection
            finally:
                pooled.pop(_READ, None)

    @contextmanager
    def explained(self) -> Iterator[None]:
        """Turn what the driver says into what a person can act on."""
        try:
            yield
        except DBAPIError as error:
            if self.dialect.is_read_only(error) or error.connection_invalidated:
                # A session stays as it began, and perhaps another host takes writes. One that broke broke with others.
                self._connections.distrust()
            raise self.explain(error) from error
        except self.engine.dialect.loaded_dbapi.Error as error:
            # SQLAlchemy sets a connection's isolation level outside of its own handling of errors.
            raise self.explain(OperationalError(None, None, error)) from error

    def explain(self, error: DBAPIError) -> OutboxError | DBAPIError:
        """The outbox error for a driver's error; the error itself when it is not the database's state."""
        if self.dialect.is_missing_table(error):
            return SchemaOutOfDate(f"{self.safe_url}: the outbox tables are not there. Run: outbox migrate")
        code = self.dialect.error_code(error)
        advice = self.dialect.advice.get(code)
        if code in self.dialect.damaged_codes:
            return OutboxError(f"{self.safe_url}: {_first_line(error)}. {advice or 'Restore a backup.'}")
        if advice or error.connection_invalidated or isinstance(error, OperationalError):
            return DatabaseUnavailable(
                f"{self.safe_url}: {_first_line(error)}. Nothing was written by this call."
                f" {advice or 'Check that the database is up and writable, then try again.'}"
            )
        return error

    def is_lost_claim(self, error: BaseException) -> bool:
        cause = error if isinstance(error, DBAPIError) else error.__cause__
        return isinstance(cause, DBAPIError) and self.dialect.is_lost_claim(cause)

    def _commit_failed(self, error: DBAPIError) -> OutboxError | DBAPIError:
        if self.dialect.is_lost_claim(error):
            return error  # a serialization failure at COMMIT is a rollback, certainly
        advice = self.dialect.advice.get(self.dialect.error_code(error), "")
        return OutcomeUnknown(
            f"{self.safe_url}: COMMIT failed ({_first_line(error)}): the transaction may hold or not."
            f" {advice}{advice and ' '}Enqueue the same messages again: an id that is there already is not added twice."
        )

    def _after_fork(self) -> None:
        """A connection must not be shared with the parent process: the child starts with none."""
        if self._guard is not None:
            self._guard.check()
        if self._pid != os.getpid():
            self.engine.dispose(close=False)
            self._pid = os.getpid()


def _parse(url: str | URL) -> URL:
    """Its password, wherever it stands, where ``safe_url`` leaves it out."""
    try:
        parsed = make_url(url)
    except (ArgumentError, ValueError):  # ValueError: a port that is no number
        raise ConfigError(
            "OUTBOX_DATABASE_URL is not a database URL. Write for example sqlite:///outbox.db or"
            " postgresql+psycopg://user@host/name; quote a password by urllib.parse.quote(password, safe='')"
        ) from None  # its message may repeat a part of the password
    password = parsed.query.get("password")
    return parsed.set(password=password).difference_update_query(["password"]) if isinstance(password, str) else parsed


def _dialect(url: URL) -> Dialect:
    try:
        return dialect_named(url.get_backend_name())
    except KeyError:
        raise ConfigError(
            f"OUTBOX_DATABASE_URL: {url.get_backend_name()!r} is not supported."
            " Use sqlite, postgresql+psycopg or mysql+pymysql."
        ) from None


def _engine(bind: str | URL | Engine, url: URL, dialect: Dialect, synchronous: str) -> Engine:
    if isinstance(bind, Engine) and not dialect.single_writer and not bind.dialect.is_async:
        # The host's own way to connect (certificates, tokens), with a pool and settings of our own.
        engine = Engine(bind.pool.recreate(), bind.dialect, url, hide_parameters=True)
        if dialect.worker_isolation:
            engine = engine.execution_options(isolation_level=dialect.worker_isolation)
    else:
        engine = _create(dialect.sync_url(url), dialect, synchronous)
    event.listen(engine, "connect", _setup(dialect, synchronous))
    event.listen(engine, "do_connect", _require_store(dialect, url))
    if dialect.single_writer:
        # Not the event "begin": an engine that has any listener prepares each connection for all events, which costs
        # a put more than its INSERT does.
        setattr(engine.dialect, "do_begin", _begin)  # noqa: B010 - mypy: cannot assign to a method
    return engine


def _create(url: URL, dialect: Dialect, synchronous: str) -> Engine:
    dialect.check_url(url)
    arguments = dialect.engine_arguments(synchronous=synchronous)
    if dialect.worker_isolation:  # once for a connection; as an execution option it would be said for each transaction
        arguments["isolation_level"] = dialect.worker_isolation
    try:
        return create_engine(url, hide_parameters=True, **arguments)
    except (ImportError, NoSuchModuleError) as error:
        raise ConfigError(
            f"OUTBOX_DATABASE_URL: the driver for {url.drivername} is not installed ({error})."
            " Install beacon-outbox[postgres] or beacon-outbox[mysql]."
        ) from error


def _setup(dialect: Dialect, synchronous: str) -> Any:
    def on_connect(driver_connection: Any, _record: Any) -> None:
        try:
            dialect.prepare(driver_connection, synchronous=synchronous)
        except BaseException:
            driver_connection.close()  # the pool has not taken it yet
            raise

    return on_connect


def _require_store(dialect: Dialect, url: URL) -> Any:
    def on_do_connect(*_: Any) -> None:
        dialect.require_store(url)

    return on_do_connect


def _begin(pooled: PoolProxiedConnection) -> None:
    """IMMEDIATE, unless it is the transaction of a ``read``."""
    driver_connection: Any = pooled.driver_connection
    waits = _waits_ms(pooled)
    if _READ in pooled.info:
        _let_wait(pooled, waits)
        driver_connection.execute("BEGIN")
        return
    _let_wait(pooled, 0)
    try:
        _begin_immediate(driver_connection, waits / 1000)
    finally:
        if not pooled.info[_WAL]:  # without a write-ahead log its COMMIT waits for readers
            _let_wait(pooled, waits)


def _waits_ms(pooled: PoolProxiedConnection) -> int:
    """How long this connection waits for a lock, as it was set up."""
    info = pooled.info
    if _WAITS_MS not in info:
        driver_connection: Any = pooled.driver_connection
        (info[_WAITS_MS],) = (info[_WAITS_NOW_MS],) = driver_connection.execute("PRAGMA busy_timeout").fetchone()
        info[_WAL] = driver_connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    waits: int = info[_WAITS_MS]
    return waits


def _let_wait(pooled: PoolProxiedConnection, milliseconds: int) -> None:
    """Let SQLite itself wait so long for a lock. It stays so: the next write of a producer needs no word about it."""
    if pooled.info[_WAITS_NOW_MS] != milliseconds:
        driver_connection: Any = pooled.driver_connection
        driver_connection.execute(f"PRAGMA busy_timeout = {milliseconds}")
        pooled.info[_WAITS_NOW_MS] = milliseconds


def _begin_immediate(driver_connection: Any, seconds: float) -> None:
    """Wait for the write lock more closely than SQLite does, which sleeps 1, 2, 5, 10 ... 100 ms for one of a few."""
    deadline, pause = time.monotonic() + seconds, FIRST_LOCK_PAUSE_SECONDS
    while True:
        try:
            driver_connection.execute("BEGIN IMMEDIATE")
            return
        except SQLiteError as error:
            if error.sqlite_errorcode & 0xFF != SQLITE_BUSY or time.monotonic() > deadline:
                raise
        time.sleep(pause)
        pause = min(2 * pause, LOCK_PAUSE_SECONDS)


def _first_line(error: DBAPIError) -> str:
    return str(error.orig).strip().splitlines()[0].rstrip(".") if str(error.orig).strip() else type(error.orig).__name__
