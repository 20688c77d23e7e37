"""A run of the outbox is killed at its first step, at its second, and so on until one ends by itself.

After each the same holds: what was committed arrives, what was not never does, and only what was on the wire comes
again. By default some steps have their turn; ``OUTBOX_TEST_STRIDE=1`` takes each, ``OUTBOX_TEST_SEED`` others.
"""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import pytest
from sqlalchemy import Engine, NullPool, create_engine, select

from outbox import BeaconTransport, Dispatcher, Outbox, Settings
from outbox.core.lane import Lane
from outbox.simulator import Simulator
from outbox.store.schema import BATCH, LOGS
from tests.faults.steps import HTTP_STEPS, LOOKED_FOR, Ended, Plan, Runs
from tests.faults.strace import Strace, available
from tests.support import ledger
from tests.support.databases import Database
from tests.support.waiting import wait_until

HOUR_US = 3_600_000_000
STRIDE = int(os.environ.get("OUTBOX_TEST_STRIDE", "0"))
SEED = int(os.environ.get("OUTBOX_TEST_SEED", "1"))
STRIDES = {"sqlite": 5, "postgresql": 17, "mariadb": 17, "pwrite64": 23, "fdatasync": 7}


PLAIN = {
    "sqlite": ["INSERT INTO outbox_step_"],
    "postgresql": ["WITH run AS", "WITH saved AS"],
    "mariadb": ["UPDATE outbox_lane SET `cursor`"],
}
"""How what a worker writes begins that has its lane to itself, whether it looks as it writes or need not."""


def stride(of: str) -> int:
    return STRIDE or STRIDES[of]


def numbers(of: str) -> range:
    """The steps or calls at which to kill; a run ends by itself long before the last."""
    return range(1 + SEED % stride(of), 10_000, stride(of))


def ids(n: int) -> list[str]:
    return [str(uuid4()) for _ in range(n)]


class Sweep:
    """Runs on one database, each with ids of its own; one of them beacon refuses."""

    def __init__(self, database: Database, beacon: Simulator) -> None:
        self._beacon = beacon
        self.settings: dict[str, Any] = {
            "database_url": database.url,
            "beacon_url": beacon.url,
            "license_key": beacon.license,
            "batch_max_rows": 2,
            "max_senders": 1,  # one thing after the other, so that a number always means the same step
            "sqlite_synchronous": "NORMAL",  # a kill does not ask what is on the disk; test_power_cut does
        }
        self._url = database.url
        self._engine: Engine = create_engine(database.url, poolclass=NullPool)
        self._on_the_wire: set[str] = set()
        self._ahead = 0
        with self._later() as box:
            box.migrate()

    def _later(self) -> Outbox:
        """The outbox two hours after the last one: every lease of the killed has ended, every hole of before is old.

        Opened anew: it recovers the file.
        """
        self._ahead += 2 * HOUR_US
        return Outbox(self._url, settings=Settings(**self.settings), clock=self._now)

    def _now(self) -> int:
        return time.time_ns() // 1000 + self._ahead

    def plan(self, kill_at: int | None = None, *, wait_for_tracer: bool = False) -> Plan:
        first, second, third = (ids(2) for _ in range(3))
        self._beacon.faults.refuse_ids = self._beacon.faults.refuse_ids | {second[1]}
        often = ["PRAGMA wal_autocheckpoint = 10"] if self._url.startswith("sqlite") else []
        return Plan(
            [first, second, third],
            ids(2),
            first=[ids(1) for _ in range(LOOKED_FOR + 2)],
            kill_at=kill_at,
            wait_for_tracer=wait_for_tracer,
            pragmas=often,
        )

    def check(self, plan: Plan, ended: Ended, transport: BeaconTransport) -> None:
        """What is in the database after the end, and what has arrived once somebody has dispatched the rest."""
        stored = self._stored(plan)
        for transaction in plan.all_committed:
            assert stored.isdisjoint(transaction) or stored.issuperset(transaction), "half a transaction"
        assert ended.committed <= stored, "what was told as committed is gone"
        assert stored.isdisjoint(plan.rolled_back)
        self._on_the_wire |= self._leased()
        with self._later() as box:
            _dispatch_the_rest(box, transport)
            states = {id: view.status for id in stored if (view := box.find(id)) is not None}
        refused = stored & self._beacon.faults.refuse_ids
        assert states == {id: "dead" if id in refused else "sent" for id in stored}
        everything = {*plan.rolled_back, *(id for transaction in plan.all_committed for id in transaction)}
        received = set(self._beacon.received.ids()) & everything
        assert received == stored - refused
        again = self._beacon.received.duplicates()
        assert all(len(set(keys)) == 1 for keys in again.values()), "an id came under two keys"
        assert set(again) <= self._on_the_wire, "an id came again that no lease held when the run was killed"
        assert self._beacon.received.counts()["usage"]["conflicting_keys"] == 0
        ledger.check(self._engine)

    def _stored(self, plan: Plan) -> set[str]:
        log = LOGS[Lane.USAGE]
        mine = [UUID(id) for group in (*plan.all_committed, plan.rolled_back) for id in group]
        with self._engine.connect() as connection:
            return set(map(str, connection.execute(select(log.c.id).where(log.c.id.in_(mine))).scalars()))

    def _leased(self) -> set[str]:
        log = LOGS[Lane.USAGE]
        inside = log.c.seq.between(BATCH.c.first_seq, BATCH.c.last_seq)
        with self._engine.connect() as connection:
            leased = select(log.c.id).join(BATCH, inside).where(BATCH.c.state == "leased")
            return set(map(str, connection.execute(leased).scalars()))


def _dispatch_the_rest(box: Outbox, transport: BeaconTransport) -> None:
    with closing(Dispatcher(box, transport, lanes=[Lane.USAGE])) as dispatcher:

        def done() -> bool:
            return not dispatcher.run_once().more and not box.store.lane_status(Lane.USAGE).unfinished

        wait_until(done, timeout=30, message=lambda: str(box.status().lanes["usage"]))


@pytest.fixture
def sweep(database: Database, beacon: Simulator) -> Sweep:
    return Sweep(database, beacon)


@pytest.fixture
def transport(sweep: Sweep) -> Iterator[BeaconTransport]:
    with BeaconTransport(Settings(**sweep.settings)) as transport:
        yield transport


@pytest.mark.timeout(900)
def test_a_run_killed_at_any_step_loses_nothing(
    sweep: Sweep, transport: BeaconTransport, beacon: Simulator, database: Database
) -> None:
    died_at: Counter[str] = Counter()
    with Runs(**sweep.settings) as runs:
        for number in numbers(database.name):
            plan = sweep.plan(kill_at=number)
            ended = runs.start(plan).ended()
            sweep.check(plan, ended, transport)
            if not ended.killed:
                break
            assert len(ended.steps) == number
            died_at[ended.steps[-1]] += 1
    assert not ended.killed
    assert all(any(step.startswith(plain) for step in ended.steps) for plain in PLAIN[database.name])
    again = len(beacon.received.duplicates())
    print(f"\n{database.label}: {died_at.total()} kills at {len(died_at)} kinds of steps, {again} entries came again")
    if stride(database.name) == 1:
        assert died_at.keys() >= {"before COMMIT", "after COMMIT", *(f"usage: {step}" for step in HTTP_STEPS.values())}
        assert all(any(step.startswith(plain) for step in died_at) for plain in PLAIN[database.name])
        assert again, "no kill found a request on the wire"


@pytest.mark.parametrize("call", ["pwrite64", "fdatasync"])
@pytest.mark.parametrize("database", ["sqlite"], indirect=True)
@pytest.mark.timeout(900)
def test_a_run_killed_while_sqlite_writes_loses_nothing(
    sweep: Sweep, transport: BeaconTransport, call: str, tmp_path: Path
) -> None:
    """In the middle of a transaction's frames, between them and the sync, in a checkpoint."""
    available()
    killed = 0
    sweep.settings["sqlite_synchronous"] = "FULL"
    with Runs(**sweep.settings) as runs:
        for number in numbers(call):
            plan = sweep.plan(wait_for_tracer=True)
            run = runs.start(plan)
            run.stopped()
            kill = ["-e", f"trace={call}", "-e", f"inject={call}:signal=KILL:when={number}"]
            with Strace(*kill, pid=run.pid, log=tmp_path / "calls") as strace:
                run.go_on()
                ended = run.ended()
                strace.finished()
            sweep.check(plan, ended, transport)
            if not ended.killed:
                break
            assert strace.log().count(f"{call}(") == number
            killed += 1
    assert not ended.killed
    assert killed
    print(f"\n{killed} kills at every {stride(call)}th {call}")
