"""PostgreSQL sessions that are ended, cancelled, stopped, locked out or refused writes."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager, suppress
from pathlib import Path
from uuid import UUID

import pytest
from sqlalchemy import Engine, select, text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import Session

from outbox import BeaconTransport, Dispatcher, Outbox, Settings, TelemetryEnvelope
from outbox.core.lane import Lane
from outbox.errors import DatabaseUnavailable, OutcomeUnknown
from outbox.simulator import Simulator
from outbox.store.dialects.postgresql import PostgreSQL
from outbox.store.schema import LANE
from outbox.testing import drain
from tests.support import ledger
from tests.support.databases import Database
from tests.support.delivery import once, working
from tests.support.intervals import interval, intervals
from tests.support.strike import Moment, Operator, strike
from tests.support.waiting import wait_until

pytestmark = pytest.mark.parametrize("database", ["postgresql"], indirect=True)

METRICS = (Path(__file__).parents[1] / "examples" / "metrics.json").read_text()


@pytest.fixture
def box(database: Database, engine: Engine, beacon: Simulator) -> Iterator[Outbox]:
    settings = Settings(beacon_url=beacon.url, license_key=beacon.license, poll_seconds=0.05)
    with Outbox(database.url, settings=settings) as box:
        box.migrate()
        yield box
        ledger.check(engine)


@pytest.fixture
def operator(database: Database) -> Iterator[Operator]:
    with closing(Operator(database.url)) as operator:
        yield operator


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sessions of ours wait a fifth of a second for a lock."""
    set_up = PostgreSQL.session_setup

    def quick(self: PostgreSQL, *, synchronous: str) -> Sequence[str]:
        return [*set_up(self, synchronous=synchronous), "SET lock_timeout = '200ms'"]

    monkeypatch.setattr(PostgreSQL, "session_setup", quick)


@contextmanager
def dispatching(box: Outbox) -> Iterator[Dispatcher]:
    with BeaconTransport(box.settings) as transport, closing(Dispatcher(box, transport)) as dispatcher:
        yield dispatcher


# --- ended ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("moment", "statement"),
    [
        ("before", "FOR UPDATE"),
        ("after", "FOR UPDATE"),
        ("after", "INSERT INTO outbox_batch"),
        ("before", "UPDATE outbox_lane SET"),
        ("commit", "INSERT INTO outbox_batch"),
    ],
)
def test_a_claim_that_is_cut_off_sends_nothing_and_is_made_again(
    box: Outbox, operator: Operator, beacon: Simulator, moment: Moment, statement: str
) -> None:
    ids = box.put(*intervals(3))
    with (
        dispatching(box) as dispatcher,
        strike(box.engine, moment, statement, operator.terminate) as struck,
        pytest.raises(OutcomeUnknown if moment == "commit" else DatabaseUnavailable),
    ):
        dispatcher.run_once()
    assert struck
    assert beacon.received.ids() == {}
    drain(box, beacon)
    assert beacon.received.ids() == once(ids)


@pytest.mark.parametrize("moment", ["before", "after", "commit"])
def test_a_settle_that_is_cut_off_repeats_at_most_the_same_request(
    box: Outbox, operator: Operator, beacon: Simulator, moment: Moment
) -> None:
    ids = box.put(*intervals(3))
    with (
        dispatching(box) as dispatcher,
        strike(box.engine, moment, "UPDATE outbox_batch SET", operator.terminate) as struck,
        pytest.raises(OutcomeUnknown if moment == "commit" else DatabaseUnavailable),
    ):
        dispatcher.run_once()
    assert struck
    assert beacon.received.ids() == once(ids)
    operator.do("UPDATE outbox_batch SET due_at = 0 WHERE state = 'leased'")  # its lease ends
    drain(box, beacon)
    assert beacon.received.ids().keys() == once(ids).keys()
    assert len({key for keys in beacon.received.duplicates().values() for key in keys}) == 1
    assert box.status().lanes["usage"].sent == 3


@pytest.mark.parametrize(
    ("moment", "statement", "count"),
    [
        ("before", "INSERT INTO outbox_usage", 3),
        ("after", "SAVEPOINT outbox_copy", PostgreSQL.copy_from_rows),
        ("commit", "INSERT INTO outbox_usage", 3),
    ],
)
def test_a_put_that_is_cut_off_before_its_commit_wrote_nothing(
    box: Outbox, operator: Operator, beacon: Simulator, moment: Moment, statement: str, count: int
) -> None:
    messages = intervals(count)
    with (
        strike(box.engine, moment, statement, operator.terminate) as struck,
        pytest.raises(OutcomeUnknown if moment == "commit" else DatabaseUnavailable),
    ):
        box.put(*messages)
    assert struck
    again = box.put(*messages)
    assert again.duplicates == 0
    drain(box, beacon)
    assert beacon.received.ids() == once(again)


@contextmanager
def cut_off_while_it_waits(box: Outbox, operator: Operator, lock: str) -> Iterator[ThreadPoolExecutor]:
    """Once what the block starts waits for ``lock``, its session is ended. Nobody listens to the box's statements:
    they run as in production."""
    with ExitStack() as held:
        thread = held.enter_context(ThreadPoolExecutor(1))
        holder = held.enter_context(closing(Operator(box.engine.url.render_as_string(hide_password=False))))
        holder.do("BEGIN", lock)
        yield thread
        waiting = "wait_event_type = 'Lock'"
        [pid] = wait_until(lambda: operator.sessions(waiting), message="nobody waits for the lock")
        operator.terminate(pid)
        holder.do("ROLLBACK")


def test_a_put_of_one_message_that_is_cut_off_says_that_nobody_knows(
    box: Outbox, operator: Operator, beacon: Simulator
) -> None:
    """Its statement is a transaction of its own: where its connection breaks, the server may have committed it."""
    message = interval()
    with cut_off_while_it_waits(box, operator, "LOCK TABLE outbox_usage") as thread:
        put = thread.submit(box.put, message)
    with pytest.raises(OutcomeUnknown, match="Enqueue the same messages again"):
        put.result()
    assert box.put(message).duplicates == 0, "it had waited, so it was not there"
    assert box.put(message).duplicates == 1
    drain(box, beacon)
    assert beacon.received.ids() == {str(message.id): 1}


def test_a_claim_that_waits_and_is_cut_off_sends_nothing_and_is_made_again(
    box: Outbox, operator: Operator, beacon: Simulator
) -> None:
    ids = box.put(*intervals(3))
    with dispatching(box) as dispatcher:
        with cut_off_while_it_waits(box, operator, "SELECT * FROM outbox_lane FOR UPDATE") as thread:
            tick = thread.submit(dispatcher.run_once)
        with pytest.raises(DatabaseUnavailable, match="Nothing was written"):
            tick.result()
        assert beacon.received.ids() == {}
        dispatcher.run_once()
    assert beacon.received.ids() == once(ids)


def test_a_look_that_is_cut_off_says_so_and_the_next_one_sees(box: Outbox, operator: Operator) -> None:
    box.put(interval())
    with cut_off_while_it_waits(box, operator, "LOCK TABLE outbox_hole") as thread:
        look = thread.submit(box.store.outlook, Lane.USAGE)
    with pytest.raises(DatabaseUnavailable):
        look.result()
    assert box.store.outlook(Lane.USAGE).ready


def test_a_hosts_commit_that_is_cut_off_raises_and_may_be_tried_again(
    box: Outbox, engine: Engine, operator: Operator, beacon: Simulator
) -> None:
    messages = intervals(3)
    with (
        strike(engine, "commit", "INSERT INTO outbox_usage", operator.terminate) as struck,
        pytest.raises(DBAPIError),
        Session(engine) as session,
        session.begin(),
    ):
        box.enqueue(session, *messages)
    assert struck
    with Session(engine) as session, session.begin():
        ids = box.enqueue(session, *messages)
    drain(box, beacon)
    assert beacon.received.ids() == once(ids)


def test_connections_that_went_stale_in_the_pool_are_no_error(
    box: Outbox, operator: Operator, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("outbox.store.connections.IDLE_SECONDS", 0)
    with box.engine.connect(), box.engine.connect():  # two in the pool: the announcer takes one for itself
        pass
    assert operator.terminate_all() == 2
    box.put(interval())
    assert box.status().lanes["usage"].pending == 1


# --- cancelled, locked, stopped ------------------------------------------------------------------------------


def test_a_statement_that_is_cancelled_costs_one_tick(
    box: Outbox, engine: Engine, operator: Operator, beacon: Simulator
) -> None:
    ids = box.put(interval())
    with dispatching(box) as dispatcher, ThreadPoolExecutor(1) as thread:
        with engine.begin() as host:
            host.execute(select(LANE).with_for_update())
            tick = thread.submit(dispatcher.run_once)
            (waiting,) = wait_until(lambda: operator.sessions("wait_event_type = 'Lock'"))
            operator.do(f"SELECT pg_cancel_backend({waiting})")
            with pytest.raises(DatabaseUnavailable, match="canceling statement due to user request"):
                tick.result(10)
        dispatcher.run_once()
    assert beacon.received.ids() == once(ids)


@pytest.mark.usefixtures("impatient")
def test_a_lock_that_somebody_forgot_holds_up_one_lane_and_says_so(
    box: Outbox, engine: Engine, beacon: Simulator, caplog: pytest.LogCaptureFixture
) -> None:
    with ExitStack() as stack:
        stack.enter_context(working(box))
        host = stack.enter_context(engine.connect())
        host.execute(select(LANE).where(LANE.c.lane == "usage").with_for_update())
        ids = box.put(interval())
        box.put(TelemetryEnvelope("metrics", METRICS))
        beacon.wait_for("metrics", 1)
        wait_until(lambda: "canceling statement due to lock timeout" in caplog.text, message=lambda: caplog.text)
        assert "idle in transaction" in caplog.text
        assert beacon.received.ids() == {}
        host.rollback()
        beacon.wait_for("usage", 1)
    assert beacon.received.ids() == once(ids)


def test_our_sessions_wait_for_nothing_for_ever(box: Outbox) -> None:
    with box.engine.connect() as connection:
        shown = {
            name: connection.execute(text(f"SHOW {name}")).scalar_one()
            for name in ("lock_timeout", "idle_in_transaction_session_timeout", "tcp_user_timeout")
        }
        driver = connection.connection.driver_connection
        assert driver is not None
        with socket.socket(fileno=os.dup(driver.fileno())) as client:
            if client.family == socket.AF_UNIX:
                pytest.skip("through a unix socket PostgreSQL shows tcp_user_timeout as 0, whatever was set")
            assert client.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
            assert client.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE) == 10
            assert client.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) == 10_000
    assert shown == {
        "lock_timeout": "5s",
        "idle_in_transaction_session_timeout": "10s",
        "tcp_user_timeout": "10000",
    }


def test_a_url_that_says_how_long_to_wait_is_obeyed(database: Database) -> None:
    url = f"{database.url}?tcp_user_timeout=7000&connect_timeout=3"
    with Outbox(url, settings=Settings()) as box, box.engine.connect() as connection:
        parameters = connection.connection.driver_connection.info.get_parameters()  # type: ignore[union-attr]
    assert (parameters["tcp_user_timeout"], parameters["connect_timeout"]) == ("7000", "3")
    assert parameters["keepalives_idle"] == "10"


def test_a_worker_that_is_stopped_in_the_middle_of_a_claim_is_shut_out_and_comes_back(
    box: Outbox, database: Database, operator: Operator, beacon: Simulator, tmp_path: Path
) -> None:
    out, root = tmp_path / "out", str(Path(__file__).parents[2])
    settings = {
        "OUTBOX_DATABASE_URL": database.url,
        "OUTBOX_BEACON_URL": beacon.url,
        "OUTBOX_LICENSE_KEY": beacon.license,
        "OUTBOX_POLL_SECONDS": "0.1",
    }
    with out.open("wb") as stdout, (tmp_path / "err").open("wb") as stderr:
        stopped = subprocess.Popen(
            [sys.executable, "-m", "tests.support.stopped"],
            stdout=stdout,
            stderr=stderr,
            cwd=root,
            env={**os.environ, "PYTHONPATH": root, **settings},
        )
    try:
        wait_until(out.read_bytes, 60, (tmp_path / "err").read_text)
        ids = box.put(*intervals(3))
        wait_until(lambda: _state(stopped.pid) == "T", 30, "the worker did not stop")
        held = set(wait_until(lambda: operator.sessions("state = 'idle in transaction'"), 30, "it holds nothing"))
        drain(box, beacon, timeout=20)
        # Not all: another of its threads may have been about to set up a connection, which has no timeout yet.
        # The server gives a session's locks back a moment before it takes the session off its list.
        wait_until(
            lambda: held - set(operator.sessions("state = 'idle in transaction'")),
            message="the server did not end its session",
        )
        assert beacon.received.ids() == once(ids)
        stopped.send_signal(signal.SIGCONT)
        ids += box.put(interval())
        beacon.wait_for("usage", len(ids), timeout=30)
        stopped.terminate()
        assert stopped.wait(30) == 0
    finally:
        stopped.kill()
        stopped.wait()
    assert beacon.received.ids() == once(ids)


def _state(pid: int) -> str:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]


# --- read only -----------------------------------------------------------------------------------------------


def test_a_database_that_takes_no_writes_says_what_to_do_and_work_goes_on_when_it_does_again(
    box: Outbox, engine: Engine, operator: Operator, beacon: Simulator, caplog: pytest.LogCaptureFixture
) -> None:
    name = operator.do("SELECT current_database()")[0][0]
    with working(box), engine.connect() as writable:
        ids = box.put(interval())
        beacon.wait_for("usage", 1)
        pid = writable.execute(text("SELECT pg_backend_pid()")).scalar_one()
        operator.do(f"ALTER DATABASE {name} SET default_transaction_read_only = on")
        assert operator.terminate_all(f"pid <> {pid}") > 0
        with pytest.raises(DatabaseUnavailable, match=r"read-only.*default_transaction_read_only.*make it writable"):
            wait_until(lambda: box.put(interval()) and None)
        ids += box.enqueue(writable, interval())
        writable.commit()
        wait_until(lambda: "FOR UPDATE in a read-only transaction" in caplog.text, message=lambda: caplog.text)
        assert len(beacon.received.ids()) == 1
        operator.do(f"ALTER DATABASE {name} RESET default_transaction_read_only")
        beacon.wait_for("usage", 2)
        ids += wait_until(lambda: _put(box))
        beacon.wait_for("usage", 3)
    assert beacon.received.ids() == once(ids)


def _put(box: Outbox) -> Sequence[UUID]:
    """Nothing: by a session that began while nothing could be written, which is not used again."""
    with suppress(DatabaseUnavailable):
        return box.put(interval())
    return ()
