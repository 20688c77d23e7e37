"""A PostgreSQL server that crashes, fills its disk, runs out of connections or answers no COMMIT."""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import psycopg
import pytest
from sqlalchemy import create_engine, make_url
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import Session

from outbox import BeaconTransport, Dispatcher, Outbox, Settings
from outbox.core.lane import Lane
from outbox.errors import DatabaseUnavailable, OutcomeUnknown
from outbox.producer import EnqueueResult
from outbox.simulator import Simulator
from outbox.testing import drain
from tests.support import ledger
from tests.support.delivery import left, stored, under_one_key, working
from tests.support.intervals import interval, intervals
from tests.support.load import Producers
from tests.support.postgres import PostgresServer
from tests.support.small_disk import small_disk
from tests.support.strike import Operator
from tests.support.waiting import wait_until


@pytest.fixture
def administrator(server: PostgresServer) -> Iterator[Operator]:
    """Of the whole server; lost when it crashes."""
    with closing(Operator(server.url("psycopg"))) as operator:
        yield operator


@pytest.fixture
def url(server: PostgresServer, administrator: Operator) -> str:
    """Of an empty database."""
    name = f"t_{uuid.uuid4().hex[:20]}"
    administrator.do(f"CREATE DATABASE {name}")
    return server.url("psycopg", name)


@pytest.fixture
def box(url: str, beacon: Simulator) -> Iterator[Outbox]:
    with opened(url, beacon) as box:
        yield box


@contextmanager
def opened(url: str, beacon: Simulator, **settings: Any) -> Iterator[Outbox]:
    told = Settings(beacon_url=beacon.url, license_key=beacon.license, poll_seconds=0.05, **settings)
    with Outbox(url, settings=told) as box:
        box.migrate()
        yield box
    engine = create_engine(url)
    ledger.check(engine)
    engine.dispose()


def short_leases(box: Outbox) -> None:
    """What nobody settles is sent again after a second."""
    box.store.policy = replace(box.store.policy, lease_seconds=1, request_timeout=0.5)


# --- crash ---------------------------------------------------------------------------------------------------


def test_what_was_acknowledged_survives_a_crash_of_the_server_and_arrives(
    server: PostgresServer, url: str, box: Outbox, beacon: Simulator
) -> None:
    short_leases(box)
    beacon.faults.latency_ms = 20  # so that the crash finds batches on the wire
    async_url = make_url(url).set(drivername="postgresql+asyncpg").render_as_string(hide_password=False)
    with working(box), Outbox(url, settings=Settings()) as front, Producers(front, url, async_url) as producers:
        producers.get_on()
        server.crash()
        producers.notice()
        server.start()
        producers.get_on()
        producers.stop()
        wait_until(lambda: left(box) == 0, 60, lambda: str(box.status()))
    assert producers.acknowledged == producers.tried == beacon.received.ids().keys() == stored(box)
    assert under_one_key(beacon)


def test_commits_in_other_processes_are_told_again_after_a_crash(server: PostgresServer, url: str, box: Outbox) -> None:
    told: list[set[Lane]] = []
    stop = box.store.watch(told.append)
    with ExitStack() as stack:
        stack.callback(stop)
        producer = stack.enter_context(Outbox(url, settings=Settings()))
        wait_until(lambda: set(Lane) in told)
        producer.put(interval())
        wait_until(lambda: {Lane.USAGE} in told)
        told.clear()
        server.crash()
        server.start()
        wait_until(lambda: set(Lane) in told, message="nobody listens any more")
        wait_until(lambda: _put(producer) and {Lane.USAGE} in told, message="nobody announces any more")


def test_an_announcement_waits_for_no_standby(url: str, box: Outbox, administrator: Operator) -> None:
    told: list[set[Lane]] = []
    stop = box.store.watch(told.append)
    administrator.do(f"ALTER DATABASE {make_url(url).database} SET synchronous_commit = on")
    with ExitStack() as stack:
        stack.callback(stop)
        producer = stack.enter_context(Outbox(url, settings=Settings()))
        announcing = producer.store.database.dialect.announcing(producer.engine)
        announce = stack.enter_context(announcing)
        wait_until(lambda: set(Lane) in told, message="nobody listens")
        announce(["outbox_usage"])  # a COMMIT that waits would do so for ever
        wait_until(lambda: {Lane.USAGE} in told)


def _put(box: Outbox) -> bool:
    try:
        return bool(box.put(interval()))
    except DatabaseUnavailable:  # a connection that was in use a moment before the crash
        return False


# --- a COMMIT whose answer never comes -----------------------------------------------------------------------


@pytest.fixture
def unanswered(url: str) -> str:
    """Commits of these sessions hold, and wait for ever for the answer of a standby that is not there."""
    return f"{url}?options=-csynchronous_commit%3Don"


@contextmanager
def cut_off_while_it_waits(url: str) -> Iterator[ThreadPoolExecutor]:
    """End the session that waits for its standby's answer, once the block has started something that does."""
    with closing(Operator(url)) as operator, ThreadPoolExecutor(1) as thread:
        yield thread
        (pid,) = wait_until(lambda: operator.sessions("wait_event = 'SyncRep'"), message="no COMMIT waits")
        operator.terminate(pid)


@pytest.mark.parametrize("count", [1, 3])
def test_a_put_whose_commit_held_all_the_same_says_that_nobody_knows(
    url: str, unanswered: str, box: Outbox, beacon: Simulator, count: int
) -> None:
    messages = intervals(count)
    with Outbox(unanswered, settings=Settings(notify=False)) as producer, cut_off_while_it_waits(url) as thread:
        put = thread.submit(producer.put, *messages)
    with pytest.raises(OutcomeUnknown, match="Enqueue the same messages again"):
        put.result()
    again = box.put(*messages)
    assert again.duplicates == count
    drain(box, beacon)
    assert beacon.received.ids() == {str(message.id): 1 for message in messages}


def test_a_hosts_commit_that_held_all_the_same_may_be_tried_again(
    url: str, unanswered: str, box: Outbox, beacon: Simulator
) -> None:
    messages = intervals(3)

    def commit(url: str) -> EnqueueResult:
        engine = create_engine(url)
        try:
            with Session(engine) as session, session.begin():
                return box.enqueue(session, *messages)
        finally:
            engine.dispose()

    with cut_off_while_it_waits(url) as thread:
        first = thread.submit(commit, unanswered)
    with pytest.raises(DBAPIError):
        first.result()
    assert commit(url).duplicates == 3
    drain(box, beacon)
    assert beacon.received.ids() == {str(message.id): 1 for message in messages}


def test_a_claim_that_held_all_the_same_is_sent_once_its_lease_is_over(
    url: str, unanswered: str, box: Outbox, beacon: Simulator
) -> None:
    ids = box.put(*intervals(3))
    with (
        Outbox(unanswered, settings=box.settings) as other,
        BeaconTransport(box.settings) as transport,
        closing(Dispatcher(other, transport)) as dispatcher,
    ):
        short_leases(other)
        with cut_off_while_it_waits(url) as thread:
            tick = thread.submit(dispatcher.run_once)
    with pytest.raises(OutcomeUnknown):
        tick.result()
    assert (box.status().lanes["usage"].in_flight, beacon.received.ids()) == (3, {})
    drain(box, beacon)
    assert beacon.received.ids() == {str(id): 1 for id in ids}


# --- no room, no connection ----------------------------------------------------------------------------------


def test_a_full_disk_is_named_and_work_goes_on_when_there_is_room(
    server: PostgresServer, administrator: Operator, beacon: Simulator, caplog: pytest.LogCaptureFixture
) -> None:
    name = f"t_{uuid.uuid4().hex[:20]}"
    with small_disk(server.home / name, mebibytes=32) as disk:
        administrator.do(f"CREATE TABLESPACE {name} LOCATION '{_owned_by_server(server, disk.folder / 'pg')}'")
        administrator.do(f"CREATE DATABASE {name} TABLESPACE {name}")
        with opened(server.url("psycopg", name), beacon, batch_max_rows=10) as box:
            short_leases(box)
            ids = box.put(*intervals(300))
            drain(box, beacon)
            ids += box.put(*intervals(1000))
            disk.fill()
            with pytest.raises(DatabaseUnavailable, match=r"No space left on device.*Make room on the disk"):
                box.put(*intervals(2000))
            with working(box):
                wait_until(lambda: "Make room on the disk" in caplog.text, message=lambda: caplog.text)
                disk.make_room()
                ids += box.put(interval())
                wait_until(lambda: left(box) == 0, 60, lambda: str(box.status()))
        administrator.do(f"DROP DATABASE {name}", f"DROP TABLESPACE {name}")
    assert beacon.received.ids().keys() == {str(id) for id in ids}
    assert under_one_key(beacon)


def _owned_by_server(server: PostgresServer, folder: Path) -> Path:
    folder.mkdir()
    owner = server.home.stat()
    if owner.st_uid != folder.stat().st_uid:
        os.chown(folder, owner.st_uid, owner.st_gid)
    return folder


def test_a_server_without_a_free_connection_is_named_and_work_goes_on_when_there_is_one(
    url: str, box: Outbox, beacon: Simulator, caplog: pytest.LogCaptureFixture
) -> None:
    with closing(Operator(url)) as operator, working(box):
        ids = box.put(interval())
        beacon.wait_for("usage", 1)
        with ExitStack() as hogs:

            def take_all() -> bool:
                operator.terminate_all("application_name <> 'hog'")
                try:
                    while True:
                        hogs.enter_context(psycopg.connect(_plain(url), application_name="hog"))
                except psycopg.OperationalError:
                    return "too many clients already" in caplog.text

            wait_until(take_all, message=lambda: caplog.text)
            with Outbox(url, settings=Settings()) as another, pytest.raises(DatabaseUnavailable, match="too many cl"):
                another.put(interval())
        ids += box.put(interval())
        beacon.wait_for("usage", 2)
    assert beacon.received.ids() == {str(id): 1 for id in ids}


def _plain(url: str) -> str:
    return make_url(url).set(drivername="postgresql").render_as_string(hide_password=False)
