"""Forks of a process with an outbox on SQLite, whose locks belong to a process: nothing may be lost."""

from __future__ import annotations

import multiprocessing
import os
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from uuid import UUID

import pytest
from sqlalchemy import create_engine, event, text

from outbox import BeaconTransport, Outbox, Worker
from outbox.otel import OutboxSpanProcessor
from outbox.simulator import Simulator
from tests.otel.spanning import ended as ended_spans
from tests.support.intervals import interval, intervals


def is_pending(box: Outbox, id: UUID) -> bool:
    view = box.find(id)
    return view is not None and view.status == "pending"


@contextmanager
def forked(child: Callable[[], object]) -> Iterator[Callable[[], str]]:
    """A fork of this process that runs ``child``; the function waits for its end and returns its error, or ""."""
    reader, writer = os.pipe()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # this process has threads: the simulator's, at least
        pid = os.fork()
    if pid == 0:
        try:
            child()
        except BaseException as error:  # noqa: BLE001 - told to the parent
            os.write(writer, f"{type(error).__name__}: {error}".encode())
        finally:
            os._exit(0)
    os.close(writer)

    def ended() -> str:
        with os.fdopen(reader) as told:
            said = told.read()
        os.waitpid(pid, 0)
        return said

    yield ended


def test_what_a_forked_child_commits_stays_when_its_parent_has_closed_the_file(outbox_box: Outbox) -> None:
    """The last connection to close the file deletes its write-ahead log: the child's SQLite must hold locks of its
    own."""
    outbox_box.put(interval())  # the parent is connected
    first, second = intervals(2)
    put, closed = (multiprocessing.get_context("fork").Event() for _ in range(2))

    def child() -> None:
        outbox_box.put(first)
        put.set()
        closed.wait(30)
        outbox_box.put(second)

    with forked(child) as ended:
        assert put.wait(30)
        outbox_box.close()
        closed.set()
        assert ended() == ""
    assert is_pending(outbox_box, first.id)
    assert is_pending(outbox_box, second.id)


def test_a_fork_waits_for_a_transaction_of_another_thread(outbox_box: Outbox) -> None:
    begun, messages = threading.Event(), intervals(2)
    finish = threading.Event()

    def write() -> None:
        with outbox_box.store.database.write() as connection:
            outbox_box.enqueue(connection, messages[0])
            begun.set()
            finish.wait(30)

    thread = threading.Thread(target=write)
    thread.start()
    assert begun.wait(30)
    timer = threading.Timer(0.1, finish.set)
    timer.start()
    with forked(lambda: outbox_box.put(messages[1])) as ended:
        assert ended() == ""
    thread.join()
    timer.join()
    assert all(is_pending(outbox_box, message.id) for message in messages)


def test_a_child_that_inherits_a_connection_in_use_refuses_to_write(outbox_box: Outbox) -> None:
    message = interval()
    with outbox_box.store.database.read(), forked(lambda: outbox_box.put(message)) as ended:
        said = ended()
    assert said.startswith("InheritedConnection: ")
    assert "Fork first and start the worker then" in said
    assert outbox_box.find(message.id) is None
    outbox_box.put(message)


def test_a_child_forked_beside_a_worker_refuses_and_one_forked_after_it_does_not(
    outbox_box: Outbox, beacon: Simulator
) -> None:
    """An idle worker keeps a connection open to watch for commits."""
    message = interval()
    with (
        BeaconTransport(outbox_box.settings) as transport,
        Worker(outbox_box, transport),
        forked(lambda: outbox_box.put(message)) as ended,
    ):
        assert "Fork first and start the worker then" in ended()
    with forked(lambda: outbox_box.put(message)) as ended:
        assert ended() == ""
    assert is_pending(outbox_box, message.id)


def test_a_worker_is_not_started_in_a_child_that_refuses_to_write(outbox_box: Outbox) -> None:
    with (
        BeaconTransport(outbox_box.settings) as transport,
        outbox_box.store.database.read(),
        forked(Worker(outbox_box, transport).start) as ended,
    ):
        assert ended().startswith("InheritedConnection: ")


def test_a_connection_in_use_while_the_engine_was_disposed_is_closed_by_the_next_fork(outbox_box: Outbox) -> None:
    """It returns to a former pool of the engine, like a connection that a worker opens during a fork."""
    message = interval()
    with outbox_box.store.database.read():
        outbox_box.close()
        with forked(lambda: outbox_box.put(message)) as ended:
            assert "Fork first and start the worker then" in ended()
    with forked(lambda: outbox_box.put(message)) as ended:
        assert ended() == ""
    assert is_pending(outbox_box, message.id)


def test_a_connection_that_opens_while_the_engine_is_disposed_of_twice_is_closed_by_the_next_fork(
    outbox_box: Outbox,
) -> None:
    message, opens, go_on = interval(), threading.Event(), threading.Event()

    def connects(*_: object) -> None:
        opens.set()
        go_on.wait(30)

    outbox_box.close()
    event.listen(outbox_box.store.database.engine, "do_connect", connects)
    reader = threading.Thread(target=outbox_box.find, args=(message.id,))
    reader.start()
    assert opens.wait(30)
    for _ in range(2):
        outbox_box.close()
    go_on.set()
    reader.join()
    with forked(lambda: outbox_box.put(message)) as ended:
        assert ended() == ""
    assert is_pending(outbox_box, message.id)


def test_forks_beside_a_thread_that_opens_and_closes_the_file_lose_and_break_nothing(outbox_box: Outbox) -> None:
    """SQLite opens and closes files under mutexes of the process, and the last connection to close deletes the log."""
    messages, done = intervals(60), threading.Event()

    def open_and_close() -> None:
        while not done.is_set():
            outbox_box.put(interval())
            outbox_box.close()

    thread = threading.Thread(target=open_and_close)
    thread.start()
    put = []
    for message in messages:
        with forked(lambda message=message: outbox_box.put(message)) as ended:
            said = ended()
        assert not said or "Fork first and start the worker then" in said
        put += [] if said else [message]
    done.set()
    thread.join()
    assert len(put) > len(messages) / 2
    assert all(is_pending(outbox_box, message.id) for message in put)
    with outbox_box.store.database.read() as connection:
        assert connection.exec_driver_sql("PRAGMA integrity_check").scalar() == "ok"


def test_a_child_of_a_host_that_has_the_file_open_refuses(outbox_box: Outbox) -> None:
    """The host's idle connection would delete the log under the child."""
    message = interval()
    host = create_engine(outbox_box.settings.database_url)
    with host.begin() as connection:
        outbox_box.enqueue(connection, interval())
    with forked(lambda: (host.dispose(close=False), outbox_box.put(message))) as ended:
        assert "dispose of your own engine before you fork" in ended()
    host.dispose()
    with forked(lambda: outbox_box.put(message)) as ended:
        assert ended() == ""
    assert is_pending(outbox_box, message.id)


def test_a_child_that_never_can_write_gives_its_spans_up_at_once_and_tells_why(
    outbox_box: Outbox, caplog: pytest.LogCaptureFixture
) -> None:
    """Otherwise its exit would wait for shutdown()'s whole timeout, for a database that only other processes can
    write."""
    processor = OutboxSpanProcessor(outbox_box)
    host = create_engine(outbox_box.settings.database_url)

    def child() -> None:
        processor.on_end(ended_spans("of the child")[0])
        assert processor.force_flush(60_000)
        assert processor.dropped == 1
        assert "spans cannot be stored" in caplog.text
        assert "dispose of your own engine before you fork" in caplog.text
        assert "spans are lost, 1 so far" in caplog.text

    with host.connect() as connection:
        connection.execute(text("SELECT 1 FROM outbox_traces"))
        with forked(child) as ended:
            assert ended() == ""
    host.dispose()
    processor.on_end(ended_spans("of the parent")[0])
    processor.shutdown()
    assert outbox_box.status().lanes["traces"].pending == 1


def test_a_child_that_refuses_may_close_its_outbox(outbox_box: Outbox) -> None:
    """Closing touches no connection of its parent."""

    closed: list[object] = []

    def child() -> None:
        event.listen(outbox_box.store.database.engine, "close", lambda connection, _: closed.append(connection))
        outbox_box.close()
        assert not closed

    database = outbox_box.store.database
    with database.read():
        with database.read():
            pass  # the second one goes back to the pool
        with forked(child) as ended:
            assert ended() == ""


def test_two_threads_that_fork_at_once_leave_the_parent_able_to_write(
    outbox_box: Outbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second thread's wait for the locks of the first times out."""
    monkeypatch.setattr("outbox.store.forks._WAIT_SECONDS", 0.05)
    guard = outbox_box.store.database._guard
    assert guard is not None
    guard.before()
    second = threading.Thread(target=lambda: (guard.before(), guard.after_in_parent()))
    second.start()
    second.join()
    guard.after_in_parent()
    message = interval()
    outbox_box.put(message)
    assert is_pending(outbox_box, message.id)
