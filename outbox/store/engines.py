"""The outbox's own engines: made from a URL, or from a host's engine, whose way to connect they share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from weakref import WeakSet

from sqlalchemy import Engine, NullPool, Pool, QueuePool, create_engine, event, make_url
from sqlalchemy.engine import URL
from sqlalchemy.engine import Dialect as Driver
from sqlalchemy.exc import ArgumentError, NoSuchModuleError

from outbox.errors import ConfigError
from outbox.store.dialects import Dialect, dialect_named
from outbox.store.dialects.sqlite_lock import begin


def parsed(url: str | URL) -> URL:
    """The URL, with a password from the query moved to where ``safe_url`` masks it. Raises ``ConfigError``."""
    try:
        parsed = make_url(url)
    except (ArgumentError, ValueError):  # ValueError: the port is not a number
        raise ConfigError(
            "OUTBOX_DATABASE_URL is not a database URL. Write for example sqlite:///outbox.db or"
            " postgresql+psycopg://user@host/name; quote a password by urllib.parse.quote(password, safe='')"
        ) from None  # its message may repeat a part of the password
    password = parsed.query.get("password")
    return parsed.set(password=password).difference_update_query(["password"]) if isinstance(password, str) else parsed


def dialect_for(url: URL) -> Dialect:
    try:
        return dialect_named(url.get_backend_name())
    except KeyError:
        raise ConfigError(
            f"OUTBOX_DATABASE_URL: {url.get_backend_name()!r} is not supported."
            " Use sqlite, postgresql+psycopg or mysql+pymysql."
        ) from None


def require_driver(bind: str | URL | Engine, dialect: Dialect) -> None:
    """Raise ``ConfigError`` for a host's engine whose driver the outbox cannot use. Of an engine that has no
    connections to share (SQLite, an AsyncEngine) only the URL is used."""
    if not isinstance(bind, Engine) or dialect.single_writer or bind.dialect.is_async:
        return
    usable = (dialect.sync_driver, *dialect.host_drivers)
    if bind.dialect.driver not in usable:
        url = bind.url.set(drivername=f"{bind.url.get_backend_name()}+{dialect.sync_driver}", query={})
        raise ConfigError(
            f"Outbox(engine): the outbox does not work by the driver {bind.dialect.driver}, but by"
            f" {' or '.join(usable)}. Give Outbox the URL {url.render_as_string(hide_password=True)} with the options"
            " of that driver; sessions that you give to enqueue may keep theirs."
        )


def engine_for(bind: str | URL | Engine, url: URL, dialect: Dialect, synchronous: str) -> Engine:
    if isinstance(bind, Engine):
        dialect.check_host(bind)
    dialect.check_url(url)
    if isinstance(bind, Engine) and not dialect.single_writer and not bind.dialect.is_async:
        # The host's way to connect (certificates, tokens), with the outbox's own pool and settings.
        engine = Engine(_pool_like(bind.pool), bind.dialect, url, hide_parameters=True)
        if dialect.worker_isolation:
            engine = engine.execution_options(isolation_level=dialect.worker_isolation)
        _share(engine, dialect, synchronous)
    else:
        engine = _create(url, dialect, synchronous)
        event.listen(engine, "connect", _setup(dialect, synchronous))
        event.listen(engine, "do_connect", _require_store(dialect, url))  # of the engine's dialect: never a host's
    if dialect.single_writer:
        # Not the event "begin": an engine with any listener prepares each connection for all events, which costs a put
        # more than its INSERT does.
        setattr(engine.dialect, "do_begin", begin)  # noqa: B010 - mypy: cannot assign to a method
    return engine


def _pool_like(hosts: Pool) -> Pool:
    """A pool that connects as the host's does, and gives each user a connection of its own: StaticPool has one for all
    threads, and SingletonThreadPool one for all users in a thread."""
    if isinstance(hosts, (QueuePool, NullPool)):
        return hosts.recreate()
    return QueuePool(
        hosts._creator,
        recycle=hosts._recycle,
        echo=hosts.echo,
        logging_name=hosts._orig_logging_name,
        reset_on_return=hosts._reset_on_return,
        pre_ping=hosts._pre_ping,
        dialect=hosts._dialect,
        _dispatch=hosts.dispatch,
    )


def _create(url: URL, dialect: Dialect, synchronous: str) -> Engine:
    arguments = dialect.engine_arguments(synchronous=synchronous)
    if dialect.worker_isolation:  # set once for a connection; as an execution option, for each transaction
        arguments["isolation_level"] = dialect.worker_isolation
    try:
        engine = create_engine(dialect.sync_url(url), hide_parameters=True, **arguments)
    except (ImportError, NoSuchModuleError) as error:
        raise ConfigError(
            f"OUTBOX_DATABASE_URL: the driver for {_own(url, dialect)} is not installed ({error})."
            " Install beacon-outbox[postgres] or beacon-outbox[mysql]."
        ) from error
    except (TypeError, ValueError) as error:
        raise _unusable(url, dialect, error) from None
    setattr(engine.dialect, "connect", _connecting(engine.dialect, url, dialect))  # noqa: B010 - mypy: as above
    return engine


def _own(url: URL, dialect: Dialect) -> str:
    return dialect.sync_url(url).drivername


def _unusable(url: URL, dialect: Dialect, error: Exception) -> ConfigError:
    """The error for a URL whose options the driver rejects; not for errors of the server or the file."""
    return ConfigError(
        f"OUTBOX_DATABASE_URL: {_own(url, dialect)} cannot connect by it ({type(error).__name__})."
        f" Check its path and its options: {', '.join(url.query) or 'it has none'}"
    )


def _setup(dialect: Dialect, synchronous: str) -> Any:
    def on_connect(driver_connection: Any, _record: Any) -> None:
        try:
            dialect.prepare(driver_connection, synchronous=synchronous)
        except BaseException:
            driver_connection.close()  # the pool does not own it yet
            raise

    return on_connect


_RESTORE = "outbox_restore"
"""Key in the ``info`` of a borrowed connection: the function that restores its state."""
_SAME = (
    "The creator= of the engine returned one driver connection a second time while it was in use: transactions of"
    " different threads would mix. Let it open a connection at each call."
)


def _share(engine: Engine, dialect: Dialect, synchronous: str) -> None:
    """Set up the connections of ``engine``, which a host's engine opens. Those of a pool behind it (psycopg_pool) are
    given back as they were, or dead."""
    open_now: WeakSet[Any] = WeakSet()

    def on_connect(driver_connection: Any, record: Any) -> None:
        if driver_connection in open_now:
            raise ConfigError(_SAME)
        open_now.add(driver_connection)
        try:
            if dialect.is_borrowed(driver_connection, engine.dialect):
                record.info[_RESTORE] = dialect.borrow(driver_connection, engine.dialect)
            else:
                dialect.prepare(driver_connection, synchronous=synchronous)
        except BaseException:
            open_now.discard(driver_connection)
            dialect.end(driver_connection)
            raise

    def on_close(driver_connection: Any, record: Any) -> None:
        open_now.discard(driver_connection)
        restore: Callable[[], None] | None = record.info.pop(_RESTORE, None)
        if restore is not None:
            try:
                restore()
            except BaseException as error:
                dialect.end(driver_connection)
                if not isinstance(error, engine.dialect.loaded_dbapi.Error):
                    raise

    def on_invalidate(driver_connection: Any, record: Any, _error: Any) -> None:
        if record.info.pop(_RESTORE, None) is not None:
            dialect.end(driver_connection)

    event.listen(engine, "connect", on_connect)
    event.listen(engine, "close", on_close)
    event.listen(engine, "invalidate", on_invalidate)
    event.listen(engine, "detach", lambda driver_connection, _: open_now.discard(driver_connection))


def _require_store(dialect: Dialect, url: URL) -> Any:
    def on_do_connect(*_: Any) -> None:
        dialect.require_store(url)

    return on_do_connect


def _connecting(driver: Driver, url: URL, dialect: Dialect) -> Any:
    """The driver's ``connect``, which raises ``ConfigError`` when it rejects an option of the URL."""
    connect = driver.connect

    def connecting(*arguments: Any, **options: Any) -> Any:
        try:
            return connect(*arguments, **options)
        except (driver.loaded_dbapi.ProgrammingError, AttributeError, OSError, TypeError, ValueError) as error:
            raise _unusable(url, dialect, error) from None  # its message may repeat a part of the URL
        finally:
            del arguments, options  # an error reporter may send each frame's variables: a password

    return connecting
