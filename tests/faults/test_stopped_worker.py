"""A worker process is stopped for longer than its lease, another one takes over, then the first goes on.

What it knows by then is late: it changes nothing. ``OUTBOX_TEST_STOPS`` sets how many times on SQLite (default 3);
a third of that on the others.
"""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any
from uuid import uuid4

import pytest
from sqlalchemy import Engine, select

from outbox import BeaconTransport, Outbox, Settings, Worker
from outbox.core.entry import LaneStatus
from outbox.simulator import Simulator
from outbox.store.schema import BATCH
from tests.faults.steps import Ended, Plan, Runs
from tests.support.databases import Database
from tests.support.waiting import wait_until

STOPS = int(os.environ.get("OUTBOX_TEST_STOPS", "3"))
LEASE_SECONDS = 8.0
"""Of the worker that stops. The one that takes over has the usual one: what it sends, it sends once."""


@dataclass(frozen=True)
class Stop:
    """Where the worker stops, and what beacon had answered it by then."""

    after: str | None
    answer: int = 200


STOP_ON_THE_WIRE = Stop("usage: the request has left")
STOP_DELIVERED = Stop(None)
STOP_REFUSED = Stop(None, 422)


@dataclass
class Stage:
    """One entry a time, the worker that stops, and the one that takes over."""

    box: Outbox
    engine: Engine
    beacon: Simulator
    transport: BeaconTransport
    runs: Runs

    def play(self, stop: Stop) -> None:
        id = str(uuid4())
        self.beacon.faults.process_anyway = False
        if stop.answer != 200:
            self.beacon.fail(stop.answer, lane="usage")
        plan = Plan([[id]], [], stop_after=stop.after, stop_before_settling=stop.after is None)
        run = self.runs.start(plan)
        run.stopped()
        since = time.monotonic()
        assert self._view(id) == ("in_flight", 0)
        with Worker(self.box, self.transport):
            wait_until(lambda: self._view(id)[0] == "sent", timeout=30, message=lambda: str(self._lane()))
            wait_until(lambda: time.monotonic() - since > LEASE_SECONDS + 1)
        before = self._everything(id)
        run.go_on()
        self._was_late(run.ended(), id)
        assert self._everything(id) == before
        assert self._view(id) == ("sent", 1)

    def _was_late(self, ended: Ended, id: str) -> None:
        view = self.box.find(id)
        assert view is not None
        assert [line for line in ended.log if f"the lease of batch {view.batch_id} was lost" in line], ended.log

    def _view(self, id: str) -> tuple[str, int]:
        view = self.box.find(id)
        assert view is not None
        return str(view.status), view.num_failed_send_attempts

    def _lane(self) -> LaneStatus:
        return self.box.status().lanes["usage"]

    def _everything(self, id: str) -> tuple[Any, ...]:
        """All that a late receipt could change: the batch and the totals of the lane."""
        view = self.box.find(id)
        assert view is not None
        with self.engine.connect() as connection:
            batch = connection.execute(select(BATCH).where(BATCH.c.id == view.batch_id)).one()
        return (*batch, self._lane())


@pytest.fixture
def stage(box: Outbox, engine: Engine, database: Database, beacon: Simulator) -> Iterator[Stage]:
    settings: dict[str, Any] = {
        "database_url": database.url,
        "beacon_url": beacon.url,
        "license_key": beacon.license,
        "poll_seconds": 0.05,
    }
    with (
        Runs(**settings, lease_seconds=LEASE_SECONDS, request_timeout=LEASE_SECONDS / 2) as runs,
        Outbox(settings=Settings(**settings)) as second,
        BeaconTransport(second.settings) as transport,
    ):
        yield Stage(second, engine, beacon, transport, runs)


@pytest.mark.timeout(60 + 20 * STOPS)
def test_a_worker_that_was_stopped_beyond_its_lease_changes_nothing(
    stage: Stage, beacon: Simulator, database: Database
) -> None:
    count = STOPS if database.name == "sqlite" else max(1, STOPS // 3)
    stops = [(STOP_REFUSED, STOP_DELIVERED, STOP_ON_THE_WIRE)[number % 3] for number in range(count)]
    for stop in stops:
        stage.play(stop)
    lane = stage.box.status().lanes["usage"]
    assert (lane.sent, lane.dead, lane.shed, lane.unfinished) == (count, 0, 0, 0)
    received = beacon.received.ids()
    assert len(received) == count
    again = beacon.received.duplicates()
    assert all(len(keys) == 2 and len(set(keys)) == 1 for keys in again.values())
    kinds = Counter(stop.answer for stop in stops)
    assert len(again) == kinds[200]
    assert beacon.received.counts()["usage"]["statuses"].get("422", 0) == kinds[422]
    print(f"\n{database.label}: {count} stops, {len(again)} entries came again under their key, none counted twice")
