"""Workers in threads and in processes."""

from __future__ import annotations

import gc
import math
import os
import subprocess
import threading
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine, text
from sqlalchemy.exc import OperationalError
from sqlalchemy.orm import Session

from outbox import BeaconTransport, Outbox, Settings, UsageInterval, Worker
from outbox.core.batch import Batch
from outbox.core.lane import Lane
from outbox.core.receipt import Receipt
from outbox.core.step import Outlook, Settlement, Step
from outbox.simulator import Simulator
from outbox.store.watch import Watch
from tests.support import killable, ledger
from tests.support.databases import Database
from tests.support.intervals import interval, intervals
from tests.support.waiting import wait_until


@pytest.fixture
def slow_poll(database: Database, engine: Engine, beacon: Simulator) -> Iterator[Outbox]:
    """An outbox whose worker polls once an hour: whatever is delivered before, a notification has caused."""
    settings = Settings(beacon_url=beacon.url, license_key=beacon.license, poll_seconds=3600)
    with Outbox(database.url, settings=settings) as box:
        box.migrate()
        yield box
        ledger.check(engine)


@pytest.fixture
def no_second_look(monkeypatch: pytest.MonkeyPatch) -> None:
    """An idle lane waits for notifications alone."""
    for pause in ("FIRST", "NOTIFIED"):
        monkeypatch.setattr(f"outbox.core.idle.{pause}_PAUSE_SECONDS", 3600)


@pytest.mark.usefixtures("no_second_look")
def test_a_put_wakes_the_worker_of_its_process(slow_poll: Outbox, beacon: Simulator) -> None:
    with BeaconTransport(slow_poll.settings) as transport, Worker(slow_poll, transport):
        for number in range(1, 4):
            slow_poll.put(interval())
            beacon.wait_for("usage", number)


def test_a_commit_of_the_host_wakes_the_worker_of_its_process(
    slow_poll: Outbox, engine: Engine, beacon: Simulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The notification comes just before the COMMIT: the worker looks again a moment later."""
    monkeypatch.setattr("outbox.core.idle.NOTIFIED_PAUSE_SECONDS", 3600)
    with BeaconTransport(slow_poll.settings) as transport, Worker(slow_poll, transport):
        for number in range(1, 4):
            with engine.begin() as connection:
                slow_poll.enqueue(connection, interval())
            beacon.wait_for("usage", number)


@pytest.mark.usefixtures("no_second_look")
@pytest.mark.parametrize("database", ["sqlite", "postgresql"], indirect=True)
def test_a_commit_in_another_process_wakes_the_worker(slow_poll: Outbox, database: Database, beacon: Simulator) -> None:
    with BeaconTransport(slow_poll.settings) as transport, Worker(slow_poll, transport):
        slow_poll.put(interval())
        beacon.wait_for("usage", 1)
        for number, way in enumerate(("put", "enqueue", "put"), 2):
            with killable.start(way, subprocess.DEVNULL, database_url=database.url) as producer:
                assert producer.wait() == 0
            beacon.wait_for("usage", number)


@pytest.mark.parametrize("database", ["mariadb"], indirect=True)
def test_where_nobody_tells_of_commits_elsewhere_they_are_claimed_without_a_look_first_soon_after_some_were_found(
    slow_poll: Outbox, database: Database, beacon: Simulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    for seconds in ("core.idle.EXPECTED", "worker.LOOK_DUE", "flight.LOOK_DUE"):  # however slow the machine is
        monkeypatch.setattr(f"outbox.{seconds}_SECONDS", 3600)
    looks: list[bool] = []
    outlook = slow_poll.store.outlook

    def looked(lane: Lane, *, stepped: bool = False) -> Outlook:
        if lane is Lane.USAGE:
            looks.append(stepped)
        return outlook(lane, stepped=stepped)

    with (
        BeaconTransport(slow_poll.settings) as transport,
        Worker(slow_poll, transport),
        Outbox(database.url, settings=Settings(notify=False)) as elsewhere,
    ):
        monkeypatch.setattr(slow_poll.store, "outlook", looked)
        found = 0
        while found < 3 or not all(looks):  # at its start the worker itself changes the lane, and then looks
            looks.clear()
            elsewhere.put(interval())
            found += 1
            beacon.wait_for("usage", found)
            wait_until(lambda sent=found: slow_poll.status().lanes["usage"].sent == sent)
            assert found < 30, f"each was looked for first: {looks}"


@pytest.mark.parametrize("database", ["mariadb"], indirect=True)
def test_where_nobody_tells_of_commits_elsewhere_what_is_committed_during_a_request_is_claimed_by_what_settles_it(
    slow_poll: Outbox, database: Database, beacon: Simulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    for seconds in ("core.idle.EXPECTED", "lanesignal.EXPECTED", "worker.LOOK_DUE", "flight.LOOK_DUE"):
        monkeypatch.setattr(f"outbox.{seconds}_SECONDS", 3600)
    steps: list[tuple[bool, int, int]] = []
    step = slow_poll.store.step

    def stepping(lane: Lane, landed: Sequence[Settlement], **options: Any) -> Step:
        by_reading = slow_poll.store.claims_by_reading(lane)
        done = step(lane, landed, **options)
        if landed or done.batches:
            steps.append((by_reading, len(landed), len(done.batches)))
        return done

    monkeypatch.setattr(slow_poll.store, "step", stepping)
    with (
        BeaconTransport(slow_poll.settings) as transport,
        Outbox(database.url, settings=Settings(notify=False)) as elsewhere,
    ):
        send, during = transport.send, list[UsageInterval]()

        def sending(batch: Batch) -> Receipt:
            receipt = send(batch)
            while during:
                elsewhere.put(during.pop())
            return receipt

        monkeypatch.setattr(transport, "send", sending)

        def steps_of(*meanwhile: UsageInterval) -> list[tuple[bool, int, int]]:
            """What is done for an entry, and for those that are committed during its request."""
            steps.clear()
            during.extend(meanwhile)
            elsewhere.put(interval())
            wait_until(lambda: sum(landed for _, landed, _ in steps) == 1 + len(meanwhile))
            return list(steps)

        with Worker(slow_poll, transport):
            for _ in range(60):  # until it claims by reading alone, which a machine that stalls interrupts
                if all(by_reading for by_reading, *_ in steps_of()):
                    taken = steps_of(interval())
                    if all(by_reading for by_reading, *_ in taken):
                        break
            else:
                pytest.fail("it never has the lane to itself")
        assert [counts for _, *counts in taken] == [[0, 1], [1, 1], [1, 0]]


@pytest.mark.parametrize("database", ["mariadb"], indirect=True)
def test_who_claims_without_a_look_looks_now_and_then_for_what_another_process_does_to_the_lane(
    slow_poll: Outbox, database: Database, beacon: Simulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    for seconds in ("core.idle.EXPECTED_SECONDS", "flight.LOOK_DUE_SECONDS"):
        monkeypatch.setattr(f"outbox.{seconds}", 3600)
    refused = interval()
    beacon.faults.refuse_ids = {str(refused.id)}
    with (
        BeaconTransport(slow_poll.settings) as transport,
        Worker(slow_poll, transport),
        Outbox(database.url, settings=Settings(notify=False)) as elsewhere,
    ):
        elsewhere.put(refused)
        wait_until(lambda: slow_poll.status().lanes["usage"].dead == 1)
        beacon.faults.clear()
        sent = 0
        while not slow_poll.store.claims_by_reading(Lane.USAGE):
            elsewhere.put(interval())
            sent += 1
            wait_until(lambda wanted=sent: slow_poll.status().lanes["usage"].sent == wanted)
            assert sent < 60, "it never has the lane to itself"
        assert elsewhere.requeue() == 1
        beacon.wait_for("usage", sent + 1)


def test_what_is_committed_between_a_claim_in_vain_and_the_look_after_it_does_not_wait_for_the_poll(
    slow_poll: Outbox, database: Database, beacon: Simulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    for pause in ("FIRST", "NOTIFIED"):
        monkeypatch.setattr(f"outbox.core.idle.{pause}_PAUSE_SECONDS", 3600)
    step, late = slow_poll.store.step, [interval()]

    def stepping(*arguments: Any, **options: Any) -> Step:
        done = step(*arguments, **options)
        if armed.is_set() and late:
            with Outbox(database.url, settings=Settings(notify=False)) as silent:
                silent.put(late.pop())
        return done

    armed = threading.Event()
    monkeypatch.setattr(slow_poll.store, "step", stepping)
    with BeaconTransport(slow_poll.settings) as transport, Worker(slow_poll, transport) as worker:
        slow_poll.put(interval())
        beacon.wait_for("usage", 1)
        wait_until(lambda: slow_poll.status().lanes["usage"].sent == 1)
        monkeypatch.setattr("outbox.core.idle.FIRST_PAUSE_SECONDS", 0.001)
        armed.set()
        worker.dispatcher.looked_at[Lane.USAGE] = -math.inf  # as after a while: its claim takes the lock
        worker.dispatcher.signals[Lane.USAGE].notify(entries=True, early=True)
        beacon.wait_for("usage", 2)


@pytest.mark.parametrize("database", ["postgresql", "mariadb"], indirect=True)
def test_a_commit_that_was_about_to_be_is_looked_for_though_another_was_told_of_since(
    slow_poll: Outbox, database: Database, beacon: Simulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("outbox.core.idle.NOTIFIED_PAUSE_SECONDS", 3600)
    with (
        BeaconTransport(slow_poll.settings) as transport,
        Worker(slow_poll, transport) as worker,
        Outbox(database.url, settings=Settings(notify=False)) as silent,
    ):
        worker.dispatcher.signals[Lane.USAGE].notify(entries=True, early=True)
        wait_until(lambda: not worker.dispatcher.signals[Lane.USAGE].entries)
        slow_poll.put(interval())
        wait_until(lambda: slow_poll.status().lanes["usage"].sent == 1)
        silent.put(interval())
        beacon.wait_for("usage", 2)


@pytest.mark.parametrize("database", ["postgresql", "mariadb"], indirect=True)
def test_what_is_put_behind_a_number_that_was_rolled_back_does_not_wait_for_the_poll(
    slow_poll: Outbox, engine: Engine, beacon: Simulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first claim sends nothing: the missing number's transaction may be about to commit."""
    looks, outlook = [], slow_poll.store.outlook
    monkeypatch.setattr(slow_poll.store, "outlook", lambda *a, **b: looks.append(a) or outlook(*a, **b))
    monkeypatch.setattr("outbox.core.idle.FIRST_PAUSE_SECONDS", 3600)  # as after a long time without an entry
    monkeypatch.setattr(Watch, "start", lambda _: None)  # it notifies of commits before its start
    with BeaconTransport(slow_poll.settings) as transport, Worker(slow_poll, transport):
        wait_until(lambda: len(looks) >= len(Lane))
        monkeypatch.setattr("outbox.core.idle.FIRST_PAUSE_SECONDS", 0.001)
        with Session(engine) as session:
            slow_poll.enqueue(session, interval())
            session.rollback()
        slow_poll.put(interval())
        beacon.wait_for("usage", 1)


@pytest.mark.parametrize("database", ["postgresql"], indirect=True)
def test_a_slow_commit_of_a_connection_elsewhere_is_looked_for_again(
    slow_poll: Outbox, database: Database, engine: Engine, beacon: Simulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The notification came before the COMMIT."""
    monkeypatch.setattr("outbox.core.idle.NOTIFIED_PAUSE_SECONDS", 3600)
    with engine.begin() as connection:
        connection.execute(
            text(
                "CREATE FUNCTION slow() RETURNS trigger LANGUAGE plpgsql"
                " AS $$ BEGIN PERFORM pg_sleep(0.02); RETURN NULL; END $$"
            )
        )
        connection.execute(
            text(
                "CREATE CONSTRAINT TRIGGER slow AFTER INSERT ON outbox_usage DEFERRABLE INITIALLY DEFERRED"
                " FOR EACH ROW EXECUTE FUNCTION slow()"
            )
        )
    with (
        BeaconTransport(slow_poll.settings) as transport,
        Worker(slow_poll, transport),
        Outbox(database.url) as other,
    ):
        wait_until(lambda: listens(engine))  # told of the COMMIT before it listens, it would wait for its poll
        for number in range(1, 4):
            with engine.begin() as connection:
                other.enqueue(connection, interval())
            beacon.wait_for("usage", number)


def listens(engine: Engine) -> bool:
    """Whether a session of this database does: the workers of other tests listen on the same server."""
    listening = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND query = 'LISTEN outbox'"
    with engine.connect() as connection:
        return bool(connection.scalar(text(listening)))


def test_a_pause_is_not_disturbed_by_what_is_committed_in_it(
    slow_poll: Outbox, beacon: Simulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks, outlook = [], slow_poll.store.outlook

    def counted(lane: Lane, **asked: Any) -> Outlook:
        seen = outlook(lane, **asked)
        if lane is Lane.USAGE:
            looks.append(seen)
        return seen

    monkeypatch.setattr(slow_poll.store, "outlook", counted)
    beacon.faults.status, beacon.faults.retry_after = 503, "3600"
    with BeaconTransport(slow_poll.settings) as transport, Worker(slow_poll, transport):
        slow_poll.put(interval())
        wait_until(lambda: looks and looks[-1].paused)
        looks.clear()
        for _ in range(200):
            slow_poll.put(interval())
    assert len(looks) < 30, "a pause that doubles from a millisecond is looked at so often within the hour"
    assert beacon.faults.fired["status"] == 1


@pytest.mark.parametrize("database", ["postgresql"], indirect=True)
def test_producers_that_shall_not_announce_open_no_connection_for_it(database: Database, engine: Engine) -> None:
    with Outbox(database.url, settings=Settings(notify=False)) as box:
        box.migrate()
        box.put(interval())
        assert "outbox-announcer" not in {thread.name for thread in threading.enumerate()}
    with Outbox(database.url, settings=Settings()) as box:
        box.put(interval())
        assert "outbox-announcer" in {thread.name for thread in threading.enumerate()}
    wait_until(lambda: "outbox-announcer" not in {thread.name for thread in threading.enumerate()})


@pytest.mark.parametrize("database", ["postgresql"], indirect=True)
def test_an_outbox_that_nobody_closes_holds_no_connection_once_it_is_gone(database: Database, engine: Engine) -> None:
    Outbox(engine).migrate()
    with Session(engine) as session, session.begin():
        Outbox(engine).enqueue(session, interval())  # gone before the commit
        box = Outbox(engine)
        box.put(interval())
        del box
    others = text(
        "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()"
    )

    def connected() -> int:
        gc.collect()
        with engine.connect() as connection:
            return int(connection.execute(others).scalar_one())

    wait_until(lambda: connected() == 0)
    assert "outbox-announcer" not in {thread.name for thread in threading.enumerate()}


@pytest.mark.parametrize("database", ["postgresql"], indirect=True)
def test_a_child_of_a_fork_announces_by_itself(slow_poll: Outbox, engine: Engine) -> None:
    with engine.connect() as connection:
        driver = connection.connection.driver_connection
        driver.autocommit = True
        driver.execute("LISTEN outbox")
        slow_poll.put(interval())
        assert [told.payload for told in driver.notifies(timeout=60, stop_after=1)] == ["outbox_usage"]
        pid = os.fork()
        if pid == 0:
            slow_poll.put(interval())
            slow_poll.close()
            os._exit(0)
        assert os.waitpid(pid, 0)[1] == 0
        assert [told.payload for told in driver.notifies(timeout=60, stop_after=1)] == ["outbox_usage"]


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


def test_a_worker_that_was_started_once_says_so_when_it_is_started_again(slow_poll: Outbox, beacon: Simulator) -> None:
    with BeaconTransport(slow_poll.settings) as transport:
        worker = Worker(slow_poll, transport)
        with worker, pytest.raises(RuntimeError, match="make another"):
            worker.start()
        with pytest.raises(RuntimeError, match="make another"), worker:
            pass
        slow_poll.put(interval())
        with Worker(slow_poll, transport):
            beacon.wait_for("usage", 1)


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


UNKNOWN_THREAD = "1094"


def end_connections(database: Database, engine: Engine) -> int:
    """End all other connections to the database. Returns how many."""
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
            try:
                connection.exec_driver_sql(f"KILL {id}")
            except OperationalError as error:
                if UNKNOWN_THREAD not in str(error.orig):  # it ended by itself since it was listed
                    raise
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
