"""A connection pooler in front of PostgreSQL: its sessions are everybody's, and what one client leaves there meets the
next."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from threading import Event
from typing import Any

import psycopg
import pytest
from sqlalchemy import Engine, create_engine, make_url, text

from outbox import BeaconTransport, Outbox, Settings, TelemetryEnvelope, Worker
from outbox.core.lane import LANES
from outbox.errors import DatabaseUnavailable
from outbox.simulator import Simulator
from outbox.store.dialects import postgresql_sessions
from tests.support import ledger
from tests.support.databases import Database
from tests.support.intervals import interval
from tests.support.listening import checkouts
from tests.support.pgbouncer import PgBouncer
from tests.support.waiting import wait_until

pytestmark = pytest.mark.parametrize("database", ["postgresql"], indirect=True)
EACH_MODE = pytest.mark.parametrize("pooler", ["transaction", "session"], indirect=True)

PREPARED_AFTER = 5
"""So often a statement is run before psycopg prepares it."""
OFTEN = 3 * PREPARED_AFTER
SESSION = ("synchronous_commit", "lock_timeout", "idle_in_transaction_session_timeout", "tcp_user_timeout")
NAMES = [f"_pg3_{number}" for number in range(50)]
"""What psycopg calls the statements that it prepares, in each of its connections."""
METRICS = (Path(__file__).parents[1] / "examples" / "metrics.json").read_text()


@pytest.fixture
def migrated(database: Database, engine: Engine) -> Iterator[str]:
    """The name of the database, whose commits are safe when they are acknowledged."""
    with engine.begin() as connection:
        connection.execute(text(f'ALTER DATABASE "{engine.url.database}" SET synchronous_commit = on'))
    with Outbox(database.url, settings=Settings()) as box:
        box.migrate()
    yield str(engine.url.database)
    ledger.check(engine)


@pytest.fixture
def pooled(migrated: str, pooler: PgBouncer) -> str:
    """The URL of the database behind the pooler."""
    return pooler.url("psycopg")


@pytest.fixture
def host(pooled: str) -> Iterator[Engine]:
    """Another client of the pooler, as its manual wants it."""
    host = create_engine(pooled, connect_args={"prepare_threshold": None})
    yield host
    host.dispose()


@pytest.fixture
def trusted(monkeypatch: pytest.MonkeyPatch) -> None:
    """However slow the machine is: the connection at hand was not idle for so long that another takes its place."""
    monkeypatch.setattr("outbox.store.connections.IDLE_SECONDS", 3600)


@pytest.fixture
def listener(database: Database) -> Iterator[psycopg.Connection]:
    """Hears what is announced, from a session of its own."""
    url = make_url(database.url).set(drivername="postgresql").render_as_string(hide_password=False)
    with psycopg.connect(url, autocommit=True) as listener:
        listener.execute("LISTEN outbox")
        yield listener


def hears(listener: psycopg.Connection) -> set[str]:
    return {told.payload for told in listener.notifies(timeout=60, stop_after=1)}


def of_session(engine: Engine, names: Sequence[str] = SESSION) -> dict[str, Any]:
    with engine.connect() as connection:
        return {name: connection.exec_driver_sql(f"SHOW {name}").scalar_one() for name in ("port", *names)} | {
            "pid": connection.exec_driver_sql("SELECT pg_backend_pid()").scalar_one(),
            "prepared": connection.exec_driver_sql("SELECT count(*) FROM pg_prepared_statements").scalar_one(),
            "channels": connection.exec_driver_sql("SELECT count(*) FROM pg_listening_channels()").scalar_one(),
        }


def put_often(box: Outbox) -> None:
    for _ in range(OFTEN):
        box.put(interval())


def stored(engine: Engine) -> dict[str, set[str]]:
    with engine.connect() as connection:
        ids = {name: connection.exec_driver_sql(f"SELECT id FROM outbox_{name}") for name in ("usage", "metrics")}
        return {name: {str(id) for id in each.scalars()} for name, each in ids.items()}


def test_puts_and_their_announcements_leave_the_session_of_the_others_as_it_was(
    pooled: str, host: Engine, listener: psycopg.Connection
) -> None:
    before = of_session(host)
    assert before["synchronous_commit"] == "on"
    with Outbox(pooled, settings=Settings()) as box:
        for _ in range(OFTEN):
            box.put(interval())
            assert hears(listener) == {"outbox_usage"}
    assert of_session(host) == before


def test_who_waits_for_news_leaves_no_channel_to_the_others(pooled: str, host: Engine) -> None:
    tables, stop = {spec.table: str(lane) for lane, spec in LANES.items()}, Event()
    with Outbox(pooled, settings=Settings()) as box:
        before = of_session(host)
        with box.store.database.dialect.watch_commits(box.engine, tables, {}) as look:
            assert of_session(host) == before
            stop.set()
            assert look(stop) == set()


@EACH_MODE
def test_what_clients_of_one_pooler_put_is_stored_in_the_lane_of_each(
    migrated: str, pooler: PgBouncer, engine: Engine
) -> None:
    url, settings = pooler.url("psycopg"), Settings(notify=False)
    put: dict[str, set[str]] = {"usage": set(), "metrics": set()}
    with Outbox(url, settings=settings) as one, Outbox(url, settings=settings) as other:
        for _ in range(OFTEN):
            put["usage"] |= {str(id) for id in one.put(interval())}
            put["metrics"] |= {str(id) for id in other.put(TelemetryEnvelope("metrics", METRICS))}
    assert stored(engine) == put


@EACH_MODE
def test_a_worker_behind_a_pooler_finds_by_its_poll_what_other_processes_put(
    migrated: str, pooler: PgBouncer, beacon: Simulator
) -> None:
    url = pooler.url("psycopg")
    settings = Settings(beacon_url=beacon.url, license_key=beacon.license, poll_seconds=0.05)
    with (
        Outbox(url, settings=settings) as box,
        Outbox(url, settings=settings) as elsewhere,
        BeaconTransport(settings) as transport,
        Worker(box, transport),
    ):
        ids = [str(id) for _ in range(OFTEN) for id in elsewhere.put(interval())]
        wait_until(lambda: beacon.received.ids() == dict.fromkeys(ids, 1))


@EACH_MODE
def test_a_pooler_is_named_in_one_warning_of_the_process(
    pooled: str, pooler: PgBouncer, caplog: pytest.LogCaptureFixture
) -> None:
    postgresql_sessions._warn_of.cache_clear()  # another test's may have had the port
    caplog.set_level(logging.WARNING, "outbox")
    for _ in range(2):
        with Outbox(pooled, settings=Settings(notify=False)) as box:
            box.put(interval())
    [warning] = caplog.messages
    assert warning.startswith(f"127.0.0.1:{pooler.port} is a connection pooler")
    assert "lock_timeout" in warning
    assert "LISTEN" in warning


@pytest.mark.usefixtures("trusted")
def test_a_session_of_ones_own_is_set_up_and_prepares_and_nothing_is_warned_of(
    migrated: str, database: Database, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING, "outbox")
    with Outbox(database.url, settings=Settings(notify=False)) as box, checkouts(box.engine) as made:
        put_often(box)
        [connection] = made
        assert connection.execute("SHOW lock_timeout").fetchone() == ("5s",)
        assert connection.execute("SELECT count(*) > 0 FROM pg_prepared_statements").fetchone() == (True,)
    assert caplog.messages == []


@pytest.mark.usefixtures("trusted")
@pytest.mark.parametrize("theirs", ["none of that name", "one of that name", "one that is in the way"])
def test_an_error_that_only_another_clients_statements_explain_says_so(
    migrated: str, database: Database, theirs: str
) -> None:
    """Where a pooler passes for the server: each statement of the test is another client's, in the same session."""
    with Outbox(database.url, settings=Settings(notify=False)) as box, checkouts(box.engine) as made:
        box.put(interval())
        [connection] = made
        if theirs != "one that is in the way":
            put_often(box)
            connection.pgconn.exec_(b"DEALLOCATE ALL")
        if theirs != "none of that name":
            connection.pgconn.exec_("; ".join(f'PREPARE "{name}" AS SELECT 1' for name in NAMES).encode())
        with pytest.raises(DatabaseUnavailable, match="connection pooler"):
            put_often(box)
