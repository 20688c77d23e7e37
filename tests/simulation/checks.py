"""The invariants of the ledger and of delivery, checked at each move.

`Watched` stands between the workers and the model. It keeps a record of its own for each entry (the batch that leases
it, its counted attempts, how it ended) and compares the model with that record after each step, for the entries that
the step touched. It compares the whole ledger every `FULL_CHECK_EVERY` steps, after every move of an operator, and at
the end.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from uuid import UUID

from outbox.core import runs
from outbox.core.batch import Batch
from outbox.core.health import LaneState
from outbox.core.lane import Lane
from outbox.core.lifecycle import BatchState, Ending
from outbox.core.receipt import Receipt, Verdict
from outbox.core.step import Outlook, Settlement, Step
from tests.model.ledger import ModelStore
from tests.model.tables import Held
from tests.simulation.beacon import Beacon
from tests.simulation.scenario import Scenario
from tests.simulation.world import MINUTE, SECOND, Violation, World

FULL_CHECK_EVERY = 60
"""Steps between two comparisons of the whole ledger."""
COSTS_AN_ATTEMPT = (Verdict.UNAVAILABLE, Verdict.AMBIGUOUS)
REFUSALS = (Verdict.REFUSED, Verdict.TOO_LARGE)


@dataclass(slots=True)
class Lease:
    batch: Batch
    due_at: int
    jumps: int
    """How often the database's clock had been set before the lease began; once it is set again the lease may end at any
    time."""


@dataclass(slots=True)
class Books:
    """The record of one lane's entries, by payload."""

    attempts: dict[str, int] = field(default_factory=dict)
    leased: dict[str, Lease] = field(default_factory=dict)
    ended: dict[str, str] = field(default_factory=dict)
    roots: dict[str, object] = field(default_factory=dict)
    keys: dict[str, Batch] = field(default_factory=dict)
    """The batch that leased the entry last."""
    excused: set[str] = field(default_factory=set)
    """Entries that beacon may have taken without the worker's knowledge, so that a duplicate is allowed."""
    delivered: int = 0
    held_until: int = 0
    """The end of the last Retry-After by the database's clock, in µs: no request may leave before it. Void once that
    clock has been set again."""
    held_jumps: int = 0
    probe_until: int = 0
    """The time at which the answer to the newest probe arrives, in µs since the start."""
    probe_jumps: int = 0
    newest_probe: object = None


class Watched:
    def __init__(self, world: World, scenario: Scenario, store: ModelStore, beacon: Beacon) -> None:
        self.world, self.scenario, self.store, self.beacon = world, scenario, store, beacon
        self.books = {lane: Books() for lane in scenario.lanes}
        self.probes: dict[object, int] = {}
        """Lease token of each probe, with the number of times that the clock had been set when it was leased."""
        self.keys: dict[object, Sequence[str]] = {}
        self.settling = False
        """True during a step whose settlements are not in ``books`` yet."""
        self.steps = 0
        self.leases = 0
        self.set_back_at: int | None = None

    # --- what workers do -------------------------------------------------------------------------------------

    def outlook(self, lane: Lane) -> Outlook:
        return self.store.outlook(lane)

    def step(
        self, lane: Lane, settlements: Sequence[Settlement], *, want: int, look_due: bool, eager: bool = False
    ) -> Step:
        ledger, books = self.store.ledgers[lane], self.books[lane]
        cursor, version = ledger.cursor, ledger.version
        due = [self._lease(books, one.batch) for one in settlements]
        self.settling = bool(settlements)
        step = self.store.step(lane, settlements, want=want, look_due=look_due, eager=eager)
        if ledger.cursor < cursor:
            raise self.broken(f"{lane}: the cursor fell from {cursor} to {ledger.cursor}")
        if ledger.version <= version:
            raise self.broken(f"{lane}: a claim did not raise the version {version}")
        self.settling = False
        lost = list(step.settled.lost)  # two leases of one batch may be settled after a long stall
        for one, lease in zip(settlements, due, strict=True):
            if lease is None:
                self._stale(one, lost)
        for one, lease in zip(settlements, due, strict=True):
            if lease is not None:
                self._settled(books, one, lease, one.batch.id in lost)
        for batch in step.batches:
            self.leases += 1
            self._leased(books, batch, probe=ledger.health.state is LaneState.PAUSED)
        self.steps += 1
        if self.steps > 20 * (self.leases + 1_000):
            raise self.broken(f"{lane}: {self.steps} steps for {self.leases} leases: workers run in circles")
        if self.steps % FULL_CHECK_EVERY == 0:
            self.whole(lane)
        return step

    @staticmethod
    def _lease(books: Books, batch: Batch) -> Lease | None:
        """The recorded lease that ``batch`` holds; None when its entries have been leased again since."""
        lease = books.leased.get(batch.payloads[0])
        return lease if lease is not None and lease.batch.lease_token == batch.lease_token else None

    def _stale(self, one: Settlement, lost: list[UUID]) -> None:
        self.world.note("stale", one.batch.lane.value, one.batch.id.int, one.receipt.verdict.value)
        if one.batch.id not in lost:
            raise self.broken(f"{_name(one.batch)}: settled under a lease that was lost")
        lost.remove(one.batch.id)

    def _settled(self, books: Books, one: Settlement, lease: Lease, lost: bool) -> None:
        batch, receipt = one.batch, one.receipt
        self.world.note("settle", batch.lane.value, batch.id.int, receipt.verdict.value, lost)
        if lost:
            if not self.is_over(lease):
                raise self.broken(f"{_name(batch)}: its settlement was refused, and its lease was not over")
            return
        held = self.store.ledgers[batch.lane].batches[batch.id]
        counts = receipt.verdict in COSTS_AN_ATTEMPT or (receipt.verdict in REFUSALS and held.ending is Ending.REFUSED)
        for payload in batch.payloads:
            del books.leased[payload]
            books.attempts[payload] = books.attempts.get(payload, 0) + counts
        if receipt.verdict is Verdict.AMBIGUOUS:
            books.excused.update(batch.payloads)
        if receipt.verdict in REFUSALS and batch.rows > 1:
            if held.state is not BatchState.SUPERSEDED:
                raise self.broken(f"{_name(batch)}: refused as a whole, and {held.state}")
            self.world.note("halve", batch.id.int)
            self.whole(batch.lane)
        else:
            self._ended(books, batch, receipt, held)
        self._health(books, batch, receipt)

    def _ended(self, books: Books, batch: Batch, receipt: Receipt, held: Held) -> None:
        log = self.store.ledgers[batch.lane].log
        body = [log[number].payload for number in runs.numbers(held.members) if number in log]
        if body != batch.payloads:
            raise self.broken(f"{_name(batch)}: its members are not the body that was sent")
        told = books.attempts[batch.payloads[0]]
        if held.attempts != told:
            raise self.broken(f"{_name(batch)}: {told} failures, and attempts {held.attempts}")
        if held.state is not BatchState.SETTLED:  # it waits, or the same step has leased it again
            if receipt.verdict is Verdict.DELIVERED:
                raise self.broken(f"{_name(batch)}: delivered, and it waits")
            return
        delivered = held.ending is Ending.DELIVERED
        if delivered is not (receipt.verdict is Verdict.DELIVERED):
            raise self.broken(f"{_name(batch)}: {receipt.verdict}, {held.ending}")
        if not delivered:
            limit = self.scenario.policy.attempts_limit(batch.lane)
            guilty = receipt.verdict in REFUSALS or (limit is not None and held.attempts >= limit)
            if not guilty:
                raise self.broken(f"{_name(batch)}: buried for {receipt.verdict}")
        books.delivered += batch.rows * delivered
        for payload in batch.payloads:
            if delivered and payload not in self.beacon.received:
                raise self.broken(f"{payload} is sent, and beacon has never seen it")
            if payload in books.ended:
                raise self.broken(f"{payload} ends twice: {books.ended.get(payload)}, {held.ending}")
            books.ended[payload] = "sent" if delivered else "dead"
        if not delivered:
            self.world.note("dead", batch.id.int)

    def _health(self, books: Books, batch: Batch, receipt: Receipt) -> None:
        health = self.store.ledgers[batch.lane].health
        if batch.lease_token == books.newest_probe:
            books.held_until = 0  # the answer to the newest request replaces an earlier Retry-After
        now, next_probe = self.world.database_clock(), health.next_probe_at
        if receipt.retry_after_seconds and health.state is LaneState.PAUSED and next_probe is not None:
            if next_probe > now + self.scenario.policy.max_wait_us:
                return  # the clock was set back: a probe beyond the longest wait counts as due
            until = now + int(receipt.retry_after_seconds * SECOND)
            before = books.held_until if books.held_jumps == self.world.jumps else 0
            books.held_until, books.held_jumps = max(before, until), self.world.jumps

    def _leased(self, books: Books, batch: Batch, probe: bool) -> None:
        self.world.note("probe" if probe else "lease", batch.lane.value, batch.id.int, batch.attempts)
        ledger, now = self.store.ledgers[batch.lane], self.world.database_clock()
        held = ledger.batches[batch.id]
        if held.state is not BatchState.LEASED or held.members != batch.members:
            raise self.broken(f"{_name(batch)}: not what was leased")
        if now < books.held_until and books.held_jumps == self.world.jumps:
            left = (books.held_until - now) / SECOND
            raise self.broken(f"{_name(batch)}: leaves {left:.1f} s before Retry-After is over")
        lease = Lease(batch, now + self.scenario.policy.lease_us, self.world.jumps)
        if self.keys.setdefault(batch.id, batch.payloads) != batch.payloads:
            raise self.broken(f"{_name(batch)}: its members changed")
        ended, leased, attempts, roots = books.ended, books.leased, books.attempts, books.roots
        for payload in batch.payloads:
            if payload in ended:
                raise self.broken(f"{_name(batch)}: leases {payload}, which is {ended[payload]}")
            before = leased.get(payload)
            if before is not None:
                if not self.is_over(before):
                    raise self.broken(f"{_name(batch)}: leases {payload}, which {_name(before.batch)} holds")
                attempts[payload] = attempts.get(payload, 0) + 1
                self.world.note("expired", before.batch.id.int)
                books.excused.add(payload)
            leased[payload] = lease
            told = attempts.get(payload, 0)
            if told != batch.attempts:
                raise self.broken(f"{_name(batch)}: {payload} failed {told} times, attempts {batch.attempts}")
            root = roots.setdefault(payload, held.root)
            if root != held.root:
                raise self.broken(f"{_name(batch)}: {payload} has left its root batch without a requeue")
        first = books.keys.get(batch.payloads[0])
        if first is not None and first.id != batch.id and first.payloads == batch.payloads:
            raise self.broken(f"{_name(batch)}: the same entries travelled as {_name(first)}")
        books.keys.update(dict.fromkeys(batch.payloads, batch))
        if probe:
            self.probes[batch.lease_token] = self.world.jumps
            books.newest_probe = batch.lease_token

    def is_over(self, lease: Lease) -> bool:
        return self.world.database_clock() >= lease.due_at or lease.jumps != self.world.jumps

    # --- what beacon sees ------------------------------------------------------------------------------------

    def leaves(self, batch: Batch) -> None:
        """A worker begins to send a request."""
        if batch.lease_token in self.probes:
            books = self.books[batch.lane]
            undisturbed = self.world.jumps == books.probe_jumps == self.probes[batch.lease_token]
            if self.world.now < books.probe_until and undisturbed:
                raise self.broken(f"{_name(batch)}: two probes are on the wire of a paused lane")

    def arrived(self, batch: Batch, receipt: Receipt, took: int, taken: bool) -> None:
        books = self.books[batch.lane]
        self.world.note(f"answer {receipt.status}" if receipt.status else f"answer {receipt.verdict.value}", taken)
        if batch.lease_token in self.probes:
            books.probe_until, books.probe_jumps = self.world.now + took, self.world.jumps
        if not taken:
            return
        for payload in batch.payloads:
            times = self.beacon.received[payload]
            if times > 1:
                self.world.note("duplicate", batch.id.int)
            if times > 1 and payload not in books.excused:
                raise self.broken(f"{_name(batch)}: beacon gets {payload} {times} times, and no fault excuses it")
        if receipt.verdict is not Verdict.DELIVERED:
            books.excused.update(batch.payloads)

    # --- the whole -------------------------------------------------------------------------------------------

    def whole(self, lane: Lane) -> None:
        ledger = self.store.ledgers[lane]
        if self.set_back_at is not None:
            sound = ledger.sequence >= ledger.cursor or ledger.health.stopped or ledger.health.state is LaneState.OFF
            if not sound and self.world.now > self.set_back_at + 2 * MINUTE:
                raise self.broken(f"{lane}: numbers are handed out below the cursor, and nobody stops the lane")
            return
        problem = ledger.problem(rows_forgotten=self.scenario.database == "mariadb" and self.world.jumps > 0)
        if problem is not None:
            raise self.broken(problem)

    def broken(self, what: str) -> Violation:
        return Violation(f"{what}, after {self.world.now / SECOND:.3f} s")


def _name(batch: Batch) -> str:
    return f"{batch.lane} batch {batch.id.int} of {runs.encode(batch.members)}"
