"""What is done all day costs the same, however much was delivered before, is kept as receipts, or waits.

Counted in instructions of SQLite's machine: they are the same in every run.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import event, insert, update

from outbox import Outbox
from outbox.core.lane import Lane
from outbox.core.policy import Bounds, Retention
from outbox.core.step import Settlement
from outbox.store import audit as store_audit
from outbox.store import operate
from outbox.store.audit import AuditReport
from outbox.store.ledger import new_id
from outbox.store.schema import BATCH, LANE
from tests.store.driving import DELIVERED, REFUSED, UNAVAILABLE, Worker

FEW, MANY = 200, 4000
"""Batches that were delivered before. Some are looked at whatever there is: a hundred receipts, and what the audit of a
minute reads."""
BELOW, ABOVE, BACKLOG = "below the floor", "above a dead letter", "a backlog"
MORE = 1.5
"""Times as much as without them: an index is a level deeper."""
DEARER: dict[str, set[str]] = {BELOW: set(), ABOVE: {"requeue"}, BACKLOG: {"status", "bounds"}}
"""What looks for dead letters among all that is above the first of them, and what counts the entries that wait."""
EVERY = 10
"""Instructions between two counts."""
HOURLY = Retention(sent_seconds=3600, receipts_seconds=86_400, max_bytes=2**30, at_least_seconds=0)


class Costs:
    """Of what one outbox does, by name: instructions that SQLite's machine runs for it."""

    def __init__(self, folder: Path, old: int, where: str) -> None:
        self.of: dict[str, int] = {}
        self._count = 0
        self.box = Outbox(f"sqlite:///{folder / str(old)}.db")
        event.listen(
            self.box.engine, "connect", lambda connection, _: connection.set_progress_handler(self._tick, EVERY)
        )
        self.box.migrate()
        self.worker = Worker(self.box, Lane.TRACES)
        self.worker.policy(batch_max_rows=2)
        if where == BACKLOG:
            self.worker.put(old)
        else:
            self._deliver_before(old, above_the_floor=where == ABOVE)

    def _tick(self) -> int:
        self._count += 1
        return 0

    def _deliver_before(self, old: int, *, above_the_floor: bool) -> None:
        """Two, and ``old`` more like the second of them; with a dead letter at the bottom all are above the floor."""
        worker = self.worker
        for receipt in (REFUSED if above_the_floor else DELIVERED, DELIVERED):
            worker.put(1)
            worker.settle(worker.must_claim(), receipt)
        worker.clock.advance(seconds=3601)
        worker.purge(HOURLY)
        like = next(batch for batch in worker.batches("settled") if batch.purged_at is not None)._asdict()
        numbers = range(3, old + 3)
        names = ("members", "first_seq", "last_seq")
        more = [like | dict.fromkeys(names, number) | {"members": str(number), "id": new_id()} for number in numbers]
        worker.burn(numbers[-1])
        with worker.box.store.database.write() as connection:
            connection.execute(insert(BATCH), more)
        floor = 0 if above_the_floor else numbers[-1]
        row = {"cursor": numbers[-1], "floor": floor, "folded_version": LANE.c.version}
        worker.run(update(LANE).where(LANE.c.lane == str(worker.lane)).values(row))

    @contextmanager
    def named(self, name: str) -> Iterator[None]:
        before = self._count
        yield
        self.of[name] = (self._count - before) * EVERY

    def day(self) -> None:
        worker, store, lane = self.worker, self.box.store, self.worker.lane

        def step(name: str, *settlements: Settlement, want: int = 4, look_due: bool = True) -> Any:
            with self.named(name):
                return store.step(lane, settlements, want=want, look_due=look_due, eager=look_due)

        worker.put(1)
        worker.settle(worker.must_claim(), DELIVERED)
        with self.named("put"):
            worker.put(8)
        with self.named("look"):
            store.outlook(lane)
        batches = step("claim").batches
        assert len(batches) == 4
        step("settle", Settlement(batches[0], DELIVERED), want=0, look_due=False)
        step("settle what did not arrive", Settlement(batches[1], UNAVAILABLE), want=0)
        worker.clock.advance(seconds=3600)
        with self.named("look for what is due"):
            assert store.outlook(lane).ready
        again = step("claim what waited", want=3).batches
        assert len(again) == 3
        step("pause", *(Settlement(batch, UNAVAILABLE) for batch in again), want=0)
        worker.clock.advance(seconds=3600)
        [probe] = step("probe").batches
        refused = step("open", Settlement(probe, DELIVERED)).batches
        step("halve", *(Settlement(batch, REFUSED) for batch in refused))
        with self.named("status"):
            self.box.status()
        with self.named("find"):
            assert self.box.find(worker.ids(refused[0])[0])
        with self.named("fold"):
            worker.fold_totals()
        with self.named("audit"):
            store.audit(lane, newest=100)
        with self.named("bounds"):
            store.keep_within(lane, Bounds(entries=10**6, size=2**40, age_seconds=1e6))
        with self.named("purge"):
            store.purge(lane, HOURLY)
        with self.named("requeue"):
            self.box.requeue()


@pytest.mark.parametrize("where", [BELOW, ABOVE, BACKLOG])
def test_what_is_done_all_day_costs_the_same(tmp_path: Path, where: str) -> None:
    few, many = (Costs(tmp_path, old, where) for old in (FEW, MANY))
    for costs in (few, many):
        costs.day()
        costs.box.close()
    dearer = {name: (few.of[name], cost) for name, cost in many.of.items() if cost > MORE * few.of[name]}
    assert dearer.keys() == DEARER[where], dearer


def test_an_audit_of_all_costs_as_much_for_each_batch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store_audit, "RANGE", FEW // 2)
    few, many = (Costs(tmp_path, old, ABOVE) for old in (FEW, MANY))
    for costs in (few, many):
        with costs.named("audit"):
            assert costs.box.store.audit(costs.worker.lane) == AuditReport(costs.worker.lane)
        costs.box.close()
    assert many.of["audit"] < MORE * few.of["audit"] * MANY / FEW, few.of


@pytest.mark.parametrize("does", ["dead", "requeue", "discard"])
def test_dead_letters_among_many_others_are_not_looked_for_from_the_first_of_them_for_each_chunk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, does: str
) -> None:
    """A chunk holds the lane's lock, which on SQLite every producer waits for."""
    monkeypatch.setattr(operate, "CHUNK", 1)
    costs = Costs(tmp_path, MANY, ABOVE)
    costs.box.discard()  # the one at the bottom
    for count in (2, 10):
        for _ in range(count):
            costs.worker.put(1)
            costs.worker.settle(costs.worker.must_claim(), REFUSED)
            costs.worker.put(1)  # many in a row would stop the lane
            costs.worker.settle(costs.worker.must_claim(), DELIVERED)
        with costs.named(str(count)):
            done = getattr(costs.box, does)()
        assert (len(done) if does == "dead" else done) == count
        costs.box.discard()
        costs.worker.deliver_all()
    costs.box.close()
    assert costs.of["10"] < 2 * costs.of["2"], costs.of


def test_named_entries_among_many_that_died_together_are_not_looked_for_from_the_first_of_them_for_each_chunk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(operate, "CHUNK", 1)
    costs = Costs(tmp_path, FEW, ABOVE)
    costs.box.discard()  # the one at the bottom
    costs.worker.policy(batch_max_rows=2, attempts_limits={costs.worker.lane: 1})
    for count in (10, 80):
        ids = costs.worker.put(2 * count)
        for _ in range(count):
            costs.worker.settle(costs.worker.must_claim(), UNAVAILABLE)
            costs.worker.clock.advance(seconds=3600)
        with costs.named(str(count)):
            assert len(costs.box.dead([ids[0], ids[-2]])) == 2
        costs.box.discard()
    costs.box.close()
    assert costs.of["80"] < 5 * costs.of["10"], costs.of
