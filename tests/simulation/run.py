"""One seed: a day of producers, four workers, beacon and operators; then beacon heals and everything must end."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from random import Random

from outbox.core.health import LaneState
from outbox.core.lane import Lane
from tests.model.ledger import ModelStore
from tests.simulation.beacon import Beacon
from tests.simulation.checks import Watched
from tests.simulation.operators import Operators
from tests.simulation.producers import Producers
from tests.simulation.scenario import Outage, Scenario, draw
from tests.simulation.workers import Worker
from tests.simulation.world import DAY, HOUR, MILLISECOND, MINUTE, SECOND, Violation, World

WORKERS = 4


@dataclass(frozen=True, slots=True)
class Outcome:
    fingerprint: str
    requests: int
    delivered: int
    outage_requests: int
    """The most requests that one outage cost on the usage lane."""
    happened: frozenset[str]
    """Kinds of events in the trace."""


def simulate(seed: int, store: type[ModelStore] = ModelStore) -> Outcome:
    """Raises ``Violation`` with the seed in its message."""
    try:
        return Simulation(seed, store).run()
    except Violation as broken:
        raise Violation(f"{broken} (seed {seed})") from None


def simulate_all(seeds: Sequence[int]) -> tuple[frozenset[str], list[str]]:
    """The kinds of events that happened in these seeds, and the texts of the violations."""
    happened: set[str] = set()
    broken: list[str] = []
    for seed in seeds:
        try:
            happened |= simulate(seed).happened
        except Violation as violation:
            broken.append(str(violation))
    return frozenset(happened), broken


class Simulation:
    def __init__(self, seed: int, store: type[ModelStore] = ModelStore, scenario: Scenario | None = None) -> None:
        self.world = World(seed)
        self.scenario = scenario or draw(Random(seed))
        self.store = store(
            self.scenario.policy,
            self.world.database_clock,
            draw=self.world.chance.random,
            monotonic=self.world.monotonic,
            knows_writers=self.scenario.database != "mariadb",
            single_writer=self.scenario.database == "sqlite",
        )
        self.beacon = Beacon(self.world, self.scenario)
        self.watched = Watched(self.world, self.scenario, self.store, self.beacon)
        self.producers = Producers(self.world, self.scenario, self.store, self.beacon, self.ring)
        self.operators = Operators(self.world, self.scenario, self.watched, self.producers, self.ring)
        self.workers = [
            Worker(number, self.scenario, self.watched, self.beacon, self.ring) for number in range(WORKERS)
        ]
        self.alarms: dict[Lane, int | None] = dict.fromkeys(self.scenario.lanes)
        self.pauses = dict.fromkeys(self.scenario.lanes, SECOND)
        self.leases = dict.fromkeys(self.scenario.lanes, 0)
        self.outage_requests = 0
        self.store.producers_act = self.producers.act
        self.store.anybody_acts = self._anybody_acts

    def run(self) -> Outcome:
        self.producers.begin_all()
        self.operators.schedule()
        for outage in self.scenario.outages:
            self.world.after(outage.start, self._goes_out, outage)
        self.world.run(DAY)
        self._heal()
        self._finish()
        requests = sum(self.beacon.requests.values())
        delivered = sum(books.delivered for books in self.watched.books.values())
        happened = frozenset(str(line[1]) for line in self.world.trace)
        return Outcome(self.world.fingerprint(), requests, delivered, self.outage_requests, happened)

    # --- who is woken ----------------------------------------------------------------------------------------

    def ring(self, lane: Lane, *, idle: bool = False) -> None:
        """A lane has changed: schedule the next time that a worker looks at it. Stands for the polls of all workers.

        ``idle``: a worker has just looked and found nothing, so no other look is scheduled at once.
        """
        outlook = self.watched.outlook(lane)
        if outlook.ready:
            if not idle:
                self._alarm_in(lane, self.world.between(MILLISECOND, 100 * MILLISECOND))
        elif outlook.next_seconds is not None:
            self._alarm_in(lane, int(outlook.next_seconds * SECOND) + MILLISECOND)

    def _alarm_in(self, lane: Lane, delay: int) -> None:
        at, known = self.world.now + delay, self.alarms[lane]
        if known is None or at < known:
            self.alarms[lane] = at
            self.world.after(delay, self._alarm, lane, at)

    def _alarm(self, lane: Lane, at: int) -> None:
        if self.alarms[lane] != at:
            return
        self.alarms[lane] = None
        outlook = self.watched.outlook(lane)
        if not outlook.ready:
            self.ring(lane)
            return
        awake = [worker for worker in self.workers if worker.alive]
        for worker in self.world.chance.sample(awake, min(len(awake), 2)):
            worker.wake(lane, self.world.between(0, 20 * MILLISECOND))
        # The workers may be busy, stalled or killed, or the lane may be full: look again at growing intervals.
        idle = self.leases[lane] == self.watched.leases
        self.leases[lane] = self.watched.leases
        self.pauses[lane] = min(2 * self.pauses[lane], MINUTE) if idle else SECOND
        due = self.pauses[lane] if not outlook.next_seconds else int(outlook.next_seconds * SECOND) + MILLISECOND
        self._alarm_in(lane, min(self.pauses[lane], due))

    def _anybody_acts(self) -> None:
        """Called between two statements that hold no lock: producers, an operator or another worker may act."""
        self.producers.act()
        if not self.watched.settling and self.world.happens(self.scenario.race):
            lane = self.world.chance.choice(self.scenario.lanes)
            if self.world.happens(0.2):
                self.operators.requeue(lane)
                return
            worker = self.world.chance.choice(self.workers)
            if worker.alive and self.world.now >= worker.stalled_until:
                worker.turn(lane)

    # --- outages ---------------------------------------------------------------------------------------------

    def _goes_out(self, outage: Outage) -> None:
        before = self.beacon.requests[Lane.USAGE]
        self.world.after(outage.end - outage.start, self._comes_back, outage, before)

    def _comes_back(self, outage: Outage, before: int) -> None:
        """An outage of a day costs a few hundred requests, and a probe finds its end."""
        requests = self.beacon.requests[Lane.USAGE] - before
        self.outage_requests = max(self.outage_requests, requests)
        mean_wait = self.scenario.policy.backoff_max * SECOND / 2
        allowed = 60 + 1.3 * (outage.end - outage.start) / mean_wait
        if outage.kind != "400" and not self.scenario.killer and requests > allowed:
            raise self.watched.broken(f"an outage of {(outage.end - outage.start) / SECOND} s cost {requests} requests")
        if self.scenario.calm:
            patience = int((2 * self.scenario.policy.backoff_max + 120) * SECOND)
            delivered = {lane: books.delivered for lane, books in self.watched.books.items()}
            self.world.after(patience, self._must_be_back, outage, delivered)

    def _must_be_back(self, outage: Outage, before: dict[Lane, int]) -> None:
        for lane, books in self.watched.books.items():
            ledger = self.store.ledgers[lane]
            waits = ledger.health.state is LaneState.PAUSED and (ledger.live or ledger.above(1))
            held = books.held_until > self.world.database_clock() - 10 * SECOND
            if waits and not held and books.delivered == before[lane] and not self.beacon.outage():
                raise self.watched.broken(f"{lane}: beacon is back since {outage.end / SECOND} s, and nothing is sent")

    # --- the end ---------------------------------------------------------------------------------------------

    def _heal(self) -> None:
        """Beacon takes all rows except poison, open transactions end, workers run, sequences are advanced again."""
        self.beacon.healed = True
        for transaction in list(self.producers.open):
            self.producers.end(transaction)
        for worker in self.workers:
            worker.start()
            worker.stopping, worker.stalled_until = False, min(worker.stalled_until, self.world.now)
        for lane in self.scenario.lanes:
            self.operators.mend(lane)
            self.operators.switch_on(lane)
            self.operators.requeue(lane)

    def _finish(self) -> None:
        for lane in self.scenario.lanes:
            self._life_goes_on(lane)
        self.world.run(DAY + 12 * HOUR, enough=self._nothing_waits)
        for lane in self.scenario.lanes:
            self.operators.audit(lane)
            self._all_ended(lane)

    def _life_goes_on(self, lane: Lane) -> None:
        """Commit one good entry every 10 minutes while the lane is paused: a lane whose batches are all refused opens
        only when beacon accepts something."""
        if self.store.ledgers[lane].health.state is LaneState.PAUSED:
            self.producers.commit_one(lane)
        self.world.after(10 * MINUTE, self._life_goes_on, lane)

    def _nothing_waits(self) -> bool:
        ledgers = [self.store.ledgers[lane] for lane in self.scenario.lanes]
        return not any(ledger.live or ledger.above(1) for ledger in ledgers)

    def _all_ended(self, lane: Lane) -> None:
        ended, unsent = self.watched.books[lane].ended, self.operators.ended_unsent[lane]
        for payload in self.producers.committed[lane]:
            end = ended.get(payload, "not ended")
            expected = "shed" if payload in unsent else "dead" if payload in self.beacon.poison else "sent"
            if end != expected and not (expected == "shed" and end == "discarded"):
                raise self.watched.broken(f"{lane}: {payload} is {end}, and should be {expected}")
            if (end == "sent") != (payload in self.beacon.received) and end == "sent":
                raise self.watched.broken(f"{lane}: {payload} is sent, and beacon has never seen it")
