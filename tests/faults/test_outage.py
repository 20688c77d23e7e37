"""A day without beacon, by a clock that is moved by hand; the requests are real.

``OUTBOX_TEST_OUTAGE_ROWS`` sets how many entries wait (default 20,000; 1,000,000 by hand). Prints a table.
"""

from __future__ import annotations

import gc
import os
import time
from pathlib import Path

import pytest
from sqlalchemy import Engine, func, select

from outbox import BeaconTransport, Dispatcher, Outbox, Receipt, Settings
from outbox.core.batch import Batch
from outbox.core.lane import Lane
from outbox.simulator import Simulator
from outbox.store.schema import BATCH
from outbox.testing.clock import FrozenClock
from tests.support import ledger
from tests.support.databases import Database
from tests.support.intervals import intervals

ROWS = int(os.environ.get("OUTBOX_TEST_OUTAGE_ROWS", "20000"))
DAY_SECONDS = 86_400
A_FEW_HUNDRED = 450
"""A pause is between half of OUTBOX_BACKOFF_MAX and all of it: 384 a day at its default of five minutes, and 430
with those of the first hour, which come closer together."""
GROWTH_BYTES = 20 * 1024**2


class Counting:
    """A transport that counts what is given to it."""

    def __init__(self, transport: BeaconTransport) -> None:
        self._transport = transport
        self.sends = 0

    def send(self, batch: Batch) -> Receipt:
        self.sends += 1
        return self._transport.send(batch)


@pytest.mark.parametrize("database", ["sqlite"], indirect=True)
@pytest.mark.timeout(60 + ROWS // 1000)
def test_a_day_without_beacon_costs_a_few_hundred_requests_and_no_attempt_of_what_was_not_sent(
    database: Database, engine: Engine, beacon: Simulator, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    clock = FrozenClock()
    settings = Settings(beacon_url=beacon.url, license_key=beacon.license)
    with Outbox(database.url, settings=settings, clock=clock.now) as box, BeaconTransport(settings) as transport:
        box.migrate()
        wire = Counting(transport)
        dispatcher = Dispatcher(box, wire)
        box.put(*intervals(1))  # gets the token, so that it is rows that cannot be sent
        assert dispatcher.run_once().sent == 1
        wire.sends = 0
        for _ in range(0, ROWS, 10_000):
            box.put(*intervals(10_000))
        beacon.faults.down = True
        rss, size = _rss(), _size(tmp_path)
        _pass_time(box, dispatcher, clock, DAY_SECONDS)
        down = {"requests": wire.sends, "RSS": _rss() - rss, "file": _size(tmp_path) - size}
        assert beacon.faults.fired["down"] >= 1
        assert 100 < down["requests"] < A_FEW_HUNDRED
        assert down["RSS"] < GROWTH_BYTES
        assert down["file"] < GROWTH_BYTES
        assert _counted_attempts(engine) == down["requests"]
        status = box.status().lanes["usage"]
        assert status.state == "paused"
        assert "could not be reached" in str(status.reason)
        assert status.pending >= ROWS - 1000 * box.store.policy.live_batches

        beacon.faults.down = False
        while not dispatcher.run_lane(Lane.USAGE, at_most=1).sent:
            clock.advance(seconds=box.store.outlook(Lane.USAGE).next_seconds or 0.001)
        assert wire.sends - down["requests"] <= 2
        started = time.monotonic()
        while dispatcher.run_lane(Lane.USAGE).more:
            pass
        seconds = time.monotonic() - started
        dispatcher.close()
        assert beacon.received.counts()["usage"]["unique"] == ROWS + 1
        assert box.status().lanes["usage"].sent == ROWS + 1
    ledger.check(engine)
    with capsys.disabled():
        print(
            f"\n{ROWS:,} entries waited a day: {down['requests']} requests, RSS {down['RSS'] / 1e6:+.1f} MB, file"
            f" {down['file'] / 1e6:+.1f} MB; drained in {seconds:.1f} s ({ROWS / seconds:,.0f} rows/s)"
        )


def _pass_time(box: Outbox, dispatcher: Dispatcher, clock: FrozenClock, seconds: float) -> None:
    """What a worker does in this time: it sends when something is due, and waits for the next timer."""
    end = clock.now() + seconds * 1_000_000
    while clock.now() < end:
        dispatcher.run_lane(Lane.USAGE)
        clock.advance(seconds=max(box.store.outlook(Lane.USAGE).next_seconds or 0, 0.001))


def _counted_attempts(engine: Engine) -> int:
    with engine.connect() as connection:
        return int(connection.execute(select(func.sum(BATCH.c.attempts))).scalar_one())


def _rss() -> int:
    gc.collect()
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def _size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.iterdir() if path.is_file())
