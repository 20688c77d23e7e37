"""Moves of operators and of upkeep (requeue, discard, shed, off, on, purge, audit), and disasters: the database's clock
is set, or a sequence is set back. Each move is checked against the record of `Watched`.
"""

from __future__ import annotations

from outbox.core import runs
from outbox.core.health import LaneState
from outbox.core.lane import Lane
from outbox.core.lifecycle import BatchState, Ending
from tests.model.ledger import ModelStore
from tests.model.tables import Held
from tests.simulation.checks import Watched
from tests.simulation.producers import Producers
from tests.simulation.scenario import Scenario
from tests.simulation.world import DAY, HOUR, MINUTE, SECOND, Ring, World


class Operators:
    def __init__(self, world: World, scenario: Scenario, watched: Watched, producers: Producers, ring: Ring) -> None:
        self.world, self.scenario, self.watched, self.producers = world, scenario, watched, producers
        self.store: ModelStore = watched.store
        self.ring = ring
        self.ended_unsent: dict[Lane, set[str]] = {lane: set() for lane in scenario.lanes}
        """Payloads of entries that were shed or discarded."""
        self.mending = False

    def schedule(self) -> None:
        world, scenario = self.world, self.scenario
        for lane in scenario.lanes:
            for hour in range(1, 24):
                world.after(hour * HOUR + world.between(0, MINUTE), self.upkeep, lane)
        for _ in range(scenario.requeues):
            world.after(world.between(HOUR, DAY), self.requeue, Lane.USAGE)
        for _ in range(scenario.discards):
            world.after(world.between(HOUR, DAY), self.discard, Lane.USAGE)
        for _ in range(scenario.sheds):
            world.after(self._moment(), self.shed, Lane.TRACES)
        for _ in range(scenario.switches):
            off = self._moment()
            world.after(off, self.switch_off, Lane.TRACES)
            world.after(off + world.between(MINUTE, HOUR), self.switch_on, Lane.TRACES)
        for _ in range(scenario.jumps):
            far = world.chance.choice((MINUTE, HOUR, 20 * HOUR, 365 * DAY))
            at = self._moment()
            by = far if world.happens(0.3) else -far
            world.after(at, self.jump, by)
            if world.happens(0.3):
                world.after(at + world.between(SECOND, HOUR), self.jump, -by)
        if scenario.set_back:
            world.after(world.between(6 * HOUR, DAY - 2 * HOUR), self.set_back, Lane.USAGE)

    def _moment(self) -> int:
        """A random time of the day. Most lie within an outage, when batches wait, or within a burst of producers, when
        transactions are open."""
        kind = self.world.chance.random()
        if self.scenario.outages and kind < 0.4:
            outage = self.world.chance.choice(self.scenario.outages)
            return self.world.between(outage.start, outage.end)
        if kind < 0.8:
            return self.world.chance.choice(self.producers.bursts) + self.world.between(0, SECOND)
        return self.world.between(HOUR, DAY - 2 * HOUR)

    # --- operators -------------------------------------------------------------------------------------------

    def requeue(self, lane: Lane) -> None:
        dead = self._payloads(lane, Ending.REFUSED)
        moved = self.store.requeue(lane)
        if moved != len(dead):
            raise self.watched.broken(f"{lane}: requeued {moved} of {len(dead)} dead entries")
        books, holders = self.watched.books[lane], self._holders(lane)
        for payload in dead:
            del books.ended[payload]
            books.attempts[payload] = 0
            del books.roots[payload]
            books.keys.pop(payload, None)
            held = holders[payload]
            if held.state is not BatchState.WAITING or held.attempts:
                raise self.watched.broken(f"{lane}: {payload} was requeued, and is {held.state} ({held.attempts})")
        self._done("requeue", lane, moved)

    def discard(self, lane: Lane) -> None:
        dead = self._payloads(lane, Ending.REFUSED)
        self.store.discard(lane)
        for payload in dead:
            self.watched.books[lane].ended[payload] = "discarded"
        self.ended_unsent[lane].update(dead)
        self._done("discard", lane, len(dead))

    def shed(self, lane: Lane) -> None:
        self.store.shed(lane, self.world.chance.choice((1, 5, 100)))
        self._book_shed(lane)
        self._done("shed", lane, len(self.ended_unsent[lane]))

    def switch_off(self, lane: Lane) -> None:
        self.store.switch_off(lane)
        self._book_shed(lane)
        ledger = self.store.ledgers[lane]
        if any(held.state is BatchState.WAITING for held in ledger.live.values()) or ledger.above(1):
            raise self.watched.broken(f"{lane} is off, and something still waits to be sent")
        self._done("off", lane, len(self.ended_unsent[lane]))

    def switch_on(self, lane: Lane) -> None:
        self.store.switch_on(lane)
        self._hold_ends(lane)
        self._done("on", lane, 0)

    def _hold_ends(self, lane: Lane) -> None:
        """Opening a lane by hand overrules Retry-After."""
        if self.store.ledgers[lane].health.state is LaneState.OPEN:
            self.watched.books[lane].held_until = 0

    def _book_shed(self, lane: Lane) -> None:
        """Check that only pending and waiting entries were shed, and record them."""
        books = self.watched.books[lane]
        for payload in self._payloads(lane, Ending.SHED, Ending.DISCARDED) - self.ended_unsent[lane]:
            lease = books.leased.pop(payload, None)
            if payload in books.ended or (lease is not None and not self.watched.is_over(lease)):
                raise self.watched.broken(
                    f"{lane}: {payload} was shed, and it was {books.ended.get(payload, 'leased')}"
                )
            books.ended[payload] = "shed"
            self.ended_unsent[lane].add(payload)

    # --- upkeep ----------------------------------------------------------------------------------------------

    def upkeep(self, lane: Lane) -> None:
        self.audit(lane)
        self.purge(lane)

    def purge(self, lane: Lane) -> None:
        log = self.store.ledgers[lane].log
        before = {number: entry.payload for number, entry in log.items()}
        deleted = self.store.purge(lane, self.scenario.retention)
        ended = self.watched.books[lane].ended
        for number, payload in before.items():
            if number not in log and ended.get(payload) not in ("sent", "shed", "discarded"):
                raise self.watched.broken(f"{lane}: purge deleted {number}, which is {ended.get(payload, 'not ended')}")
        if deleted:
            self.world.note("deleted", deleted)
        self._done("purge", lane, deleted)

    def audit(self, lane: Lane) -> None:
        """Called every hour. A real worker audits every minute, but an audit that finds nothing changes nothing."""
        report = self.store.audit(lane)
        aged = self.scenario.database == "mariadb" and self.world.jumps
        if report.strays:
            self.world.note("stray", report.strays)
        if report.strays and not self.scenario.set_back and not aged:
            raise self.watched.broken(f"{lane}: {report.strays} committed rows were where nobody looks")
        if report.problem is not None and not self.mending:
            self.mending = True
            self.world.after(self.world.between(MINUTE, 30 * MINUTE), self.mend, lane)
        self._done("audit", lane, report.strays)

    def mend(self, lane: Lane) -> None:
        self.store.audit(lane, mend=True)
        self.mending = False
        self.watched.set_back_at = None
        self._hold_ends(lane)
        self._done("mend", lane, 0)

    # --- disasters -------------------------------------------------------------------------------------------

    def jump(self, by: int) -> None:
        self.world.jump(by)
        for lane in self.scenario.lanes:
            self.ring(lane)

    def set_back(self, lane: Lane) -> None:
        """The sequence falls back, as after a restore: numbers are handed out a second time."""
        ledger = self.store.ledgers[lane]
        ledger.sequence = self.world.between(0, ledger.floor if self.world.happens(0.5) else ledger.cursor)
        for _ in range(3):
            self.world.after(self.world.between(0, 20 * SECOND), self.producers.commit_one, lane)
        self.watched.set_back_at = self.world.now
        self.world.note("set back", ledger.sequence)
        self.world.after(self.world.between(SECOND, MINUTE), self.audit, lane)

    # --- reading ---------------------------------------------------------------------------------------------

    def _payloads(self, lane: Lane, *endings: Ending) -> set[str]:
        ledger = self.store.ledgers[lane]
        ended = [held for held in ledger.batches.values() if held.ending in endings and held.purged_at is None]
        numbers = [number for held in ended for number in runs.numbers(held.members)]
        return {ledger.log[number].payload for number in numbers if number in ledger.log}

    def _holders(self, lane: Lane) -> dict[str, Held]:
        ledger = self.store.ledgers[lane]
        return {ledger.log[number].payload: held for number, held in ledger.holders().items() if number in ledger.log}

    def _done(self, what: str, lane: Lane, amount: int) -> None:
        self.world.note(what, lane.value, amount)
        self.watched.whole(lane)
        self.ring(lane)
