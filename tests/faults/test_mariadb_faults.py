"""Deadlocks, lock waits and a server that dies: a lost claim is no error, and nothing acknowledged is lost."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
from typing import Any, Self

import pytest
from sqlalchemy import Engine, create_engine, event, text
from sqlalchemy.engine import ExceptionContext
from sqlalchemy.exc import OperationalError

from outbox import BeaconTransport, Dispatcher, Outbox, Settings, UsageInterval, Worker
from outbox.core.lane import Lane
from outbox.errors import DatabaseUnavailable, OutcomeUnknown
from outbox.simulator import Simulator
from tests.faults.own_server import started
from tests.support import ledger
from tests.support.intervals import interval, intervals
from tests.support.locks import waits_for_a_lock
from tests.support.servers import MariaDBServer
from tests.support.waiting import wait_until

DEADLOCK = 1213
LOCK_WAIT_TIMEOUT = 1205

LOCK_LANE = text("SELECT version FROM outbox_lane WHERE lane = 'usage' FOR UPDATE")

mariadb = pytest.mark.parametrize("database", ["mariadb"], indirect=True)


@pytest.fixture
def errors(box: Outbox) -> Counter[int]:
    """The error codes that the server gave the outbox's own connections."""
    seen: Counter[int] = Counter()

    def note(context: ExceptionContext) -> None:
        seen[context.original_exception.args[0]] += 1

    event.listen(box.engine, "handle_error", note)
    return seen


@pytest.fixture
def dispatcher(box: Outbox, beacon: Simulator) -> Iterator[Dispatcher]:
    settings = Settings(beacon_url=beacon.url, license_key=beacon.license)
    with BeaconTransport(settings) as transport, closing(Dispatcher(box, transport, lanes=[Lane.USAGE])) as dispatcher:
        yield dispatcher


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(2) as pool:
        yield pool


def impatient(engine: Engine) -> None:
    """Wait for a lock one second at most: the least that InnoDB knows."""
    engine.dispose()
    event.listen(engine, "connect", lambda c, _: c.cursor().execute("SET SESSION innodb_lock_wait_timeout = 1"))


# --- the worker's transactions -------------------------------------------------------------------------------


@mariadb
def test_a_deadlock_on_the_lanes_row_is_a_lost_claim(
    box: Outbox, engine: Engine, dispatcher: Dispatcher, errors: Counter[int], pool: ThreadPoolExecutor
) -> None:
    """Somebody has the rows of the batches and asks for the lane; the dispatcher has the lane and asks for those."""
    with engine.begin() as connection:
        connection.execute(text("CREATE TABLE ballast (n INTEGER)"))
    box.put(*intervals(3))
    with engine.connect() as connection:
        heavy = ", ".join(f"({n})" for n in range(500))
        connection.execute(text(f"INSERT INTO ballast VALUES {heavy}"))  # the lighter transaction is the victim
        connection.execute(text("SELECT * FROM outbox_batch FOR UPDATE"))
        tick = pool.submit(dispatcher.run_once)
        wait_until(lambda: waits_for_a_lock(engine), message="the dispatcher never came to the locked rows")
        connection.execute(LOCK_LANE)
        wait_until(lambda: errors[DEADLOCK])
        connection.rollback()
        report = tick.result(30)
    assert errors == {DEADLOCK: 1}
    assert (report.sent, report.failed, report.dead) == (3, 0, 0)


@mariadb
def test_waiting_too_long_for_the_lanes_row_is_a_lost_claim(
    box: Outbox,
    engine: Engine,
    dispatcher: Dispatcher,
    errors: Counter[int],
    pool: ThreadPoolExecutor,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("outbox.store.store._TRIES", 60)  # of a second each: until the lane is free
    impatient(box.engine)
    box.put(*intervals(3))
    with engine.connect() as connection:
        connection.execute(LOCK_LANE)
        tick = pool.submit(dispatcher.run_once)
        wait_until(lambda: errors[LOCK_WAIT_TIMEOUT])
        connection.rollback()
        report = tick.result(30)
    assert set(errors) == {LOCK_WAIT_TIMEOUT}
    assert (report.sent, report.failed, report.dead) == (3, 0, 0)


@mariadb
def test_a_lane_that_is_locked_for_long_stops_a_worker_until_it_is_free(
    box: Outbox,
    engine: Engine,
    dispatcher: Dispatcher,
    errors: Counter[int],
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """When it has tried some times the worker says so, and goes on at its next tick."""
    monkeypatch.setattr("outbox.store.store._TRIES", 2)  # of a second each
    impatient(box.engine)
    with Worker(box, dispatcher.transport), engine.connect() as connection:
        connection.execute(LOCK_LANE)
        (id,) = box.put(interval())
        wait_until(lambda: "Lock wait timeout exceeded" in caplog.text, timeout=60)
        connection.rollback()
        wait_until(lambda: (view := box.find(id)) is not None and view.status == "sent", timeout=60)
    assert errors[LOCK_WAIT_TIMEOUT] >= 2


@mariadb
def test_a_connection_that_the_server_has_closed_is_told_as_such_and_replaced(
    box: Outbox, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("outbox.store.connections.IDLE_SECONDS", 3600)  # trust the one in the pool
    message = interval()
    with box.engine.connect() as connection:
        number = connection.scalar(text("SELECT CONNECTION_ID()"))
    with engine.connect() as connection:
        connection.execute(text(f"KILL {number}"))
    with pytest.raises(DatabaseUnavailable, match=r"Nothing was written by this call\..*try again"):
        box.put(message)
    assert box.put(message).duplicates == 0


# --- the host's transactions ---------------------------------------------------------------------------------


def enqueue_with_retries(
    box: Outbox, engine: Engine, messages: list[UsageInterval], between: Callable[[], Any], errors: list[int]
) -> int:
    """As a host does that knows its database: one message after the other, all again when the transaction is lost."""
    while True:
        try:
            with engine.begin() as connection:
                duplicates = box.enqueue(connection, messages[0]).duplicates
                between()
                return duplicates + box.enqueue(connection, messages[1]).duplicates
        except OperationalError as error:
            errors.append(error.orig.args[0] if error.orig else 0)


@mariadb
def test_a_deadlock_of_two_hosts_reaches_one_as_sqlalchemys_error_and_a_retry_is_safe(
    box: Outbox, engine: Engine, pool: ThreadPoolExecutor
) -> None:
    first, second = intervals(2)
    meet = threading.Barrier(2)

    def once() -> None:
        with suppress(threading.BrokenBarrierError):  # the retry comes alone
            meet.wait(60)
            meet.abort()

    errors: list[int] = []
    tasks = [
        pool.submit(enqueue_with_retries, box, engine, order, once, errors)
        for order in ([first, second], [second, first])
    ]
    duplicates = sum(task.result(60) for task in tasks)
    assert errors == [DEADLOCK]
    assert duplicates == 2, "each message is there once, and the second of the two hosts was told so"
    assert box.status().lanes["usage"].pending == 2


@mariadb
def test_a_lock_wait_of_a_host_reaches_it_as_sqlalchemys_error_and_a_retry_is_safe(box: Outbox, engine: Engine) -> None:
    impatient(engine)
    message = interval()
    with engine.connect() as slow:
        box.enqueue(slow, message)
        with pytest.raises(OperationalError) as raised, engine.begin() as connection:
            box.enqueue(connection, message)
        assert raised.value.orig is not None
        assert raised.value.orig.args[0] == LOCK_WAIT_TIMEOUT
        slow.commit()
    with engine.begin() as connection:
        assert box.enqueue(connection, message).duplicates == 1
    assert box.status().lanes["usage"].pending == 1


# --- the server dies -----------------------------------------------------------------------------------------


@pytest.fixture
def server() -> Iterator[MariaDBServer]:
    """A MariaDB of the test's own that survives a power cut."""
    with started(MariaDBServer(durable=True), "MariaDB") as running:
        yield running


class Producer:
    """Puts messages again and again, the same ones until they are acknowledged, in a thread of its own."""

    def __init__(self, box: Outbox) -> None:
        self._box = box
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self.acknowledged: list[str] = []
        self.interruptions: Counter[str] = Counter()

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._stop.is_set():
            messages = intervals(5)
            while not self._put(messages) and not self._stop.wait(0.02):
                pass

    def _put(self, messages: list[UsageInterval]) -> bool:
        try:
            self.acknowledged += map(str, self._box.put(*messages))
        except (DatabaseUnavailable, OutcomeUnknown) as error:
            self.interruptions[type(error).__name__] += 1
            return False
        return True

    def is_interrupted(self) -> None:
        before = self.interruptions.total()
        wait_until(lambda: self.interruptions.total() > before, timeout=30)

    def puts_more(self) -> None:
        """Wait for fifty more acknowledged messages."""
        goal = len(self.acknowledged) + 50
        wait_until(lambda: len(self.acknowledged) >= goal, timeout=60, message=lambda: str(self.interruptions))


@pytest.mark.timeout(240)
def test_a_server_that_dies_under_load_loses_nothing_and_the_worker_is_back_by_itself(
    server: MariaDBServer, beacon: Simulator
) -> None:
    admin = create_engine(server.url("pymysql"))
    with admin.connect() as connection:
        connection.execute(text("CREATE DATABASE service"))
    admin.dispose()
    settings = Settings(
        database_url=server.url("pymysql", "service"),
        beacon_url=beacon.url,
        license_key=beacon.license,
        lease_seconds=2,
        request_timeout=1,
        poll_seconds=0.05,
    )
    with Outbox(settings=settings) as box, Outbox(settings=settings) as hosts, BeaconTransport(settings) as transport:
        box.migrate()
        with Worker(box, transport):
            with Producer(hosts) as producer:
                for _ in range(2):
                    producer.puts_more()
                    server.crash()
                    producer.is_interrupted()
                    server.start()
                producer.puts_more()
            wait_until(
                lambda: not box.store.lane_status(Lane.USAGE).unfinished,
                timeout=60,
                message=lambda: str(box.status().lanes["usage"]),
            )
        assert beacon.received.ids().keys() >= set(producer.acknowledged)
        ledger.check(box.engine)
    again = beacon.received.duplicates()
    assert all(len(set(keys)) == 1 for keys in again.values())
    print(
        f"\n{server.label}: 2 crashes, {dict(producer.interruptions)}, {len(producer.acknowledged)} acknowledged,"
        f" 0 lost, {len(again)} came again"
    )
