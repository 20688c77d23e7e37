"""Producers and workers killed at random moments: what was committed arrives.

``OUTBOX_TEST_KILLS`` sets how many times (default 8), ``OUTBOX_TEST_SEED`` when, ``OUTBOX_TEST_WORKERS`` how many
workers there are (default 1).
"""

from __future__ import annotations

import os
import random
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from sqlalchemy import Engine, select

from outbox import Outbox, Settings
from outbox.simulator import Simulator
from outbox.store.schema import BATCH
from tests.support import killable
from tests.support.databases import Database
from tests.support.delivery import left, stored, under_one_key, working
from tests.support.restarting import Restarting
from tests.support.waiting import wait_until

KILLS = int(os.environ.get("OUTBOX_TEST_KILLS", "8"))
SEED = int(os.environ.get("OUTBOX_TEST_SEED", "1"))
WORKERS = int(os.environ.get("OUTBOX_TEST_WORKERS", "1"))
SENDERS = 4


class Child(Restarting):
    """A ``killable`` process."""

    def __init__(self, what: str, folder: Path, settings: dict[str, Any]) -> None:
        self.what = what
        super().__init__(what, folder, lambda out, errors: killable.start(what, out, errors, **settings))

    def speaks(self) -> None:
        """Wait for the first line of this life."""
        wait_until(self._spoke, timeout=60, message=lambda: f"{self.what} is silent: {self.errors.read_text()}")

    def _spoke(self) -> bool:
        self.must_live()
        return b"\n" in self.outs[-1].read_bytes()


@contextmanager
def children(folder: Path, settings: dict[str, Any]) -> Iterator[list[Child]]:
    started: list[Child] = []
    try:
        started.extend(Child(what, folder, settings) for what in ("produce", *["work"] * WORKERS))
        yield started
    finally:
        for child in started:
            child.end()


@pytest.mark.parametrize("database", ["sqlite", "postgresql", "mariadb"], indirect=True)
@pytest.mark.timeout(180 + 10 * KILLS)
def test_what_was_committed_arrives_whoever_is_killed(
    box: Outbox, database: Database, engine: Engine, beacon: Simulator, tmp_path: Path
) -> None:
    settings = {
        "database_url": database.url,
        "beacon_url": beacon.url,
        "license_key": beacon.license,
        "lease_seconds": 6,
        "request_timeout": 3,
        "poll_seconds": 0.05,
        "max_senders": SENDERS,
    }
    chance = random.Random(SEED)
    beacon.faults.latency_ms = 1000  # so that a kill of a worker finds a batch on the wire, also a late one
    worker_kills = 0
    with children(tmp_path, settings) as started:
        for _ in range(KILLS):
            victim = chance.choice(started)
            victim.speaks()
            threading.Event().wait(chance.uniform(0, 0.4))
            if victim.what == "work":
                worker_kills += 1
                if worker_kills % 2:  # every other one at any moment
                    wait_until(lambda: beacon.received.counts()["usage"]["in_flight"], timeout=60)
            victim.kill()
            victim.start()
        for child in started:
            child.speaks()
    beacon.faults.latency_ms = 0
    committed = {line for child in started if child.what == "produce" for line in child.lines()}
    with Outbox(database.url, settings=Settings(**settings)) as last, working(last):
        wait_until(lambda: left(last) == 0, timeout=60, message=lambda: str(last.status()))
    assert committed
    received = beacon.received.ids()
    assert committed <= set(received), f"seed {SEED}: lost {committed - set(received)}"
    assert stored(box) == received.keys()
    again = beacon.received.duplicates()
    assert under_one_key(beacon), f"seed {SEED}: an id came under two keys"
    # Only a batch whose lease a kill cut short may come again: at most one a sender and kill, those at the end too.
    cut_short = _counted_as_crashed(engine)
    assert {UUID(keys[0]) for keys in again.values()} <= cut_short
    assert len(cut_short) <= SENDERS * (worker_kills + WORKERS)
    assert cut_short, f"seed {SEED}: no kill found a batch on the wire"
    print(
        f"\n{database.label}, seed {SEED}: {KILLS} kills ({worker_kills} of the worker, {len(cut_short)} batches on the"
        f" wire), {len(committed)} entries printed, {len(received)} received, 0 lost, {len(again)} came again"
    )


def _counted_as_crashed(engine: Engine) -> set[UUID]:
    """Batches with a counted attempt. Beacon refuses nothing here: their lease ended without an answer."""
    with engine.connect() as connection:
        return set(connection.execute(select(BATCH.c.id).where(BATCH.c.attempts > 0)).scalars())
