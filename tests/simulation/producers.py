"""Simulated producers: transactions that take numbers early, and commit or roll back later in any order."""

from __future__ import annotations

from uuid import UUID

from outbox.core.lane import Lane
from tests.model.ledger import ModelStore, NumberTaken
from tests.simulation.beacon import Beacon
from tests.simulation.scenario import SLOWEST_TRANSACTION, Scenario
from tests.simulation.world import DAY, HOUR, MILLISECOND, MINUTE, SECOND, Ring, World


class Producers:
    """``committed``: the payloads of each lane that must have ended at the end of the simulation."""

    def __init__(self, world: World, scenario: Scenario, store: ModelStore, beacon: Beacon, ring: Ring) -> None:
        self.world, self.scenario, self.store, self.beacon, self.ring = world, scenario, store, beacon, ring
        self.committed: dict[Lane, list[str]] = {lane: [] for lane in scenario.lanes}
        self.open: dict[int, list[tuple[Lane, str]]] = {}
        self.bursts: list[int] = []
        self._entries = 0

    def begin_all(self) -> None:
        """Schedule all transactions, in bursts of 1, 3 or 8, spread over the day."""
        left = self.scenario.transactions
        while left > 0:
            burst = min(left, self.world.chance.choice((1, 3, 8)))
            start = self._burst_start()
            self.bursts.append(start)
            for _ in range(burst):
                self.world.after(start + self.world.between(0, SECOND), self._begin)
            left -= burst

    def _burst_start(self) -> int:
        if self.scenario.outages and self.world.happens(0.3):
            outage = self.world.chance.choice(self.scenario.outages)
            return self.world.between(outage.start, min(outage.end, DAY - 2 * HOUR))
        return self.world.between(0, DAY - 2 * HOUR)

    def _begin(self) -> None:
        lane = self.world.chance.choice(self.scenario.lanes)
        length = self._length()
        if self.scenario.database == "sqlite":
            self.world.after(length, self._at_once, lane)
            return
        transaction = self.store.begin()
        self.open[transaction] = []
        copying = self.world.happens(0.2)
        self._insert(transaction, lane, copying)
        if self.world.happens(0.3):
            self.world.after(length // 2, self._insert, transaction, lane, copying)
        self.world.after(length, self.end, transaction)

    def _length(self) -> int:
        if not self.world.happens(self.scenario.slow):
            return self.world.between(MILLISECOND, 50 * MILLISECOND)
        return self.world.between(MILLISECOND, self.world.chance.choice((SECOND, MINUTE, SLOWEST_TRANSACTION)))

    def _insert(self, transaction: int, lane: Lane, copying: bool) -> None:
        if transaction not in self.open:
            return
        ids = [self._new_id() for _ in range(1 + self.world.chance.randrange(self.scenario.rows))]
        try:
            self.store.take(transaction, lane, ids, copying=copying)
        except NumberTaken:  # the sequence was set back: the producer sees an error
            self._roll_back(transaction)
            return
        self.open[transaction] += [(lane, str(id)) for id in ids]

    def _new_id(self) -> UUID:
        self._entries += 1
        id = UUID(int=self._entries)
        if self.world.happens(self.scenario.poison):
            self.beacon.poison.add(str(id))
        if self.world.happens(self.scenario.killer):
            self.beacon.killers.add(str(id))
        return id

    def commit_one(self, lane: Lane) -> None:
        """Commit one entry that beacon accepts, in a transaction of its own."""
        transaction = self.store.begin()
        self._entries += 1
        id = UUID(int=self._entries)
        self.open[transaction] = [(lane, str(id))]
        try:
            self.store.take(transaction, lane, [id])
        except NumberTaken:
            self._roll_back(transaction)
        else:
            self._commit(transaction)

    def _at_once(self, lane: Lane) -> None:
        """A transaction on SQLite: numbers are taken and committed under the one write lock, and a rollback gives them
        back."""
        if self.world.happens(self.scenario.rolled_back):
            return
        transaction = self.store.begin()
        self.open[transaction] = []
        self._insert(transaction, lane, False)
        if transaction in self.open:
            self._commit(transaction)

    def end(self, transaction: int) -> None:
        if transaction not in self.open:
            return
        if self.world.happens(self.scenario.rolled_back):
            self._roll_back(transaction)
        else:
            self._commit(transaction)

    def _commit(self, transaction: int) -> None:
        rows = self.open.pop(transaction)
        self.store.commit(transaction)
        self.world.note("commit", transaction)
        for lane, payload in rows:
            self.committed[lane].append(payload)
        for lane in {lane: None for lane, _ in rows}:
            self.ring(lane)

    def _roll_back(self, transaction: int) -> None:
        del self.open[transaction]
        self.store.roll_back(transaction)
        self.world.note("rollback", transaction)

    def act(self) -> None:
        """Called between two statements of another transaction: with probability ``race``, end one open transaction."""
        if self.open and self.world.happens(self.scenario.race):
            self.end(self.world.chance.choice(list(self.open)))
