"""Servers that are set up as few are: they are used all the same, or refused with words."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress

import psycopg
import pytest
from sqlalchemy import Engine, create_engine, make_url, text

from outbox import ConfigError, Outbox
from outbox.store import ledger as store_ledger
from tests.store.driving import Worker
from tests.support import ledger
from tests.support.databases import Database
from tests.support.intervals import intervals

postgresql = pytest.mark.parametrize("database", ["postgresql"], indirect=True)
mariadb = pytest.mark.parametrize("database", ["mariadb"], indirect=True)


def serves(box: Outbox) -> None:
    """Migrate, put by each way that there is, deliver, audit."""
    box.migrate()
    worker = Worker(box)
    ids = worker.put(1) + worker.put(150) + worker.put(1500)
    assert worker.deliver_all() == ids
    assert {worker.find(id).status for id in (ids[0], ids[-1])} == {"sent"}
    assert not box.audit()[0].problem
    ledger.check(box.engine)


# --- PostgreSQL: encodings -----------------------------------------------------------------------------------


@pytest.fixture(params=["SQL_ASCII", "LATIN1"])
def encoded(request: pytest.FixtureRequest, database: Database) -> Iterator[str]:
    """The URL of a database in another encoding than UTF8."""
    url = make_url(database.url)
    name = f"{url.database}_encoded"
    admin = url.set(drivername="postgresql").render_as_string(hide_password=False)
    with psycopg.connect(admin, autocommit=True) as connection:
        connection.execute(
            f"CREATE DATABASE {name} ENCODING '{request.param}' TEMPLATE template0 LC_COLLATE 'C' LC_CTYPE 'C'"
        )
        yield url.set(database=name).render_as_string(hide_password=False)
        connection.execute(f"DROP DATABASE {name}")


@postgresql
def test_a_database_in_an_encoding_of_its_own_holds_an_outbox(encoded: str) -> None:
    with Outbox(encoded) as box:
        serves(box)


@postgresql
def test_an_encoding_in_the_environment_is_not_that_of_the_outbox(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PGCLIENTENCODING", "SQL_ASCII")
    with Outbox(database.url) as box:
        serves(box)


# --- PostgreSQL: no schema -----------------------------------------------------------------------------------


@postgresql
@pytest.mark.parametrize("path", ["''", "not_there"])
def test_a_search_path_without_a_schema_is_refused_with_the_statement_that_mends_it(
    database: Database, engine: Engine, path: str
) -> None:
    name = make_url(database.url).database
    with engine.begin() as admin:
        admin.execute(text(f"ALTER DATABASE {name} SET search_path = {path}"))
    with Outbox(database.url) as box:
        for act in (box.migrate, box.store.require_schema):
            with pytest.raises(ConfigError, match="search_path names no schema") as refused:
                act()
    with engine.begin() as admin:
        admin.execute(text(str(refused.value).partition("Run: ")[2]))
    with Outbox(database.url) as box:
        serves(box)


# --- MariaDB: ORACLE -----------------------------------------------------------------------------------------


@pytest.fixture
def oracle(database: Database) -> str:
    """The URL of a server whose sessions begin in the mode ORACLE."""
    url = make_url(database.url).update_query_dict({"init_command": "SET SESSION sql_mode = 'ORACLE'"})
    return url.render_as_string(hide_password=False)


@mariadb
def test_a_server_in_the_mode_of_oracle_holds_an_outbox(oracle: str) -> None:
    with Outbox(oracle) as box:
        serves(box)


@mariadb
def test_a_server_that_quotes_names_otherwise_is_not_asked_in_the_words_for_another(
    oracle: str, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store_ledger._LOCK, "_texts", {})
    for url in (oracle, database.url):
        with Outbox(url) as box:
            serves(box)


@mariadb
def test_a_hosts_engine_in_the_mode_of_oracle_holds_an_outbox(oracle: str) -> None:
    engine = create_engine(oracle)
    with Outbox(engine) as box:
        serves(box)
    engine.dispose()


@mariadb
@pytest.mark.parametrize("isolation_level", ["READ COMMITTED", "AUTOCOMMIT"])
def test_a_host_in_the_mode_of_oracle_enqueues(box: Outbox, oracle: str, isolation_level: str) -> None:
    host = create_engine(oracle, isolation_level=isolation_level)
    with host.connect() as connection:
        assert len(box.enqueue_many(connection, intervals(150))) == 150
        connection.commit()
    host.dispose()
    assert box.status().lanes["usage"].pending == 150


# --- MariaDB: session variables ------------------------------------------------------------------------------


def with_session(database: Database, variables: str) -> str:
    """The URL for sessions that begin with these variables set, as by the server's configuration."""
    url = make_url(database.url).update_query_dict({"init_command": f"SET SESSION {variables}"})
    return url.render_as_string(hide_password=False)


@mariadb
def test_what_a_put_has_acknowledged_is_committed_where_a_commit_begins_another_transaction(
    database: Database, engine: Engine
) -> None:
    with Outbox(with_session(database, "completion_type = 'CHAIN'")) as box, Outbox(engine) as other:
        box.migrate()
        put = [box.put(*intervals(count)) for count in (1, 150, 1)]  # the second is committed by a COMMIT
        assert [other.find(ids[0]) is not None for ids in put] == [True] * 3


@mariadb
def test_an_enqueue_on_a_hosts_connection_in_autocommit_leaves_no_transaction_open(
    database: Database, box: Outbox
) -> None:
    host = create_engine(with_session(database, "completion_type = 'CHAIN'"))
    with host.connect() as connection:
        connection.connection.driver_connection.autocommit(True)  # type: ignore[union-attr]
        for count in (1, 150):
            box.enqueue(connection, *intervals(count))
            assert connection.exec_driver_sql("SELECT @@in_transaction").scalar() == 0
            assert box.status().lanes["usage"].pending
    host.dispose()


@mariadb
@pytest.mark.parametrize("limit", ["sql_select_limit = 3", "max_join_size = 10, sql_big_selects = 0"])
def test_a_server_that_limits_what_a_select_reads_holds_an_outbox(database: Database, limit: str) -> None:
    with Outbox(with_session(database, limit)) as box:
        serves(box)


@mariadb
def test_the_tables_have_transactions_whatever_the_servers_default(database: Database) -> None:
    with Outbox(with_session(database, "default_storage_engine = 'MyISAM'")) as box:
        box.migrate()
        with suppress(ZeroDivisionError), box.store.database.write() as connection:
            [id] = box.enqueue(connection, *intervals(1))
            raise ZeroDivisionError
        assert box.find(id) is None
