"""Simulated workers: processes that crash and stall, and decide as `outbox.flight.Flight` does, one turn at a time."""

from __future__ import annotations

from collections.abc import Sequence

from outbox.core import concurrency, pace
from outbox.core.batch import Batch
from outbox.core.concurrency import Concurrency
from outbox.core.lane import Lane
from outbox.core.pace import Pace
from outbox.core.receipt import Receipt, Verdict
from outbox.core.step import Settlement
from outbox.flight import CLAIMED_AT_ONCE, LOOK_DUE_SECONDS
from tests.simulation.beacon import Beacon
from tests.simulation.checks import Watched
from tests.simulation.scenario import Scenario
from tests.simulation.world import MILLISECOND, MINUTE, SECOND, Ring

INTERRUPTED = Receipt(Verdict.INTERRUPTED, counted=False, reason="the lease has no time left for a request")
STOPPED = Receipt(Verdict.INTERRUPTED, counted=False, reason="stopped before the request left")


class Flight:
    """One lane of one worker: the number of requests in flight, and the answers that are not settled yet."""

    def __init__(self) -> None:
        self.flying = 0
        self.limit = Concurrency()
        self.pace = Pace()
        self.landed: list[Settlement] = []
        self.looked_at = float("-inf")
        self.turn_at: int | None = None


class Worker:
    """A worker process. ``life`` counts its restarts: an event that was scheduled in an earlier life is ignored."""

    def __init__(self, number: int, scenario: Scenario, store: Watched, beacon: Beacon, ring: Ring) -> None:
        self.number, self.scenario, self.world = number, scenario, store.world
        self.store, self.beacon, self.ring = store, beacon, ring
        self.life = 0
        self.alive = True
        self.stopping = False
        self.stalled_until = 0
        self.flights = {lane: Flight() for lane in scenario.lanes}

    def wake(self, lane: Lane, delay: int) -> None:
        """Schedule a turn in ``delay`` µs, unless an earlier one is scheduled."""
        flight, at = self.flights[lane], self.world.now + delay
        if self.alive and (flight.turn_at is None or flight.turn_at > at):
            flight.turn_at = at
            self.world.after(delay, self._turn_at, lane, self.life, at)

    def _turn_at(self, lane: Lane, life: int, at: int) -> None:
        flight = self.flights[lane]
        if life == self.life and flight.turn_at == at:
            flight.turn_at = None
            if self.world.now < self.stalled_until:
                self.wake(lane, self.stalled_until - self.world.now)
            else:
                self.turn(lane)

    def turn(self, lane: Lane) -> None:
        """Settle the answers and claim the next batches in one step, as one round of ``Flight.run`` does."""
        flight = self.flights[lane]
        landed, flight.landed = flight.landed, []
        want = 0 if self.stopping else max(0, min(flight.limit.allowed - flight.flying, CLAIMED_AT_ONCE))
        if want and flight.pace.wait(self.world.monotonic()) > 0:
            self.wake(lane, int(flight.pace.wait(self.world.monotonic()) * SECOND) + MILLISECOND)
        want = flight.pace.room(self.world.monotonic(), want)
        if not landed and (not want or (not flight.flying and not self.store.outlook(lane).ready)):
            return
        failing = any(one.receipt.verdict is not Verdict.DELIVERED for one in landed)
        idle = not landed and not flight.flying
        look_due = idle or failing or self.world.monotonic() - flight.looked_at > LOOK_DUE_SECONDS
        batches = self._step(lane, landed, want, look_due)
        if batches:
            flight.pace = pace.left(flight.pace, self.world.monotonic(), len(batches))
        life = self.life
        for batch in batches:
            if life == self.life:
                self._fly(batch)
        if batches and len(batches) == want and flight.flying < flight.limit.allowed:
            self.wake(lane, MILLISECOND)
        self.ring(lane, idle=not batches and not landed)

    def _step(self, lane: Lane, landed: list[Settlement], want: int, look_due: bool) -> Sequence[Batch]:
        if look_due:
            self.flights[lane].looked_at = self.world.monotonic()
        return self.store.step(lane, landed, want=want, look_due=look_due, eager=look_due).batches

    def _fly(self, batch: Batch) -> None:
        self.flights[batch.lane].flying += 1
        life = self.life
        if self._struck():
            self.world.after(max(0, self.stalled_until - self.world.now), self._send, batch, life)
        else:
            self._send(batch, life)

    def _send(self, batch: Batch, life: int) -> None:
        if life != self.life:
            return
        if self.world.monotonic() > batch.lease_deadline or self.stopping:
            self._land(Settlement(batch, STOPPED if self.stopping else INTERRUPTED), life)
            return
        self.store.leaves(batch)
        receipt, took, taken = self.beacon.post(batch)
        self.store.arrived(batch, receipt, took, taken)
        self.world.after(took, self._land, Settlement(batch, receipt, took / SECOND), life)
        if not self.beacon.healed and not self.beacon.killers.isdisjoint(batch.payloads):
            self.crash()
        else:
            self._struck()

    def _land(self, one: Settlement, life: int) -> None:
        if life != self.life:
            return
        if self.world.now < self.stalled_until:
            self.world.after(self.stalled_until - self.world.now, self._land, one, life)
        elif self._struck():
            self.world.after(max(0, self.stalled_until - self.world.now), self._landed, one, life)
        else:
            self._landed(one, life)

    def _landed(self, one: Settlement, life: int) -> None:
        if life != self.life:
            return
        lane = one.batch.lane
        flight = self.flights[lane]
        now = self.world.monotonic()
        flight.pace = pace.after(flight.pace, one.receipt, left_at=now - one.seconds, now=now)
        reached = flight.flying >= flight.limit.allowed
        flight.limit = concurrency.after(
            flight.limit,
            one.receipt,
            seconds=one.seconds,
            reached=reached,
            probe=one.batch.probe_until is not None,
            maximum=self.scenario.senders,
        )
        flight.flying -= 1
        flight.landed.append(one)
        if self.world.happens(0.3):
            self.wake(lane, 2 * MILLISECOND)  # another answer may arrive meanwhile: one commit settles both
        else:
            self.turn(lane)

    # --- what happens to a process ---------------------------------------------------------------------------

    def _struck(self) -> bool:
        """With the scenario's probabilities, crash or stall the process here; returns whether it did. May also begin an
        orderly stop."""
        if self.beacon.healed:
            return False
        if self.world.happens(self.scenario.crash):
            self.crash()
            return True
        if self.world.happens(self.scenario.stall):
            lease = int(self.scenario.policy.lease_seconds * SECOND)
            self.stalled_until = self.world.now + self.world.between(lease // 3, 3 * lease)
            self.world.note("stall", self.number)
            return True
        if self.world.happens(self.scenario.crash / 2):
            self.stopping = True
            self.world.after(MINUTE, self._stopped, self.life)
        return False

    def crash(self) -> None:
        """kill -9: the process releases nothing. It starts again after 1 s to 5 minutes."""
        self.world.note("crash", self.number)
        self.alive = False
        self.life += 1
        self.world.after(self.world.between(SECOND, 5 * MINUTE), self.start)

    def _stopped(self, life: int) -> None:
        """The end of an orderly stop, a minute after SIGTERM: all requests were answered and settled."""
        if life == self.life:
            self.alive = False
            self.life += 1
            self.world.after(self.world.between(SECOND, MINUTE), self.start)

    def start(self) -> None:
        if self.alive:
            return
        self.alive, self.stopping, self.stalled_until = True, False, 0
        self.flights = {lane: Flight() for lane in self.scenario.lanes}
        for lane in self.scenario.lanes:
            self.ring(lane)
