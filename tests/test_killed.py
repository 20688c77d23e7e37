"""Producers and workers killed at random moments: what was committed arrives.

``OUTBOX_TEST_KILLS`` sets how many times (default 8), ``OUTBOX_TEST_SEED`` when, ``OUTBOX_TEST_WORKERS`` how many
workers there are (default 1).
"""

from __future__ import annotations

import os
import random
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from sqlalchemy import Engine, select, text

from outbox import BeaconTransport, Outbox, Settings, Worker
from outbox.simulator import Simulator
from outbox.store.schema import BATCH
from tests.support import killable
from tests.support.databases import Database
from tests.support.waiting import wait_until

KILLS = int(os.environ.get("OUTBOX_TEST_KILLS", "8"))
SEED = int(os.environ.get("OUTBOX_TEST_SEED", "1"))
WORKERS = int(os.environ.get("OUTBOX_TEST_WORKERS", "1"))
SENDERS = 4


class Child:
    """A process that is started again whenever it was killed."""

    def __init__(self, what: str, folder: Path, settings: dict[str, Any]) -> None:
        self.what, self._settings, self._folder = what, settings, folder
        self._process: subprocess.Popen[bytes] | None = None
        self.outs: list[Path] = []
        self.start()

    def start(self) -> None:
        self.outs.append(self._folder / f"{self.what}{id(self)}-{len(self.outs)}")
        with self.outs[-1].open("wb") as out, self._errors.open("wb") as errors:
            self._process = killable.start(self.what, out, errors, **self._settings)

    @property
    def _errors(self) -> Path:
        return self.outs[-1].with_suffix(".err")

    def speaks(self) -> None:
        """Wait for the first line of this life."""
        wait_until(self._spoke, timeout=60, message=lambda: f"{self.what} is silent: {self._errors.read_text()}")

    def _spoke(self) -> bool:
        self._lives()
        return b"\n" in self.outs[-1].read_bytes()

    def _lives(self) -> None:
        assert self._process is not None
        assert self._process.poll() is None, f"{self.what} ended by itself: {self._errors.read_text()}"

    def kill(self) -> None:
        self._lives()
        self.end()

    def end(self) -> None:
        assert self._process is not None
        self._process.kill()
        self._process.wait(10)

    def lines(self) -> set[str]:
        """Whole lines; the last one of a killed life may be cut."""
        return {line for out in self.outs for line in out.read_text().split("\n")[:-1]}


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
        "lease_seconds": 2,
        "request_timeout": 1,
        "poll_seconds": 0.05,
        "max_senders": SENDERS,
    }
    chance = random.Random(SEED)
    beacon.faults.latency_ms = 100  # so that a kill of a worker finds a batch on the wire
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
    committed = {line for child in started if child.what == "produce" for line in child.lines()}
    with (
        Outbox(database.url, settings=Settings(**settings)) as last,
        BeaconTransport(last.settings) as transport,
        Worker(last, transport),
    ):
        wait_until(lambda: _left(last) == 0, timeout=60, message=lambda: str(last.status()))
    assert committed
    received = beacon.received.ids()
    assert committed <= set(received), f"seed {SEED}: lost {committed - set(received)}"
    assert _stored(engine) == len(received)
    again = beacon.received.duplicates()
    assert all(len(set(keys)) == 1 for keys in again.values()), f"seed {SEED}: an id came under two keys"
    # Only a batch whose lease a kill cut short may come again: at most one a sender and kill, those at the end too.
    cut_short = _counted_as_crashed(engine)
    assert {UUID(keys[0]) for keys in again.values()} <= cut_short
    assert len(cut_short) <= SENDERS * (worker_kills + WORKERS)
    assert cut_short, f"seed {SEED}: no kill found a batch on the wire"
    print(
        f"\n{database.label}, seed {SEED}: {KILLS} kills ({worker_kills} of the worker, {len(cut_short)} batches on the"
        f" wire), {len(committed)} entries printed, {len(received)} received, 0 lost, {len(again)} came again"
    )


def _left(box: Outbox) -> int:
    return box.status().lanes["usage"].unfinished


def _counted_as_crashed(engine: Engine) -> set[UUID]:
    """Batches with a counted attempt. Beacon refuses nothing here: their lease ended without an answer."""
    with engine.connect() as connection:
        return set(connection.execute(select(BATCH.c.id).where(BATCH.c.attempts > 0)).scalars())


def _stored(engine: Engine) -> int:
    with engine.connect() as connection:
        return int(connection.execute(text("SELECT count(*) FROM outbox_usage")).scalar_one())
