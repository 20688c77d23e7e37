"""Connections at hand are used again, and never where that could do harm."""

from __future__ import annotations

import gc
import os
import threading
import weakref
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from types import SimpleNamespace
from typing import Any

import pytest
from pymysql.connections import Connection as PyMySQL
from sqlalchemy import Engine, QueuePool, create_engine, event, text

from outbox import Dispatcher, Outbox, Settings
from outbox.core.lane import Lane
from outbox.errors import DatabaseUnavailable, OutboxError, OutcomeUnknown
from outbox.store import connections
from outbox.store.dialects.base import Inserted
from outbox.store.dialects.mysql import MySQL
from tests.store.driving import DELIVERED
from tests.support import ledger
from tests.support.databases import Database
from tests.support.intervals import interval, intervals
from tests.support.listening import checkouts
from tests.support.waiting import wait_until

SERVERS = pytest.mark.parametrize("database", ["postgresql", "mariadb"], indirect=True)
SESSION = {"postgresql": "SELECT pg_backend_pid()", "mariadb": "SELECT CONNECTION_ID()"}
KILL = {"postgresql": "SELECT pg_terminate_backend({})", "mariadb": "KILL {}"}


@pytest.fixture
def box(database: Database) -> Iterator[Outbox]:
    """An outbox without an announcer, which would take a connection of the pool for itself."""
    with Outbox(database.url, settings=Settings(notify=False)) as box:
        box.migrate()
        yield box
        ledger.check(box.engine)


@pytest.fixture
def trusted(monkeypatch: pytest.MonkeyPatch) -> None:
    """However slow the machine is: no connection was idle for so long that it is tried before it is used."""
    monkeypatch.setattr(connections, "IDLE_SECONDS", 3600)


@contextmanager
def used(box: Outbox) -> Iterator[Any]:
    """A driver connection, taken and kept as ``Database`` does it."""
    connections = box.store.database._connections
    pooled, at_hand = connections.take()
    try:
        yield pooled
    except BaseException:
        pooled.close()
        raise
    connections.keep(pooled, at_hand)


def kill_the_one_at_hand(box: Outbox, engine: Engine, database: Database) -> None:
    with used(box) as pooled, pooled.cursor() as cursor:
        cursor.execute(SESSION[database.name])
        (session,) = cursor.fetchone()
    with engine.connect() as connection:
        connection.execute(text(KILL[database.name].format(session)))


def pending(box: Outbox) -> int:
    return box.status().lanes["usage"].pending


@pytest.mark.usefixtures("trusted")
def test_puts_and_looks_one_after_the_other_take_one_connection_of_the_pool(box: Outbox) -> None:
    with checkouts(box.engine) as seen:
        for message in intervals(5):
            box.put(message)
            assert box.store.outlook(Lane.USAGE).ready
    assert len(seen) == 1
    assert pending(box) == 5


@pytest.mark.usefixtures("trusted")
def test_two_at_a_time_leave_two_at_hand_and_a_third_goes_back(box: Outbox) -> None:
    with checkouts(box.engine) as seen:
        for _ in range(2):
            with used(box), used(box), used(box):
                pass
    assert len(seen) == 3 + 1
    assert box.engine.pool.checkedout() == 2  # type: ignore[attr-defined]


def interrupted(pooled: Any) -> int:
    connection = pooled.driver_connection
    each = getattr(connection, "get_autocommit", lambda: getattr(connection, "autocommit", True))
    assert each(), "one statement commits itself"
    raise KeyboardInterrupt


def test_one_whose_work_failed_goes_back_to_the_pool(box: Outbox) -> None:
    with pytest.raises(KeyboardInterrupt):
        box.store.database.alone(interrupted, statements=1)
    assert box.engine.pool.checkedout() == 0  # type: ignore[attr-defined]


@SERVERS
def test_a_small_pool_of_the_host_is_left_to_those_who_wait_for_it(database: Database) -> None:
    host = create_engine(database.url, pool_size=1, max_overflow=0)
    with Outbox(host) as box:
        box.migrate()
        box.put(interval())
        with box.store.database.write() as connection:
            box.enqueue(connection, interval())
        box.put(interval())
        assert pending(box) == 3
    host.dispose()


@SERVERS
@pytest.mark.parametrize("leave", ["given back", "lost", "failed"])
def test_what_commits_each_statement_is_not_handed_out_by_the_pool(box: Outbox, leave: str) -> None:
    at_hand = box.store.database._connections
    if leave == "given back":
        box.put(interval())
        at_hand.give_back()
    elif leave == "lost":  # garbage-collected: its thread ended before it was kept
        box.put(interval())
        at_hand._at_hand.clear()
    else:
        with suppress(KeyboardInterrupt):
            box.store.database.alone(interrupted, statements=1)
    assert box.engine.pool.checkedin() == 1  # type: ignore[attr-defined]
    with suppress(ZeroDivisionError), box.store.database.write() as connection:
        box.enqueue(connection, interval())
        raise ZeroDivisionError
    assert pending(box) == (leave != "failed")


@SERVERS
def test_one_that_was_idle_is_tried_before_it_is_used_and_replaced_without_a_word(
    box: Outbox, engine: Engine, database: Database, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    now = 1000.0
    monkeypatch.setattr(connections, "time", SimpleNamespace(monotonic=lambda: now))
    box.put(interval())
    kill_the_one_at_hand(box, engine, database)
    now += 1.5 * connections.IDLE_SECONDS
    box.put(interval())
    assert pending(box) == 2
    assert [record.getMessage() for record in caplog.records if record.levelname == "ERROR"] == []


@SERVERS
@pytest.mark.usefixtures("trusted")
def test_when_one_broke_none_of_those_in_use_meanwhile_stays_at_hand(
    box: Outbox, engine: Engine, database: Database
) -> None:
    with used(box) as beside:
        known = beside.driver_connection
        box.put(interval())
        kill_the_one_at_hand(box, engine, database)
        with pytest.raises((DatabaseUnavailable, OutcomeUnknown)):
            box.put(interval())
    with checkouts(box.engine) as seen:
        box.put(interval())
    assert seen
    assert known not in seen


@SERVERS
@pytest.mark.usefixtures("trusted")
def test_when_all_of_the_pool_broke_one_put_is_told(box: Outbox, engine: Engine, database: Database) -> None:
    """As after a restart of the server."""
    with ExitStack() as stack:
        open_at_once = [stack.enter_context(box.store.database.read()) for _ in range(4)]
        sessions = [connection.execute(text(SESSION[database.name])).scalar() for connection in open_at_once]
    box.store.database._connections.give_back()
    with engine.connect() as connection:
        for session in sessions:
            connection.execute(text(KILL[database.name].format(session)))
    failed = 0
    for message in intervals(5):
        try:
            box.put(message)
        except (DatabaseUnavailable, OutcomeUnknown):
            failed += 1
            box.put(message)
    assert failed == 1
    assert pending(box) == 5


@SERVERS
def test_one_that_has_long_been_out_of_the_pool_goes_back(box: Outbox, monkeypatch: pytest.MonkeyPatch) -> None:
    """The pool may be configured to replace old connections."""
    now = 1000.0
    monkeypatch.setattr(connections, "time", SimpleNamespace(monotonic=lambda: now))
    with checkouts(box.engine) as seen:
        while now < 1000.0 + 3 * connections.KEPT_SECONDS:
            box.put(interval())
            now += 0.5 * connections.IDLE_SECONDS
    assert len(seen) == 3


@pytest.mark.parametrize("database", ["mariadb"], indirect=True)
def test_a_put_is_one_transaction_on_the_engine_of_a_host_that_commits_each_statement(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    in_transaction: list[int] = []
    put = MySQL.put

    def looking(self: MySQL, pooled: Any, *rest: Any, **options: Any) -> Inserted:
        done = put(self, pooled, *rest, **options)
        with pooled.cursor() as cursor:
            cursor.execute("SELECT @@in_transaction")
            in_transaction.extend(cursor.fetchone())
        return done

    monkeypatch.setattr(MySQL, "put", looking)
    host = create_engine(database.url, isolation_level="AUTOCOMMIT")
    with Outbox(host) as box:
        box.migrate()
        box.put(interval())
        box.put(*intervals(MySQL.inserted_at_once))
        box.put(*intervals(MySQL.inserted_at_once + 1))
        assert in_transaction == [0, 0, 1], "one statement commits itself"
        assert pending(box) == 2 * MySQL.inserted_at_once + 2
    host.dispose()


@SERVERS
@pytest.mark.parametrize("level", ["READ UNCOMMITTED", "SERIALIZABLE"])
def test_only_what_is_committed_is_sent_whatever_the_isolation_of_a_hosts_engine(
    database: Database, level: str
) -> None:
    host = create_engine(database.url, isolation_level=level)
    sent: list[str] = []
    transport = SimpleNamespace(send=lambda batch: sent.append(batch.lines) or DELIVERED)
    with Outbox(host, settings=Settings(notify=False)) as box, closing(Dispatcher(box, transport)) as dispatcher:
        box.migrate()

        def deliver() -> str:
            sent.clear()
            dispatcher.signals[Lane.USAGE].notify(entries=True)
            dispatcher.run_lane(Lane.USAGE, notified=True)
            return "".join(sent)

        for _ in range(3):  # from then on steps are optimistic: the driver's own connection reads
            box.put(interval())
            assert deliver()
        with host.connect() as connection:
            [uncommitted] = box.enqueue(connection, interval())
            assert not deliver()
            connection.rollback()
        [committed] = box.put(interval())
        wait_until(lambda: str(committed) in deliver())
        assert box.find(uncommitted) is None
    host.dispose()


def test_a_child_of_a_fork_has_none_of_its_parents_connections(box: Outbox, engine: Engine, database: Database) -> None:
    first, second, third = intervals(3)
    box.put(first)
    theirs = [pooled.dbapi_connection for pooled in box.store.database._connections._at_hand]
    assert theirs
    pid = os.fork()
    if pid == 0:
        try:
            box.put(second)
            mine = [pooled.dbapi_connection for pooled in box.store.database._connections._at_hand]
            os._exit(0 if mine and not any(one is other for one in mine for other in theirs) else 2)
        finally:
            os._exit(1)
    assert not box.store.database._connections._at_hand, "they went back before the fork"
    assert os.waitpid(pid, 0)[1] == 0
    box.put(third)
    assert pending(box) == 3


def test_one_in_use_while_another_thread_forks_is_not_at_hand_afterwards(box: Outbox) -> None:
    """Otherwise a child forked a moment later would inherit it."""
    at_hand = box.store.database._connections
    taken, forked = threading.Event(), threading.Event()

    def use() -> None:
        with used(box):
            taken.set()
            forked.wait(30)

    thread = threading.Thread(target=use)
    thread.start()
    assert taken.wait(30)
    at_hand.before()
    forked.set()
    thread.join()
    assert not at_hand._at_hand
    assert box.engine.pool.checkedout() == 0  # type: ignore[attr-defined]
    at_hand.after_in_parent()


def test_disposing_of_the_engine_closes_them(box: Outbox) -> None:
    closed: list[Any] = []
    event.listen(box.engine, "close", lambda driver_connection, _: closed.append(driver_connection))
    with checkouts(box.engine) as used:
        box.put(interval())
    pool = box.engine.pool
    box.engine.dispose()
    assert closed == used
    assert pool.checkedout() == 0  # type: ignore[attr-defined]
    box.put(interval())
    assert pending(box) == 2


def test_an_outbox_that_is_dropped_without_close_lets_go_of_its_connections(database: Database) -> None:
    box = Outbox(database.url, settings=Settings(notify=False))
    box.migrate()
    box.put(interval())
    engine = weakref.ref(box.engine)
    del box
    gc.collect()
    assert engine() is None, "and no session is left, which the fixture sees to"


class TimeLimit(Exception):
    """Like Celery's, raised by a signal handler at any point of the program."""


@pytest.mark.parametrize("database", ["mariadb"], indirect=True)
@pytest.mark.parametrize("rows", [1, MySQL.inserted_at_once, 3 * MySQL.inserted_at_once])
@pytest.mark.parametrize("raised", [TimeLimit, KeyboardInterrupt])
def test_an_answer_that_nobody_read_is_no_answer_to_the_next_put(
    box: Outbox, monkeypatch: pytest.MonkeyPatch, rows: int, raised: type[BaseException]
) -> None:
    box.put(interval())
    interrupt_before_the_next_answer(monkeypatch, raised)
    with pytest.raises(raised):
        box.put(*intervals(rows))
    monkeypatch.undo()
    for count in (1, rows, 1, rows):
        messages = intervals(count)
        assert box.put(*messages).duplicates == 0
        assert all(box.find(message.id) for message in messages)


@pytest.mark.parametrize("database", ["mariadb"], indirect=True)
def test_an_answer_that_nobody_read_is_no_answer_to_the_next_look_or_step(
    box: Outbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    for use in (box.status, lambda: box.store.audit(Lane.USAGE), lambda: box.store.outlook(Lane.USAGE)):
        use()
        interrupt_before_the_next_answer(monkeypatch, TimeLimit)
        with pytest.raises(TimeLimit):
            use()
        monkeypatch.undo()
        pending = box.status().lanes["usage"].pending
        box.put(interval())
        assert box.status().lanes["usage"].pending == pending + 1


@pytest.mark.parametrize("database", ["mariadb"], indirect=True)
@pytest.mark.parametrize("end", ["commit", "rollback"])
def test_an_answer_to_a_commit_that_nobody_read_is_none_to_the_next_put(
    box: Outbox, monkeypatch: pytest.MonkeyPatch, end: str
) -> None:
    ending = getattr(PyMySQL, end)

    def interrupted(driver_connection: Any) -> None:
        monkeypatch.setattr(PyMySQL, "_read_ok_packet", lambda _: _raise(TimeLimit()))
        ending(driver_connection)

    box.store.lane_status(Lane.USAGE)
    monkeypatch.setattr(PyMySQL, end, interrupted)

    def write() -> None:
        with box.store.database.write() as connection:
            connection.execute(text("SELECT 1"))
            if end == "rollback":
                raise OutboxError("it is undone")

    with pytest.raises(TimeLimit):
        write()
    monkeypatch.undo()
    message = interval()
    assert box.put(message).duplicates == 0
    assert box.find(message.id) is not None


def _raise(error: Exception) -> None:
    raise error


def test_a_pool_whose_connections_are_all_taken_says_so(database: Database) -> None:
    host = create_engine(database.url, poolclass=QueuePool, pool_size=1, max_overflow=0, pool_timeout=0.05)
    with Outbox(host if database.name != "sqlite" else database.url, settings=Settings(notify=False)) as box:
        box.migrate()
        if database.name == "sqlite":
            box.engine.pool._timeout, box.engine.pool._max_overflow = 0.05, 0  # type: ignore[attr-defined]
        with ExitStack() as held:
            for _ in range(box.engine.pool.size()):  # type: ignore[attr-defined]
                held.enter_context(box.engine.connect())
            for use in (box.status, lambda: box.put(interval())):
                with pytest.raises(DatabaseUnavailable, match="all connections of the pool were taken for too long"):
                    use()
        box.put(interval())
    host.dispose()


def interrupt_before_the_next_answer(monkeypatch: pytest.MonkeyPatch, raised: type[BaseException]) -> None:
    read = PyMySQL._read_query_result

    def interrupted(driver_connection: Any, *arguments: Any, **options: Any) -> Any:
        monkeypatch.setattr(PyMySQL, "_read_query_result", read)
        raise raised

    monkeypatch.setattr(PyMySQL, "_read_query_result", interrupted)
