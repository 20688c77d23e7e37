"""Engines and transactions as the outbox needs them, whatever the host's engine says.

`Database.write()` and `Database.read()` are transactions on a SQLAlchemy connection; `alone()`, `insert()` and `look()`
do the same for a few statements on a driver connection, without SQLAlchemy's overhead. A write on SQLite begins
IMMEDIATE: a deferred transaction that upgrades later fails at once with BUSY, whatever the timeout.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from functools import partial
from typing import Any, Generic, TypeVar
from weakref import finalize

from sqlalchemy import Connection, Engine, PoolProxiedConnection, event
from sqlalchemy.engine import URL
from sqlalchemy.engine import Dialect as Driver
from sqlalchemy.exc import (
    DBAPIError,
    IntegrityError,
    OperationalError,
    SQLAlchemyError,
)
from sqlalchemy.exc import TimeoutError as PoolTimeout

from outbox.core.text import mask_password
from outbox.errors import NOTHING_WRITTEN, DatabaseUnavailable, OutboxError, OutcomeUnknown, SchemaOutOfDate
from outbox.store.compiled import CompiledStatement, Values, has_listeners, translated
from outbox.store.connections import Connections
from outbox.store.dialects import Dialect, Inserted, Row, is_of
from outbox.store.dialects.sqlite_lock import LOCK_PAUSE_SECONDS, READS, when_free
from outbox.store.engines import dialect_for, engine_for, parsed, require_driver
from outbox.store.forks import ForkGuard, call_around_forks
from outbox.store.ledger import Inside
from outbox.store.same_file import SameFile, note_file, require_same
from outbox.store.same_place import NO_TABLES, SamePlace, other_kind
from outbox.uninstrumented import uninstrumented

T = TypeVar("T")

_NOTHING = nullcontext()

RUN_AGAIN = "Run it again, as a worker does: what holds is not done twice."
PUT_AGAIN = "Enqueue the same messages again: an id that is there already is not added twice."
"""Sentences of error messages: what to do next."""
_ONLY_URL = (
    " Of an AsyncEngine the outbox uses the URL only: if its connect_args, creator or listeners say more, give Outbox"
    " an Engine that has them too."
)
TURN_PAUSE_SECONDS = 2 * LOCK_PAUSE_SECONDS
"""A worker's pause between two write transactions on SQLite: every connection that waits for the lock polls it in that
time."""


class Database:
    """A database that holds an outbox. ``bind``: a URL, or a synchronous engine of the host.

    Raises ``ConfigError`` when the URL names no database that outbox knows or no installed driver.
    """

    def __init__(self, bind: str | URL | Engine, *, synchronous: str = "FULL") -> None:
        self.url = parsed(bind.url if isinstance(bind, Engine) else bind)
        self.dialect = dialect_for(self.url)
        self._only_url = _ONLY_URL if isinstance(bind, Engine) and bind.dialect.is_async else ""
        require_driver(bind, self.dialect)
        with uninstrumented():
            self.engine = engine_for(bind, self.url, self.dialect, synchronous)
        one_writer = self.dialect.single_writer
        self._connections = Connections(self.engine, self.dialect)
        self._guard = ForkGuard(self.engine, str(self.url.database), self._connections) if one_writer else None
        call_around_forks(self._guard or self._connections)
        if self._guard is not None:
            self._connections.file = SameFile(self.engine, str(self.url.database), self.safe_url, self._guard)
            if isinstance(bind, Engine):
                event.listen(bind, "connect", note_file)
        # SQLAlchemy holds checked-out connections in a global list: kept-at-hand ones would keep the engine alive, and
        # the engine them, after the last reference to this object is gone.
        finalize(self, self._connections.let_go).atexit = False
        self._turn_over_at = -math.inf
        self._place = SamePlace()

    @property
    def safe_url(self) -> str:
        """The URL without its secrets, for people."""
        return mask_password(self.url.render_as_string(hide_password=True))

    def require_here(self, connection: Connection) -> None:
        """Raise ``ConfigError`` where what the host's connection commits would never be sent: it is in another
        database, or finds other tables; ``SchemaOutOfDate`` where it finds none; ``DatabaseUnavailable`` where its
        SQLite file was removed. A server is asked once for each driver connection."""
        if not is_of(connection, self.dialect):
            raise other_kind(connection, self.safe_url)
        if self._connections.file is not None:
            require_same(connection, self._connections.file)
        else:
            self._place.require(connection, self)

    def close(self) -> None:
        self._place.close()
        self.engine.dispose()

    @contextmanager
    def write(self, *, in_turn: bool = False, again: str = RUN_AGAIN) -> Iterator[Connection]:
        """One transaction that may write; committed at the end of the block, rolled back by an exception.

        ``in_turn``: one of a worker's many transactions; on SQLite a pause before it leaves the write lock to
        producers. A worker that took it again at once would starve them for as long as it is busy.

        Raises ``OutcomeUnknown`` when the COMMIT itself failed (``again``: the advice in its message),
        ``DatabaseUnavailable`` and ``SchemaOutOfDate``.
        """
        self._after_fork()
        with (
            uninstrumented(),
            self._turn() if in_turn and self.dialect.single_writer else _NOTHING,
            self._guard.writer if self._guard else _NOTHING,
            self.explained(),
            self.engine.connect() as connection,
        ):
            transaction = connection.begin()
            try:
                with _unread_closed(connection):
                    yield connection
            except BaseException:
                with _unread_closed(connection):
                    transaction.rollback()
                raise
            with _unread_closed(connection):
                try:
                    transaction.commit()
                except DBAPIError as error:
                    raise self._commit_failed(error, again) from error

    @contextmanager
    def _turn(self) -> Iterator[None]:
        pause = self._turn_over_at + TURN_PAUSE_SECONDS - time.monotonic()
        if pause > 0:
            time.sleep(pause)
        try:
            yield
        finally:
            self._turn_over_at = time.monotonic()

    def insert(self, table: str, rows: Sequence[Row], *, numbered: bool = False) -> Inserted | None:
        """Insert the rows whose id is new, in a transaction of their own. None: see :meth:`alone`."""
        by, statements = self.engine.dialect, 1 if self.dialect.at_once(rows) else len(rows)
        return self.alone(
            lambda pooled: self.dialect.put(pooled, table, rows, by, numbered=numbered),
            statements=statements,
            again=PUT_AGAIN,
        )

    def alone(
        self,
        work: Callable[[PoolProxiedConnection], T | None],
        *,
        statements: int,
        in_turn: bool = False,
        again: str = RUN_AGAIN,
    ) -> T | None:
        """Run ``work`` in a transaction of its own on a driver connection: SQLAlchemy's Connection costs more than a
        statement. ``statements``: how many it runs.

        None: nothing was written, because ``work`` returned None, or because only a :meth:`write` can do it (the engine
        has event listeners, a duplicate key, a lost race for locks).

        A single statement is run in autocommit where the dialect has it; if it then fails, it may hold or not
        (``OutcomeUnknown``). ``in_turn``, ``again`` and the errors are those of :meth:`write`.
        """
        if has_listeners(self.engine):
            return None
        many = statements > 1 or not self.dialect.autocommits
        transaction = _Transaction(self.engine.dialect, self.dialect, work)
        with (
            self._turn() if in_turn and self.dialect.single_writer else _NOTHING,
            self._guard.writer if self._guard else _NOTHING,
        ):
            try:
                return self._by_the_driver(transaction.run if many else partial(self._autocommitted, work))
            except DBAPIError as error:
                may_hold = transaction.may_hold if many else self.dialect.may_hold(error)
                self._raise_for(error, again, may_hold=may_hold)
                return None
            except self.engine.dialect.loaded_dbapi.Error as error:  # while it connected
                raise self._in_words(error) from error

    def _autocommitted(self, work: Callable[[PoolProxiedConnection], T], pooled: PoolProxiedConnection) -> T:
        return when_free(pooled, work) if self.dialect.single_writer else work(pooled)

    def _raise_for(self, error: DBAPIError, again: str, *, may_hold: bool) -> None:
        """Raise the outbox error for ``error``; return where a :meth:`write` may succeed."""
        if self.lost_a_race(error):
            return
        if may_hold:
            self._connections.distrust()
            raise self._commit_failed(error, again) from error
        if not isinstance(error, IntegrityError):
            raise self._in_words(error) from error

    def look(self, statement: CompiledStatement, values: Values) -> Sequence[Any]:
        """The rows of one SELECT. Raises the errors of :meth:`read`."""
        if has_listeners(self.engine):
            with self.read() as connection:
                return statement.rows(connection, values)
        dialect = self.engine.dialect

        def fetch(pooled: PoolProxiedConnection) -> Sequence[Any]:
            return statement.fetched(pooled, dialect, values)

        def do(pooled: PoolProxiedConnection) -> Sequence[Any]:
            if self.dialect.autocommits:
                return self._autocommitted(fetch, pooled)
            try:
                return fetch(pooled)
            finally:
                with suppress(dialect.loaded_dbapi.Error):
                    dialect.do_rollback(pooled)

        with self.explained():
            return self._by_the_driver(do)

    def _by_the_driver(self, do: Callable[[PoolProxiedConnection], T]) -> T:
        """Call ``do`` with a driver connection; driver errors are raised as SQLAlchemy's ``DBAPIError``."""
        self._after_fork()
        with uninstrumented():
            try:
                pooled, at_hand = self._connections.take()
            except PoolTimeout as none:
                raise self._all_taken() from none
            try:
                done = do(pooled)
            except BaseException as raised:
                dialect = self.engine.dialect
                if not isinstance(raised, dialect.loaded_dbapi.Error):
                    pooled.invalidate(raised)
                    raise
                error = translated(raised, dialect, pooled)
                if error.connection_invalidated and pooled.is_valid:
                    pooled.invalidate(raised)
                pooled.close()
                raise error from raised
            self._connections.keep(pooled, at_hand)
            return done

    @contextmanager
    def read(self, *, snapshot: bool = False) -> Iterator[Connection]:
        """A read-only transaction; with ``snapshot`` all its statements see one snapshot."""
        self._after_fork()
        level = self.dialect.snapshot_isolation if snapshot else self.dialect.read_isolation
        options: dict[str, Any] = {"isolation_level": level} if level else {}
        with uninstrumented(), self.explained(), self.engine.connect().execution_options(**options) as connection:
            pooled = connection.info
            pooled[READS] = True
            try:
                with _unread_closed(connection):
                    yield connection
            finally:
                pooled.pop(READS, None)

    def make_room(self) -> None:
        """After a write that failed: see ``Dialect.make_room``. Raises nothing: the next write says what is wrong."""
        if self.dialect.single_writer:
            with suppress(OutboxError, DBAPIError), self.read() as connection:
                self.dialect.make_room(connection)

    @contextmanager
    def explained(self, kept: str = NOTHING_WRITTEN) -> Iterator[None]:
        """Raise driver errors as outbox errors. ``kept``: the sentence that says which work of the call holds."""
        try:
            yield
        except (DBAPIError, self.engine.dialect.loaded_dbapi.Error) as error:
            raise self._in_words(error, kept) from error
        except PoolTimeout as none:
            raise self._all_taken() from none

    def _in_words(self, error: Exception, kept: str = NOTHING_WRITTEN) -> OutboxError | DBAPIError:
        """The outbox error for ``error``: SQLAlchemy's, or the driver's own where SQLAlchemy does not translate it
        (while it connects or sets the isolation level). May distrust the pool's connections."""
        if not isinstance(error, DBAPIError):
            return self.explain(OperationalError(None, None, error), kept)
        if self.dialect.is_read_only(error) or error.connection_invalidated:
            # A session stays read-only, while a new one may reach a writable host. A broken connection is rarely the
            # only one.
            self._connections.distrust()
        return self.explain(error, kept)

    def explain(self, error: DBAPIError, kept: str = NOTHING_WRITTEN) -> OutboxError | DBAPIError:
        """The outbox error for a driver's error; the error itself when the database's state is not the cause."""
        if self.dialect.is_missing_table(error):
            return SchemaOutOfDate(f"{self.safe_url}: {NO_TABLES}")
        code = self.dialect.error_code(error)
        advice = self.dialect.advice.get(code)
        if self.dialect.is_missing_column(error):
            return SchemaOutOfDate(f"{self.safe_url}: {self._first_line(error)}. Run: outbox migrate")
        if code in self.dialect.damaged_codes:
            return OutboxError(f"{self.safe_url}: {self._first_line(error)}. {advice or 'Restore a backup.'}")
        if advice or error.connection_invalidated or isinstance(error, OperationalError):
            return DatabaseUnavailable(
                f"{self.safe_url}: {self._first_line(error)}. {kept}"
                f" {advice or 'Check that the database is up and writable, then try again.' + self._only_url}"
            )
        return error

    def _all_taken(self) -> DatabaseUnavailable:
        return DatabaseUnavailable(
            f"{self.safe_url}: all connections of the pool were taken for too long. {NOTHING_WRITTEN} Use fewer threads"
            " at once, or give an engine with a larger pool (pool_size)."
        )

    def is_lost_claim(self, error: BaseException) -> bool:
        cause = error if isinstance(error, DBAPIError) else error.__cause__
        return isinstance(cause, DBAPIError) and self.dialect.is_lost_claim(cause)

    def denied(self, error: BaseException) -> DBAPIError | None:
        """The driver's error behind ``error``, if a privilege is missing."""
        cause = error.__cause__
        lacks = isinstance(cause, DBAPIError) and self.dialect.error_code(cause) in self.dialect.denied_codes
        return cause if isinstance(cause, DBAPIError) and lacks else None

    def lost_a_race(self, error: BaseException) -> bool:
        """Whether the database rolled the transaction back for another one (a deadlock, a serialization failure). A
        lock timeout does not count."""
        cause = error if isinstance(error, DBAPIError) else error.__cause__
        return isinstance(cause, DBAPIError) and self.is_lost_claim(cause) and not self.dialect.is_lock_timeout(cause)

    def _commit_failed(self, error: DBAPIError, again: str) -> OutboxError | DBAPIError:
        if self.dialect.is_lost_claim(error):
            return error  # a serialization failure at COMMIT is certainly a rollback
        advice = self.dialect.advice.get(self.dialect.error_code(error), "")
        return OutcomeUnknown(
            f"{self.safe_url}: COMMIT failed ({self._first_line(error)}): the transaction may hold or not."
            f" {advice}{advice and ' '}{again}"
        )

    def _first_line(self, error: DBAPIError) -> str:
        lines = self.dialect.message(error).strip().splitlines()
        return lines[0].rstrip(".") if lines else type(error.orig).__name__

    def _after_fork(self) -> None:
        if self._guard is not None:
            self._guard.check()
        if self._connections.pid != os.getpid():  # forked without the hooks of os.register_at_fork
            self._connections.after_in_child()


class _Transaction(Generic[T]):
    """One transaction of ``work`` on a driver connection: committed, or rolled back when ``work`` returns None or
    raises."""

    def __init__(self, driver: Driver, dialect: Dialect, work: Callable[[PoolProxiedConnection], T | None]) -> None:
        self._driver = driver
        self._dialect = dialect
        self._work = work
        self.may_hold = False
        """The COMMIT was begun: the transaction may hold even where it failed."""

    def run(self, pooled: PoolProxiedConnection) -> T | None:
        driver = self._driver
        driver.do_begin(pooled)
        self._dialect.begin(pooled)
        try:
            done = self._work(pooled)
            self.may_hold = done is not None
            (driver.do_commit if self.may_hold else driver.do_rollback)(pooled)
        except BaseException:
            with suppress(driver.loaded_dbapi.Error):
                driver.do_rollback(pooled)
            raise
        return done


@contextmanager
def _unread_closed(connection: Connection) -> Iterator[None]:
    """Close the connection when anything but a database error is raised. A signal handler may raise between a statement
    and its answer; the connection's next user would read that answer as its own, since PyMySQL reads answers in
    order."""
    try:
        yield
    except (OutboxError, SQLAlchemyError, Inside):
        raise
    except BaseException as raised:
        connection.invalidate(raised)
        raise
