"""What a server refuses is told with what to do about it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress

import psycopg
import pytest
from sqlalchemy import Engine, create_engine, make_url, text
from sqlalchemy.exc import OperationalError
from sqlalchemy.pool import NullPool

from outbox import Outbox, TelemetryEnvelope
from outbox.errors import DatabaseUnavailable
from tests.faults.own_server import started
from tests.store.driving import Worker, span
from tests.support.databases import Database
from tests.support.intervals import interval, intervals
from tests.support.servers import MariaDBServer, PostgresServer, Server

mariadb = pytest.mark.parametrize("database", ["mariadb"], indirect=True)
postgresql = pytest.mark.parametrize("database", ["postgresql"], indirect=True)

LOCK_LANE = text("SELECT version FROM outbox_lane WHERE lane = 'usage' FOR UPDATE")


@contextmanager
def that_begins(database: Database, statement: str) -> Iterator[Outbox]:
    """An outbox whose sessions of MariaDB begin with a statement."""
    url = make_url(database.url).update_query_dict({"init_command": statement})
    with Outbox(url.render_as_string(hide_password=False)) as box:
        yield box


def refused(advice: str) -> AbstractContextManager[object]:
    return pytest.raises(DatabaseUnavailable, match=advice)


@contextmanager
def all_taken(many: Engine) -> Iterator[None]:
    """Every connection that its server has left."""
    with ExitStack() as taken:
        with suppress(OperationalError):
            while True:
                taken.enter_context(many.connect())
        yield
    many.dispose()


# --- both ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("database", ["postgresql", "mariadb"], indirect=True)
@pytest.mark.parametrize(
    ("named", "advice"),
    [
        (
            {"database": "no_such"},
            r"no_such.*Create it \(CREATE DATABASE\), or correct its name in OUTBOX_DATABASE_URL",
        ),
        ({"username": "no_such", "password": "wrong"}, r"Check user and password in OUTBOX_DATABASE_URL"),
    ],
    ids=["database", "account"],
)
def test_a_name_that_the_server_does_not_know_says_so(database: Database, named: dict[str, str], advice: str) -> None:
    url = make_url(database.url).set(**named)
    with Outbox(url.render_as_string(hide_password=False)) as box, refused(advice):
        box.put(interval())


# --- MariaDB -------------------------------------------------------------------------------------------------


@mariadb
@pytest.mark.usefixtures("box")
def test_a_session_that_may_not_write_says_so(database: Database) -> None:
    advice = r"call\. This server or session takes no writes.*tx_read_only"
    with (
        that_begins(database, "SET SESSION TRANSACTION READ ONLY") as reader,
        refused(advice),
    ):
        reader.put(interval())


@mariadb
def test_a_statement_that_takes_too_long_names_the_limit(box: Outbox, database: Database, engine: Engine) -> None:
    with that_begins(database, "SET SESSION max_statement_time = 0.1") as hurried, engine.begin() as host:
        host.execute(LOCK_LANE)
        with refused(r"longer than max_statement_time allows: raise it"):
            Worker(hurried).fold_totals()
    Worker(box).fold_totals()


@mariadb
def test_a_lock_that_somebody_forgot_is_told_as_such(box: Outbox, engine: Engine) -> None:
    with engine.begin() as host, box.engine.connect() as ours:
        host.execute(LOCK_LANE)
        ours.execute(text("SET SESSION innodb_lock_wait_timeout = 1"))
        advice = r"Another session holds the lock: end it \(KILL\)"
        with refused(advice), box.store.database.explained():
            ours.execute(LOCK_LANE)


@mariadb
def test_an_account_with_all_its_connections_taken_names_the_limit(box: Outbox, database: Database) -> None:
    account, advice = f"one_{make_url(database.url).database}", r"\(max_user_connections\) are taken: raise"
    with box.engine.connect() as admin:
        admin.execute(text(f"CREATE USER '{account}'@'127.0.0.1' WITH MAX_USER_CONNECTIONS 1"))
        admin.execute(text(f"GRANT ALL ON {make_url(database.url).database}.* TO '{account}'@'127.0.0.1'"))
        try:
            url = make_url(database.url).set(username=account, password=None).render_as_string(hide_password=False)
            with Outbox(url) as first, Outbox(url) as second, first.engine.connect(), refused(advice):
                second.put(interval())
        finally:
            admin.execute(text(f"DROP USER '{account}'@'127.0.0.1'"))


@pytest.fixture(scope="module")
def tight() -> Iterator[Server]:
    """A MariaDB with ten connections, a tablespace of 24 MiB, and packets of 64 KiB."""
    options = {
        "max-connections": "10",
        "innodb-file-per-table": "0",
        "innodb-data-file-path": "ibdata1:12M:autoextend:max:24M",
        "max-allowed-packet": "65536",
    }
    with started(MariaDBServer(private=True, options=options), "MariaDB") as server:
        yield server


@pytest.fixture
def cramped(tight: Server) -> Iterator[Outbox]:
    admin = create_engine(tight.url("pymysql"))
    with admin.begin() as connection:
        connection.execute(text("CREATE DATABASE service"))
    with Outbox(tight.url("pymysql", "service")) as box:
        box.migrate()
        yield box
    with admin.begin() as connection:
        connection.execute(text("DROP DATABASE service"))
    admin.dispose()


def test_an_entry_that_the_server_does_not_take_at_once_names_the_setting(cramped: Outbox) -> None:
    (resource,) = json.loads(span().payload)["resourceSpans"]
    large = TelemetryEnvelope("traces", {"resourceSpans": [resource] * 1000})
    with refused(r"SET GLOBAL max_allowed_packet"):
        cramped.put(large)
    cramped.put(interval())


def test_a_server_that_logs_by_statement_names_the_setting() -> None:
    by_statement = {"log-bin": "binlog", "binlog-format": "STATEMENT"}
    with (
        started(MariaDBServer(private=True, options=by_statement), "MariaDB") as server,
        Outbox(server.url("pymysql")) as box,
        refused(r"SET GLOBAL binlog_format = ROW \(or MIXED\)"),
    ):
        box.migrate()
        box.put(interval())


def test_a_server_with_all_its_connections_taken_names_the_limit(cramped: Outbox) -> None:
    cramped.engine.dispose()
    many = create_engine(cramped.engine.url, poolclass=NullPool)
    with all_taken(many), refused(r"\(max_connections\) are taken: raise that limit"):
        cramped.put(interval())
    cramped.put(interval())


def test_a_full_database_says_to_make_room(cramped: Outbox) -> None:
    def fill() -> None:
        for _ in range(2000):
            cramped.put(*intervals(50))

    with refused(r"is full.*make room; what waits is delivered by itself"):
        fill()


# --- PostgreSQL ----------------------------------------------------------------------------------------------


@postgresql
def test_a_statement_that_takes_too_long_says_so(box: Outbox, database: Database, engine: Engine) -> None:
    hurried = f"{database.url}?options=-c%20statement_timeout%3D100"
    with Outbox(hurried) as other, engine.begin() as host:
        host.execute(LOCK_LANE)
        with refused(r"due to statement timeout.*ALTER ROLE.*statement_timeout"):
            Worker(other).fold_totals()
    Worker(box).fold_totals()


@postgresql
def test_an_account_with_all_its_connections_taken_says_so(box: Outbox, database: Database) -> None:
    account = f"one_{make_url(database.url).database}"
    url = make_url(database.url).set(username=account)
    with box.engine.begin() as admin:
        admin.execute(text(f"CREATE ROLE {account} LOGIN CONNECTION LIMIT 1"))
    first = url.set(drivername="postgresql").render_as_string(hide_password=False)
    advice = r"too many connections for role.*raise max_connections"
    with Outbox(url.render_as_string(hide_password=False)) as other, psycopg.connect(first), refused(advice):
        other.put(interval())
    with box.engine.begin() as admin:
        admin.execute(text(f"DROP ROLE {account}"))


def test_a_server_with_all_its_connections_taken_says_so() -> None:
    few = {"max_connections": "4", "superuser_reserved_connections": "0", "autovacuum": "off"}
    with (
        started(PostgresServer(private=True, options=few), "PostgreSQL") as server,
        Outbox(server.url("psycopg")) as box,
    ):
        advice = r"too many clients already\..*raise max_connections"
        many = create_engine(server.url("psycopg"), poolclass=NullPool)
        with all_taken(many), refused(advice):
            box.migrate()
