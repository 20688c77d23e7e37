"""A put hands its committed entries to the worker of its process, which then need not read them."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from threading import Event
from typing import Any
from uuid import UUID

import pytest
from sqlalchemy import Engine, create_engine, event, select
from sqlalchemy.orm import Session

from outbox import BeaconTransport, Dispatcher, Outbox, Settings, TelemetryEnvelope, UsageInterval, Worker
from outbox.core.lane import LANES, Lane
from outbox.core.step import Committed
from outbox.lanesignal import HANDED_OVER, LaneSignal
from outbox.producer import HANDED_OVER_BYTES
from outbox.simulator import Simulator
from outbox.store import optimistic_write
from outbox.store.optimistic import OptimisticSteps
from outbox.store.read_ahead import ReadAhead
from outbox.store.schema import LOGS
from outbox.store.watch import Watch
from tests.store.driving import DELIVERED
from tests.support import ledger
from tests.support.databases import Database
from tests.support.intervals import interval, intervals
from tests.support.transports import PATIENCE_SECONDS, Beacon
from tests.support.waiting import wait_until

FEW = 10
METRICS = (Path(__file__).parent / "examples" / "metrics.json").read_text()


@pytest.fixture
def told(box: Outbox) -> list[Committed | None]:
    """The entries that each put hands to the listener."""
    told: list[Committed | None] = []
    box.wake.listen(lambda _lanes, committed=None, /: told.append(committed))
    return told


def log(box: Outbox, lane: Lane = Lane.USAGE) -> dict[int, str]:
    with box.store.database.read() as connection:
        rows = connection.execute(select(LOGS[lane].c.seq, LOGS[lane].c.payload)).all()
    return {row.seq: row.payload for row in rows}


def numbered(committed: Committed | None) -> dict[int, str]:
    assert committed is not None, "nothing was handed over"
    return dict(enumerate(committed.payloads, committed.first))


# --- what is handed over -------------------------------------------------------------------------------------


@pytest.mark.parametrize("rows", [1, FEW, 50])
def test_a_put_hands_over_its_entries_as_the_log_has_them(box: Outbox, told: list[Committed | None], rows: int) -> None:
    box.put(interval())
    box.put(*intervals(rows))
    first, second = told
    assert {**numbered(first), **numbered(second)} == log(box)
    assert len(log(box)) == 1 + rows


def test_a_put_of_telemetry_does_so_where_its_batches_are_small(box: Outbox, told: list[Committed | None]) -> None:
    """Larger batches are read in two queries, always under the lock."""
    box.put(TelemetryEnvelope("metrics", METRICS))
    box.store.policy = replace(box.store.policy, batch_max_rows=2)
    box.put(TelemetryEnvelope("metrics", METRICS))
    nothing, committed = told
    assert nothing is None
    assert numbered(committed).items() <= log(box, Lane.METRICS).items()


def test_what_is_there_already_or_takes_much_room_or_is_of_two_lanes_is_to_be_looked_for(
    box: Outbox, told: list[Committed | None]
) -> None:
    again, other = intervals(2)
    box.put(again)
    box.put(again)
    box.put(again, other)
    box.put(interval(), TelemetryEnvelope("metrics", METRICS))
    rows = HANDED_OVER_BYTES // len(interval().payload) + 1
    box.put(*intervals(rows))
    assert [committed is None for committed in told] == [False, True, True, True, True]


@pytest.mark.parametrize("database", ["mariadb"], indirect=True)
def test_numbers_with_gaps_are_not_handed_over(database: Database, box: Outbox, told: list[Committed | None]) -> None:
    """As on a Galera cluster, where each node has its own residue class of numbers."""
    box.store.database.close()
    event.listen(box.engine, "connect", lambda c, _: c.cursor().execute("SET SESSION auto_increment_increment = 3"))
    box.put(*intervals(FEW))
    box.put(interval())
    assert len(log(box)) == FEW + 1
    gaps, one = told
    assert gaps is None
    assert numbered(one).items() <= log(box).items()


def test_who_was_told_of_first_does_not_hide_who_was_told_of_last(box: Outbox, told: list[Committed | None]) -> None:
    """Two threads may commit in one order and notify in the other."""
    box.put(interval())
    box.store.notified_here["outbox_usage"] = 100
    box.put(interval())
    assert box.store.notified_here == {"outbox_usage": 100}
    assert len(told) == 2


def test_without_a_worker_nothing_is_kept(box: Outbox) -> None:
    box.put(interval())
    assert box.store.notified_here == {}


# --- until it is claimed -------------------------------------------------------------------------------------


def committed(first: int, *payloads: str) -> Committed:
    return Committed(first, payloads, time.monotonic())


def test_commits_without_a_gap_are_taken_as_one_in_whatever_order_they_are_told_of() -> None:
    news = LaneSignal()
    for part in (committed(7, "c"), committed(5, "a", "b"), committed(8, "d")):
        news.notify(entries=True, committed=part)
    taken = news.take()
    assert taken is not None
    assert (taken.first, list(taken.payloads)) == (5, ["a", "b", "c", "d"])
    assert (news.entries, news.take()) == (False, None)


def test_with_a_gap_or_beside_what_is_not_known_nothing_is_taken() -> None:
    for other in (committed(9, "later"), None):
        news = LaneSignal()
        news.notify(entries=True, committed=committed(5, "a"))
        news.notify(entries=True, committed=other)
        assert news.take() is None


def test_the_age_of_the_oldest_counts() -> None:
    old, new = Committed(5, ["a"], 1.0), Committed(6, ["b"], 2.0)
    joined = Committed.joined([new, old])
    assert joined is not None
    assert joined.at == 1.0


def test_of_a_lane_that_does_not_keep_up_no_more_than_a_few_are_kept() -> None:
    news = LaneSignal()
    for number in range(10 * HANDED_OVER):
        news.notify(entries=True, committed=committed(number, "payload"))
        assert len(news._committed) <= HANDED_OVER
    assert news.entries
    assert news.take() is None, "some of them are to be looked for"


# --- claimed -------------------------------------------------------------------------------------------------


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """One item for each time that an optimistic step reads entries."""
    monkeypatch.setattr("outbox.store.optimistic.FRESH_SECONDS", 3600)
    reads: list[object] = []
    for owner, name in ((ReadAhead, "look"), (optimistic_write, "look_and_write")):
        reading = getattr(owner, name)

        def noted(*arguments: Any, reading: Any = reading, **options: Any) -> Any:
            reads.append(arguments[1])
            return reading(*arguments, **options)

        monkeypatch.setattr(owner, name, noted)
    return reads


@pytest.fixture
def delivering(
    database: Database, engine: Engine, beacon: Simulator, request: pytest.FixtureRequest
) -> Iterator[Outbox]:
    """The outbox of a worker in this process."""
    poll_seconds = 3600.0 if "undisturbed" in request.fixturenames else 1.0
    settings = Settings(beacon_url=beacon.url, license_key=beacon.license, poll_seconds=poll_seconds)
    with Outbox(database.url, settings=settings) as box:
        box.migrate()
        with BeaconTransport(settings) as transport, Worker(box, transport) as worker:
            wait_until(lambda: worker.dispatcher.looked_at[Lane.USAGE] > -math.inf)  # its first look came before
            for number in range(1, 4):  # from the third step on it takes no lock
                box.put(interval())
                beacon.wait_for("usage", number)
                wait_until(lambda number=number: box.status().lanes["usage"].sent == number)  # type: ignore[misc]
            yield box
        ledger.check(engine)


@pytest.fixture
def undisturbed(monkeypatch: pytest.MonkeyPatch) -> None:
    """No looks but those of notifications. The file's watcher, or a worker that looks again after a pause or by its
    poll, may see a commit a moment before its notification here, and then reads the entries."""
    monkeypatch.setattr(Watch, "start", lambda _: None)
    monkeypatch.setattr("outbox.flight.LOOK_DUE_SECONDS", 3600)
    for pause in ("FIRST", "NOTIFIED", "UNANNOUNCED"):
        monkeypatch.setattr(f"outbox.core.idle.{pause}_PAUSE_SECONDS", 3600)


@pytest.mark.usefixtures("undisturbed")
@pytest.mark.parametrize("rows", [1, FEW])
def test_the_worker_of_the_process_delivers_what_is_put_and_does_not_read_it(
    delivering: Outbox, beacon: Simulator, reads: list[object], rows: int
) -> None:
    for number in range(1, 6):
        ids = delivering.put(*intervals(rows))
        wait_until(lambda number=number: delivering.status().lanes["usage"].sent == 3 + number * rows)  # type: ignore[misc]
        assert beacon.received.ids().items() >= dict.fromkeys(map(str, ids), 1).items()
    assert not reads


def test_what_another_process_puts_in_between_is_delivered_too(
    delivering: Outbox, database: Database, beacon: Simulator
) -> None:
    with Outbox(database.url) as other:
        for number in range(1, 6):
            ids = [*other.put(interval()), *delivering.put(interval()), *other.put(interval())]
            beacon.wait_for("usage", 3 + 3 * number)
            assert beacon.received.ids().items() >= dict.fromkeys(map(str, ids), 1).items()


class Scene:
    """A notified dispatcher that has its lane to itself."""

    def __init__(self, box: Outbox) -> None:
        self.box, self.beacon = box, Beacon()
        self.dispatcher = Dispatcher(box, self.beacon)
        self.signal = self.dispatcher.signals[Lane.USAGE]
        self.box.wake.listen(self.tell)
        self.given: list[Committed | None] = []
        for _ in range(3):
            self.put(interval())
            assert self.deliver() == 1

    def tell(self, lanes: set[Lane], committed: Committed | None = None, /) -> None:
        self.given.append(committed)
        self.signal.notify(entries=True, committed=committed)

    def put(self, *messages: UsageInterval) -> list[UUID]:
        return self.box.put(*messages)

    def deliver(self) -> int:
        """Run one flight, which beacon answers at once; the number of entries sent."""
        for _ in range(FEW):
            self.beacon.answers.put(DELIVERED)
        return self.dispatcher.run_lane(Lane.USAGE, notified=True).sent

    def left(self) -> list[list[int]]:
        """The sequence numbers of each batch sent since the last call."""
        sent = []
        while not self.beacon.left.empty():
            batch = self.beacon.left.get(timeout=PATIENCE_SECONDS)
            numbers = [seq for lo, hi in batch.members for seq in range(lo, hi + 1)]
            there = log(self.box)
            assert list(batch.payloads) == [there[seq] for seq in numbers], "a batch has the entries of its members"
            sent.append(numbers)
        return sent


@pytest.fixture
def scene(database: Database, engine: Engine, box: Outbox, monkeypatch: pytest.MonkeyPatch) -> Iterator[Scene]:
    monkeypatch.setattr("outbox.flight.LOOK_DUE_SECONDS", 3600)  # however slow the machine is, no look is due
    with Outbox(database.url, settings=Settings(license_key="test-license-key")) as own:
        scene = Scene(own)
        scene.left()
        yield scene
        scene.dispatcher.close()
        ledger.check(engine)


def test_several_puts_are_one_batch(scene: Scene, reads: list[object]) -> None:
    for _ in range(3):
        scene.put(*intervals(2))
    assert scene.deliver() == 6
    assert scene.left() == [[4, 5, 6, 7, 8, 9]]
    assert not reads


def test_what_was_told_of_and_not_handed_over_is_not_left_behind(scene: Scene, engine: Engine) -> None:
    for _ in range(2):
        scene.put(interval())
        with Session(engine) as session, session.begin():
            scene.box.enqueue(session, interval())
        assert scene.deliver() == 2
    assert scene.left() == [[4, 5], [6, 7]]


def test_who_commits_before_it_unheard_of_is_not_left_out(scene: Scene, database: Database) -> None:
    with Outbox(database.url, settings=Settings(notify=False)) as silent:
        silent.put(interval())
    scene.put(interval())
    assert scene.deliver() == 2
    assert scene.left() == [[4, 5]]


def test_another_workers_claim_is_not_claimed_again(scene: Scene, database: Database) -> None:
    scene.put(*intervals(2))
    with Outbox(database.url, settings=Settings(license_key="test-license-key")) as other:
        assert other.store.step(Lane.USAGE, [], want=1, look_due=False).batches
        assert scene.deliver() == 0
    assert scene.left() == []
    with scene.box.store.database.write() as connection:  # that worker is gone, and its lease with it
        connection.exec_driver_sql("UPDATE outbox_batch SET due_at = 0 WHERE state = 'leased'")
    scene.dispatcher.looked_at[Lane.USAGE] = float("-inf")
    assert scene.deliver() == 2


@pytest.mark.parametrize("rows", [1, 2, 5])
def test_more_than_a_batch_takes_is_several(scene: Scene, rows: int) -> None:
    scene.box.store.policy = replace(scene.box.store.policy, batch_max_rows=2)
    scene.put(*intervals(rows))
    assert scene.deliver() == rows
    numbers = list(range(4, 4 + rows))
    assert scene.left() == [numbers[at : at + 2] for at in range(0, rows, 2)]


def test_what_was_handed_over_long_ago_is_read(
    scene: Scene, reads: list[object], monkeypatch: pytest.MonkeyPatch
) -> None:
    """An operator may have deleted or restored rows by hand meanwhile."""
    scene.put(interval())
    [old] = scene.signal._committed
    assert old is not None
    scene.signal._committed[0] = old._replace(at=time.monotonic() - 3601, payloads=["not what the log has"])
    assert scene.deliver() == 1
    assert scene.left() == [[4]]
    assert reads


def test_a_payload_of_several_lines_is_cut_as_the_log_has_it(scene: Scene) -> None:
    scene.put(interval())
    [known] = scene.signal._committed
    assert known is not None
    scene.signal._committed[0] = known._replace(payloads=["a\nb"])
    assert scene.deliver() == 1
    assert scene.left() == [[4]]


def test_puts_beside_all_others_are_delivered_once_each_with_what_they_say(
    delivering: Outbox, database: Database, engine: Engine, beacon: Simulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Several threads put, another outbox puts, and a host's transactions enqueue, some of which are rolled back."""
    monkeypatch.setattr("outbox.store.optimistic.FRESH_SECONDS", 3600)  # however slow the machine is
    given: list[bool] = []
    known = OptimisticSteps._handed_over
    monkeypatch.setattr(OptimisticSteps, "_handed_over", lambda *a: given.append((row := known(*a)) is not None) or row)
    committed: list[UUID] = []
    end = Event()

    def pausing(seconds: float) -> None:
        """On a busy machine the worker has a backlog, and of that nothing is handed over: let it catch up at last."""
        end.wait(seconds)
        while len(committed) > 300 and len(beacon.received.ids()) < 3 + len(committed) and not end.wait(0.05):
            pass

    def putting(box: Outbox, rows: int, seconds: float) -> None:
        while not end.is_set():
            committed.extend(box.put(*intervals(rows)))
            pausing(seconds)

    def enqueuing() -> None:
        host = create_engine(database.url)
        for number in range(1, 1_000_000):
            if end.is_set():
                break
            with Session(host) as session:
                ids = delivering.enqueue(session, interval())
                if number % 3:
                    session.rollback()
                else:
                    session.commit()
                    committed.extend(ids)
            pausing(0.05)
        host.dispose()

    with Outbox(database.url) as other, ThreadPoolExecutor() as threads:
        work = [threads.submit(putting, delivering, rows, 0.005) for rows in (1, FEW)]
        work += [threads.submit(putting, other, 1, 0.05), threads.submit(enqueuing)]
        try:
            wait_until(
                lambda: sum(given) >= 5 and given.count(False) >= 5 and len(committed) > 300,
                timeout=150,
                message=lambda: (
                    f"{sum(given)} of {len(given)} claims were of what is known; {len(committed)} committed"
                ),
            )
        finally:
            end.set()
        for each in work:
            each.result()
    beacon.wait_for("usage", 3 + len(committed), timeout=60)
    ids = beacon.received.ids()
    assert {str(id): 1 for id in committed}.items() <= ids.items()
    assert len(ids) == 3 + len(committed)
    wait_until(lambda: delivering.status().lanes["usage"].sent == len(ids))


# --- notified twice ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("database", ["sqlite"], indirect=True)
def test_who_watches_the_file_is_not_told_of_what_this_process_told_itself(
    box: Outbox, database: Database, told: list[Committed | None]
) -> None:
    store, stop = box.store, threading.Event()
    tables = {spec.table: str(lane) for lane, spec in LANES.items()}
    with store.database.dialect.watch_commits(store.database.engine, tables, store.notified_here) as look:
        stop.set()  # it does not wait
        box.put(interval())
        assert look(stop) == []
        with Outbox(database.url) as other:
            other.put(interval())
        assert look(stop) == ["outbox_usage"]
        box.put(*intervals(FEW))
        assert look(stop) == []
    assert len(told) == 2
