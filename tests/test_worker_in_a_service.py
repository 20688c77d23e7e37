"""A worker in a service that may exit without closing it, or may start before its database."""

from __future__ import annotations

import logging
import queue
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from sqlalchemy import Engine, make_url

from outbox import BeaconTransport, Outbox, Settings, Worker
from outbox.core.health import LaneState
from outbox.errors import ConfigError, SchemaOutOfDate
from outbox.simulator import Simulator
from tests.support import ledger
from tests.support.databases import Database
from tests.support.fault_proxy import Fault, FaultProxy
from tests.support.intervals import interval
from tests.support.waiting import wait_until

ROOT = Path(__file__).parents[1]
FORGETFUL = """
import sys
from outbox import BeaconTransport, Outbox, Settings, Worker

url, beacon, license = sys.argv[1:]
settings = Settings(beacon_url=beacon, license_key=license)
box = Outbox(url, settings=settings)
Worker(box, BeaconTransport(settings)).start()
print("started", flush=True)
sys.stdin.read()
"""
"""Like a server's process that exits after its maximum number of requests."""


@pytest.fixture
def forgetful(box: Outbox, database: Database, beacon: Simulator) -> Iterator[subprocess.Popen[str]]:
    """A process that never closes its worker. It ends at the end of its input."""
    arguments = [sys.executable, "-c", FORGETFUL, database.url, beacon.url, beacon.license]
    pipe = subprocess.PIPE
    with subprocess.Popen(arguments, cwd=ROOT, stdin=pipe, stdout=pipe, stderr=pipe, text=True) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "started\n"
            yield process
        finally:
            process.kill()


def test_a_worker_that_nobody_closed_does_not_keep_its_process(forgetful: subprocess.Popen[str]) -> None:
    _, told = forgetful.communicate(timeout=30)
    assert forgetful.returncode == 0
    [line] = told.splitlines()
    assert "Call close()" in line


def test_what_it_had_on_the_wire_when_the_process_ended_is_settled(
    forgetful: subprocess.Popen[str], box: Outbox, beacon: Simulator
) -> None:
    beacon.faults.latency_ms = 500
    box.put(interval())
    wait_until(lambda: beacon.received.counts()["usage"]["peak_in_flight"])
    forgetful.communicate(timeout=30)
    lane = box.status().lanes["usage"]
    assert (lane.sent, lane.in_flight, lane.pending) == (1, 0, 0)


@pytest.fixture
def line(database: Database) -> Iterator[FaultProxy]:
    """A proxy between the worker and its database."""
    port = make_url(database.url).port
    assert port is not None
    with FaultProxy(port) as line:
        yield line


@pytest.fixture
def far(database: Database, line: FaultProxy, beacon: Simulator) -> Iterator[Outbox]:
    """An outbox at the other end of ``line``, without tables as yet."""
    url = make_url(database.url).set(port=line.port).render_as_string(hide_password=False)
    settings = Settings(beacon_url=beacon.url, license_key=beacon.license, poll_seconds=0.1, telemetry_logs=False)
    with Outbox(url, settings=settings) as box:
        yield box


@pytest.mark.parametrize("database", ["postgresql"], indirect=True)  # the proxy lets the client speak first
def test_a_worker_that_is_started_while_the_database_is_away_delivers_when_it_is_back(
    far: Outbox, line: FaultProxy, box: Outbox, beacon: Simulator, caplog: pytest.LogCaptureFixture
) -> None:
    box.put(interval())
    with ExitStack() as stack:
        transport = stack.enter_context(BeaconTransport(far.settings))
        with line.refuse():
            stack.enter_context(Worker(far, transport))
        assert line.fired[Fault.REFUSE]
        assert [told.levelno for told in caplog.records if "The worker begins when" in told.message] == [logging.ERROR]
        beacon.wait_for("usage", 1)
        wait_until(lambda: box.status().lanes["logs"].state == LaneState.OFF)


@pytest.mark.parametrize("database", ["postgresql"], indirect=True)  # the proxy lets the client speak first
def test_what_it_finds_when_the_database_is_back_it_does_not_touch_before_its_tables_are_of_this_version(
    far: Outbox, line: FaultProxy, engine: Engine, beacon: Simulator, caplog: pytest.LogCaptureFixture
) -> None:
    with ExitStack() as stack:
        transport = stack.enter_context(BeaconTransport(far.settings))
        with line.refuse():
            stack.enter_context(Worker(far, transport))
        wait_until(lambda: "outbox migrate" in caplog.text)
        assert "Traceback" not in caplog.text
        far.migrate()
        far.put(interval())
        beacon.wait_for("usage", 1)
    ledger.check(engine)


def test_a_worker_without_tables_is_not_started(database: Database, beacon: Simulator) -> None:
    settings = Settings(beacon_url=beacon.url, license_key=beacon.license)
    with Outbox(database.url, settings=settings) as box, BeaconTransport(settings) as transport:
        if database.name == "sqlite":
            Path(make_url(database.url).database or "").touch()
        with pytest.raises(SchemaOutOfDate, match="outbox migrate"):
            Worker(box, transport).start()


def test_a_worker_says_that_gevent_has_patched_too_late_instead_of_stopping_the_service(
    box: Outbox, beacon: Simulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    class OfGreenlets:
        """What monkey.patch_all() puts in the place of SimpleQueue."""

    monkeypatch.setattr(queue, "SimpleQueue", OfGreenlets)
    with BeaconTransport(box.settings) as transport, pytest.raises(ConfigError, match="without --preload"):
        Worker(box, transport)
