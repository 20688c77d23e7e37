"""A transaction that would commit where the outbox does not look is refused, and no other."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine, NullPool, create_engine, event, make_url, text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine
from sqlalchemy.orm import Session
from sqlalchemy.sql import Delete, Update

from outbox import ConfigError, Outbox, Settings
from outbox.errors import SchemaOutOfDate
from outbox.store import same_place
from tests.support.databases import Database
from tests.support.intervals import interval

postgresql = pytest.mark.parametrize("database", ["postgresql"], indirect=True)
servers = pytest.mark.parametrize("database", ["postgresql", "mariadb"], indirect=True)

NEVER_SENT = r"what is committed here would never be sent\. Nothing was written by this call\."


@pytest.fixture(autouse=True)
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """However slow the machine is: an enqueue waits until the outbox's own database has said where it is, and one that
    did not answer is not asked again."""
    monkeypatch.setattr(same_place, "WAIT_SECONDS", 60)
    monkeypatch.setattr(same_place, "ASK_AGAIN_SECONDS", 3600)


@pytest.fixture
def other(database: Database, engine: Engine) -> Iterator[Engine]:
    """A host's engine on another database of the same kind, where another outbox has its tables."""
    url = make_url(database.url).set(database=f"{make_url(database.url).database}_b")
    if database.name != "sqlite":
        with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as admin:
            admin.execute(text(f"CREATE DATABASE {url.database}"))
    with Outbox(url) as box:
        box.migrate()
    other = create_engine(url)
    yield other
    other.dispose()
    if database.name != "sqlite":
        with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as admin:
            admin.execute(text(f"DROP DATABASE {url.database}"))


@pytest.fixture
def schema(database: Database, box: Outbox) -> str:
    """A second schema of the database, with outbox tables of its own."""
    with box.engine.begin() as admin:
        admin.execute(text("CREATE SCHEMA app"))
    with Outbox(f"{database.url}?options=-csearch_path%3Dapp") as boxed:
        boxed.migrate()
    return "app"


@contextmanager
def statements(engine: Engine) -> Iterator[list[str]]:
    said: list[str] = []

    def hear(_c: Any, _cursor: Any, sql: str, *_: Any) -> None:
        said.append(sql.split()[0])

    event.listen(engine, "before_cursor_execute", hear)
    yield said
    event.remove(engine, "before_cursor_execute", hear)


def stored(engine: Engine, log: str = "outbox_usage") -> int:
    with engine.connect() as connection:
        return int(connection.execute(text(f"SELECT count(*) FROM {log}")).scalar_one())


# --- another database ----------------------------------------------------------------------------------------


def test_a_transaction_in_another_database_is_refused_and_both_are_named(
    box: Outbox, engine: Engine, other: Engine
) -> None:
    said = rf"{other.url.database}.*outbox.*{engine.url.database}.*{NEVER_SENT} Give enqueue a Session"
    with Session(other) as session, pytest.raises(ConfigError, match=said):
        box.enqueue(session, interval())
    assert stored(other) == 0


def test_a_session_that_routes_by_statement_or_table_enqueues_where_it_inserts(
    box: Outbox, engine: Engine, other: Engine
) -> None:
    class Routing(Session):
        def get_bind(self, mapper: Any = None, *, clause: Any = None, **_: Any) -> Engine:
            return engine if isinstance(clause, (Update, Delete)) else other

    from outbox.store.schema import metadata

    by_table = dict.fromkeys(metadata.tables.values(), engine)
    for session in (Routing(), Session(other, binds=by_table)):  # type: ignore[arg-type]
        with session, session.begin():
            box.enqueue(session, interval())
    assert (stored(engine), stored(other)) == (2, 0)


def test_a_database_of_another_kind_is_refused_before_a_statement_and_without_its_password(
    box: Outbox, tmp_path: Path
) -> None:
    kind = "postgresql+psycopg" if box.engine.name == "sqlite" else "sqlite"
    with Outbox(f"{kind}://a:secret@127.0.0.1/x" if kind != "sqlite" else f"sqlite:///{tmp_path}/o.db") as strange:
        host = create_engine(box.engine.url)
        with statements(host) as said, Session(host) as session, pytest.raises(ConfigError, match=NEVER_SENT) as caught:
            strange.enqueue(session, interval())
        host.dispose()
    assert said == []
    assert kind in str(caught.value)
    assert box.engine.name in str(caught.value)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("database", ["sqlite"], indirect=True)
def test_a_file_is_the_same_by_whatever_path(box: Outbox, engine: Engine, tmp_path: Path) -> None:
    os.link(str(engine.url.database), tmp_path / "hard")
    (tmp_path / "folder").symlink_to(tmp_path, target_is_directory=True)
    for path in (tmp_path / "hard", tmp_path / "folder" / "outbox.db"):
        host = create_engine(f"sqlite:///{path}")
        with host.connect() as connection:
            box.enqueue(connection, interval())
        host.dispose()


# --- another schema ------------------------------------------------------------------------------------------


@postgresql
def test_an_async_engine_whose_options_name_another_schema_is_refused(database: Database, schema: str) -> None:
    """The outbox takes the URL of an AsyncEngine, and not its connect_args."""
    url = dict(database.async_urls)["asyncpg"]

    async def enqueue() -> None:
        engine = create_async_engine(url, connect_args={"server_settings": {"search_path": schema}})
        try:
            with Outbox(engine) as box:
                async with AsyncSession(engine) as session, session.begin():
                    await box.enqueue_async(session, interval())
        finally:
            await engine.dispose()

    said = (
        rf"schema app, and the outbox.*schema public: {NEVER_SENT} Give both the same search_path.*synchronous Engine"
    )
    with pytest.raises(ConfigError, match=said):
        asyncio.run(enqueue())


@postgresql
def test_a_listener_that_comes_after_the_outbox_and_sets_another_schema_is_refused(engine: Engine, schema: str) -> None:
    def set_path(connection: Any, _record: Any) -> None:
        connection.execute(f"SET search_path = {schema}")
        connection.commit()

    with Outbox(engine) as box:
        event.listen(engine, "connect", set_path)
        with Session(engine) as session, pytest.raises(ConfigError, match=NEVER_SENT):
            box.enqueue(session, interval())
    event.remove(engine, "connect", set_path)


@postgresql
def test_without_tables_it_is_the_schema_of_the_transaction_that_is_named(box: Outbox, engine: Engine) -> None:
    with Session(engine) as session:
        session.execute(text("CREATE SCHEMA empty"))
        session.execute(text("SET LOCAL search_path = empty"))
        with pytest.raises(SchemaOutOfDate, match=r"schema empty, where it finds no outbox tables.*schema public"):
            box.enqueue(session, interval())
        session.execute(text("SET LOCAL search_path = public"))  # the error has cost the transaction nothing
        box.enqueue(session, interval())
        session.commit()
    assert stored(engine) == 1


@postgresql
def test_without_any_tables_the_transactions_database_and_schema_are_named(database: Database, engine: Engine) -> None:
    said = rf"database {engine.url.database}, schema public\): the outbox tables are not there\. Run: outbox migrate"
    with Outbox(database.url) as box, Session(engine) as session, pytest.raises(SchemaOutOfDate, match=said):
        box.enqueue(session, interval())


@postgresql
def test_a_search_path_for_each_tenant_counts_only_where_it_finds_other_tables(
    box: Outbox, engine: Engine, schema: str
) -> None:
    with engine.connect() as connection:
        reports = connection.connection.driver_connection.info.parameter_status("search_path")  # type: ignore[union-attr]
        connection.execute(text("CREATE SCHEMA tenant"))
        connection.execute(text("SET search_path = tenant, public"))
        box.enqueue(connection, interval())
        connection.execute(text(f"SET search_path = tenant, {schema}, public"))
        if reports:  # since PostgreSQL 18
            with pytest.raises(ConfigError, match=NEVER_SENT):
                box.enqueue(connection, interval())
        connection.execute(text("SET search_path = public, tenant"))
        box.enqueue(connection, interval())
        connection.commit()
    assert stored(engine) == 2


@postgresql
def test_a_connection_that_was_refused_is_taken_once_it_finds_the_tables(
    database: Database, schema: str, box: Outbox
) -> None:
    host = create_engine(f"{database.url}?options=-csearch_path%3D{schema}")
    with host.connect() as connection:
        with pytest.raises(ConfigError, match=NEVER_SENT):
            box.enqueue(connection, interval())
        connection.execute(text("SET search_path = public"))
        box.enqueue(connection, interval())
        connection.commit()
    host.dispose()


@postgresql
def test_a_snapshot_from_before_the_migration_is_no_hindrance(database: Database, engine: Engine) -> None:
    snapshot = engine.execution_options(isolation_level="REPEATABLE READ")
    with Outbox(database.url) as box, snapshot.begin() as connection:
        connection.execute(text("SELECT count(*) FROM pg_class"))
        box.migrate()
        box.enqueue(connection, interval())
    assert stored(engine) == 1


# --- what it costs, and what stays the host's ----------------------------------------------------------------


def test_a_driver_connection_is_asked_once_where_it_is(box: Outbox, database: Database, engine: Engine) -> None:
    asked = [] if database.name == "sqlite" else ["SELECT"]
    with statements(engine) as said:
        for _ in range(3):
            with Session(engine) as session, session.begin():
                box.enqueue(session, interval())
                box.enqueue(session, interval())
    assert said == [*asked, *["INSERT"] * 6]


@servers
def test_an_enqueue_does_not_need_the_outboxs_own_connections(box: Outbox, engine: Engine, dead_port: int) -> None:
    url, settings = box.engine.url.set(port=dead_port), Settings(notify=False)
    with Outbox(url, settings=settings) as cut_off:
        tries: list[object] = []
        event.listen(cut_off.engine, "do_connect", lambda *_: tries.append(1))
        for _ in range(3):
            with Session(engine) as session, session.begin():
                cut_off.enqueue(session, interval())
    assert (stored(engine), len(tries)) == (3, 1)


@postgresql
def test_an_enqueue_does_not_wait_for_a_connection_that_its_own_transaction_holds(
    box: Outbox, engine: Engine, schema: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(same_place, "WAIT_SECONDS", 0.05)
    free, answered = threading.Event(), threading.Event()

    def connect() -> Any:  # as PgBouncer does, or a pool of driver connections, when all are taken
        assert free.wait(60), "the transaction ended only after the wait for its own connection"
        return engine.dialect.connect(**where)

    _, where = engine.dialect.create_connect_args(engine.url)
    limited = create_engine(engine.url, creator=connect, poolclass=NullPool)
    with Outbox(limited, settings=Settings(notify=False)) as pooled, engine.connect() as elsewhere:
        event.listen(pooled.engine, "close", lambda *_: answered.set())
        with Session(engine) as session, session.begin():
            pooled.enqueue(session, interval())
        free.set()
        assert answered.wait(60)
        elsewhere.execute(text(f"SET search_path = {schema}"))
        with pytest.raises(ConfigError, match=NEVER_SENT):
            pooled.enqueue(elsewhere, interval())
    assert stored(engine) == 1


@servers
def test_an_outbox_that_is_closed_before_its_database_has_answered_leaves_no_connection(
    box: Outbox, engine: Engine, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    happened: list[str] = []
    go_on = threading.Event()
    with Outbox(database.url, settings=Settings(notify=False)) as slow:
        event.listen(slow.engine, "do_connect", lambda *_: go_on.wait(60) and None)
        event.listen(slow.engine, "connect", lambda *_: happened.append("connected"))
        event.listen(slow.engine, "engine_disposed", lambda _: happened.append("closed"))
        with monkeypatch.context() as hurried, Session(engine) as session, session.begin():
            hurried.setattr(same_place, "WAIT_SECONDS", 0)
            slow.enqueue(session, interval())
        asking = slow.store.database._place._asking
        assert asking is not None
        join = asking.join

        def joined(seconds: float | None = None) -> None:
            go_on.set()
            join(seconds)

        monkeypatch.setattr(asking, "join", joined)
        slow.close()
        go_on.set()
        join()
    assert happened[:2] == ["connected", "closed"]


@postgresql
def test_tables_that_were_moved_are_the_same_for_both(engine: Engine, database: Database) -> None:
    path = "?options=-csearch_path%3Dlater,public"
    host = create_engine(f"{database.url}{path}")
    with Outbox(f"{database.url}{path}") as box, host.connect() as connection:
        box.migrate()
        box.enqueue(connection, interval())
        connection.commit()
        connection.execute(text("CREATE SCHEMA later"))
        connection.execute(text("ALTER TABLE outbox_usage SET SCHEMA later"))
        connection.commit()
        with host.connect() as another:
            box.enqueue(another, interval())
            another.commit()
        assert stored(host) == 2
        connection.execute(text("ALTER TABLE outbox_usage SET SCHEMA public"))
        connection.commit()
    host.dispose()


@postgresql
def test_the_error_of_a_transaction_that_has_failed_stays_the_hosts(box: Outbox, engine: Engine) -> None:
    with engine.connect() as connection:
        with pytest.raises(DBAPIError):
            connection.execute(text("SELECT 1 / 0"))
        with pytest.raises(DBAPIError, match="current transaction is aborted"):
            box.enqueue(connection, interval())


def test_a_connection_that_commits_each_statement_is_asked_too(box: Outbox, engine: Engine) -> None:
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        box.enqueue(connection, interval())
    assert stored(engine) == 1
