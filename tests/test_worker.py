"""Workers in threads and in processes."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from sqlalchemy import Engine, text

from outbox import BeaconTransport, Outbox, Settings, Worker
from outbox.simulator import Simulator
from tests.support import killable, ledger
from tests.support.databases import Database
from tests.support.intervals import interval, intervals
from tests.support.waiting import wait_until


@pytest.fixture
def slow_poll(database: Database, engine: Engine, beacon: Simulator) -> Iterator[Outbox]:
    """An outbox whose worker polls once an hour: what is delivered in time, a wake delivered."""
    settings = Settings(beacon_url=beacon.url, license_key=beacon.license, poll_seconds=3600)
    with Outbox(database.url, settings=settings) as box:
        box.migrate()
        yield box
        ledger.check(engine)


def idle(worker: Worker) -> bool:
    """The lanes have nothing to do and are waiting for a wake."""
    return worker.box.store.outlook(worker.dispatcher.lanes[0]).next_seconds is None


def test_a_commit_wakes_the_worker_of_its_process(slow_poll: Outbox, engine: Engine, beacon: Simulator) -> None:
    with BeaconTransport(slow_poll.settings) as transport, Worker(slow_poll, transport) as worker:
        wait_until(lambda: idle(worker))
        with engine.begin() as connection:
            slow_poll.enqueue(connection, interval())
        beacon.wait_for("usage", 1)
        slow_poll.put(interval())
        beacon.wait_for("usage", 2)


def test_stopping_settles_the_batch_on_the_wire(slow_poll: Outbox, beacon: Simulator) -> None:
    beacon.faults.latency_ms = 500
    with BeaconTransport(slow_poll.settings) as transport:
        worker = Worker(slow_poll, transport)
        worker.start()
        slow_poll.put(*intervals(3))
        wait_until(lambda: beacon.received.counts()["usage"]["peak_in_flight"])
        worker.close()
    lane = slow_poll.status().lanes["usage"]
    assert (lane.sent, lane.in_flight, lane.pending) == (3, 0, 0)
    assert beacon.received.duplicates() == {}


def test_a_stopped_worker_leaves_no_thread(slow_poll: Outbox) -> None:
    before = set(threading.enumerate())
    with BeaconTransport(slow_poll.settings) as transport, Worker(slow_poll, transport):
        assert set(threading.enumerate()) > before
    wait_until(lambda: set(threading.enumerate()) <= before, message=lambda: str(threading.enumerate()))


def test_several_workers_send_each_entry_once(
    box: Outbox, database: Database, engine: Engine, beacon: Simulator, tmp_path: Path
) -> None:
    with ExitStack() as stack:
        files = [stack.enter_context((tmp_path / f"worker{n}").open("wb")) for n in range(2)]
        workers = [
            stack.enter_context(
                killable.start(
                    "work", out, database_url=database.url, beacon_url=beacon.url, license_key=beacon.license
                )
            )
            for out in files
        ]
        wait_until(lambda: all(Path(out.name).read_bytes() for out in files), timeout=30)
        with engine.begin() as connection:
            ids = box.enqueue_many(connection, intervals(20_000))
        beacon.wait_for("usage", 20_000, timeout=90)
        for worker in workers:
            worker.terminate()
        assert [worker.wait(30) for worker in workers] == [0, 0]
    assert beacon.received.ids() == {str(id): 1 for id in ids}
    assert box.status().lanes["usage"].sent == 20_000


def end_connections(database: Database, engine: Engine) -> int:
    """How many connections to the database, other than the one that asks, were ended."""
    with engine.connect() as connection:
        if database.name == "postgresql":
            ended = connection.execute(
                text(
                    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = current_database()"
                    " AND backend_type = 'client backend' AND pid <> pg_backend_pid()"
                )
            ).all()
            return len(ended)
        listed = text("SELECT id FROM information_schema.processlist WHERE db = DATABASE() AND id <> CONNECTION_ID()")
        ids = connection.execute(listed).scalars().all()
        for id in ids:
            connection.exec_driver_sql(f"KILL {id}")
        return len(ids)


@pytest.mark.parametrize("database", ["postgresql", "mariadb"], indirect=True)
def test_a_worker_goes_on_when_its_connections_were_cut(database: Database, engine: Engine, beacon: Simulator) -> None:
    settings = Settings(beacon_url=beacon.url, license_key=beacon.license, poll_seconds=0.1)
    with Outbox(database.url, settings=settings) as box, BeaconTransport(settings) as transport:
        box.migrate()
        with Worker(box, transport):
            box.put(interval())
            beacon.wait_for("usage", 1)
            assert end_connections(database, engine) > 0
            with engine.begin() as connection:
                box.enqueue(connection, interval())
            beacon.wait_for("usage", 2)
    ledger.check(engine)
