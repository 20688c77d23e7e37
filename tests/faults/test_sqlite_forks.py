"""Forks of a process that has an outbox on SQLite, whose library knows locks by process: nothing may be lost."""

from __future__ import annotations

import multiprocessing
import os
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from uuid import UUID

from outbox import BeaconTransport, Outbox, Worker
from outbox.simulator import Simulator
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
    """The last to close a file deletes its write-ahead log. SQLite of the child must know that it has it open too."""
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
    assert said.startswith("DatabaseUnavailable: ")
    assert "Fork first and start the worker then" in said
    assert outbox_box.find(message.id) is None
    outbox_box.put(message)


def test_a_child_forked_beside_a_worker_refuses_and_one_forked_after_it_does_not(
    outbox_box: Outbox, beacon: Simulator
) -> None:
    """An idle worker keeps a connection to learn of commits."""
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


def test_a_connection_in_use_while_the_engine_was_disposed_is_closed_by_the_next_fork(outbox_box: Outbox) -> None:
    """It comes back to a pool that the engine has no longer, as one does that a worker opens during a fork."""
    message = interval()
    with outbox_box.store.database.read():
        outbox_box.close()
        with forked(lambda: outbox_box.put(message)) as ended:
            assert "Fork first and start the worker then" in ended()
    with forked(lambda: outbox_box.put(message)) as ended:
        assert ended() == ""
    assert is_pending(outbox_box, message.id)
