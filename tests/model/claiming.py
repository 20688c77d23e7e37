"""What a worker claims next: a batch that is due, late rows in holes, or rows above the cursor."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import count
from uuid import UUID

from outbox.core import batching, runs
from outbox.core.backoff import Backoff
from outbox.core.batch import Batch
from outbox.core.health import LaneState, after, probing
from outbox.core.lane import Lane
from outbox.core.lifecycle import BatchState
from outbox.core.policy import MICROSECONDS, Policy
from outbox.core.runs import Runs
from outbox.core.transition import Move, after_crash, decide
from tests.model.tables import Entry, Held, Hole, Ledger

FIRST_CHECK_US = 20_000
LAST_CHECK_US = 60 * MICROSECONDS
HOLES_AT_ONCE = 50


def _nothing() -> None:
    """The default of ``producers_act`` and ``anybody_acts``: no other transaction acts."""


class Claiming:
    """The claims of `ModelStore`. Decisions of `outbox.core` are attributes, so that a planted bug can replace one."""

    decide = staticmethod(decide)
    after_crash = staticmethod(after_crash)
    after = staticmethod(after)
    probing = staticmethod(probing)

    def __init__(
        self,
        policy: Policy,
        clock: Callable[[], int],
        *,
        draw: Callable[[], float] = lambda: 0.5,
        monotonic: Callable[[], float] = lambda: 0.0,
        knows_writers: bool = True,
        single_writer: bool = False,
    ) -> None:
        """``clock``: the database's, in µs. ``knows_writers`` False: the database cannot name the transactions that may
        fill a hole (MariaDB)."""
        self.policy, self.clock, self.draw, self.monotonic = policy, clock, draw, monotonic
        self.knows_writers, self.single_writer = knows_writers, single_writer
        self.producers_act: Callable[[], None] = _nothing
        self.anybody_acts: Callable[[], None] = _nothing
        self.ledgers = {lane: Ledger(lane) for lane in Lane}
        self.transactions = 0
        self.without_id: set[int] = set()
        self._ids = (UUID(int=number) for number in count(1))

    def locked(self, lane: Lane) -> Ledger:
        ledger = self.ledgers[lane]
        ledger.version += 1
        ledger.now = self.clock()
        return ledger

    # --- claim ---------------------------------------------------------------------------------------------

    def claim(self, ledger: Ledger, look_due: bool, eager: bool) -> Batch | None:
        if not ledger.health.may_send(ledger.now, self.policy.max_wait_us):
            return None
        if ledger.health.state is not LaneState.OPEN:
            return self.claim_probe(ledger, eager)
        batch = None
        if look_due:
            batch = self.claim_due(ledger, probe=False) or self.claim_from_holes(ledger, eager)
            if batch is None and len(ledger.live) >= self.policy.live_batches:
                return None
        return batch or self.claim_new(ledger)

    def claim_probe(self, ledger: Ledger, eager: bool) -> Batch | None:
        """Claim one batch as a probe, due or not. While every batch is refused, every second probe is of fresh
        entries."""
        room = len(ledger.live) < self.policy.live_batches
        batch = self.claim_new(ledger) if self.fresh_first(ledger) else None
        batch = batch or self.claim_due(ledger, probe=True) or self.claim_from_holes(ledger, eager)
        if batch is None and room:
            batch = self.claim_new(ledger)
        if batch is None:
            return None
        ledger.health = self.probing(ledger.health, ledger.now, self.policy.lease_us)
        return replace(batch, probe_until=ledger.health.next_probe_at)

    def fresh_first(self, ledger: Ledger) -> bool:
        """Whether the next probe is of fresh entries, even on a full lane: refused batches may fill it for ever."""
        return ledger.health.fresh_first

    def claim_due(self, ledger: Ledger, probe: bool) -> Batch | None:
        while True:
            due = [held for held in ledger.live.values() if self.is_due(ledger, held, probe)]
            if not due:
                return None
            held = self.first(due)
            if held.state is BatchState.WAITING or self.again_at_once(ledger, held):
                return self.lease(ledger, held)

    def again_at_once(self, ledger: Ledger, held: Held) -> bool:
        """Count an expired lease; returns whether the batch is leased again now. If not, it waits or is halved."""
        ledger.totals["failed_attempts"] += 1
        crash = self.after_crash(
            attempts=held.attempts,
            crashes=held.crashes + 1,
            entries=held.entries,
            backoff=self.backoff(ledger.lane),
        )
        if crash.move is Move.HALVE:
            self.halve(ledger, held, crash.attempts, crash.ambiguous)
            return False
        held.attempts, held.ambiguous, held.crashes = crash.attempts, crash.ambiguous, held.crashes + 1
        if crash.wait_seconds:
            self.wait(ledger, held, int(crash.wait_seconds * MICROSECONDS))
        return not crash.wait_seconds

    def is_due(self, ledger: Ledger, held: Held, probe: bool) -> bool:
        assert held.due_at is not None
        overdue = held.due_at <= ledger.now or held.due_at > ledger.now + self.policy.max_wait_us
        return overdue or (probe and held.state is BatchState.WAITING)

    def first(self, due: Sequence[Held]) -> Held:
        """The batch that has been due longest."""
        return min(due, key=lambda held: held.due_at or 0)

    def claim_from_holes(self, ledger: Ledger, eager: bool) -> Batch | None:
        found = self.look_into_holes(ledger, eager)
        if not found:
            return None
        taken = runs.from_sorted(found[: self.cut(ledger, found)])
        self.fill(ledger, taken)
        return self.lease(ledger, self.insert(ledger, taken))

    def look_into_holes(self, ledger: Ledger, eager: bool) -> list[int]:
        """The numbers of rows found in the holes that are due. An empty hole gets a new date or is forgotten."""
        due = self.due_holes(ledger, eager)
        if not due:
            return []
        writers = self.writers(ledger)  # before the rows: the other order loses a row that commits in between
        self.producers_act()
        found = self.in_holes(ledger, due)
        for hole in due:
            looked_at = len(found) < self.policy.batch_max_rows or hole.hi <= found[-1]
            if looked_at and not any(hole.lo <= number <= hole.hi for number in found):
                self.look_again_or_forget(ledger, hole, writers)
        return found

    def due_holes(self, ledger: Ledger, eager: bool) -> list[Hole]:
        known = [(hole.next_check_at, hole) for hole in ledger.holes if hole.next_check_at is not None]
        late = [(at, h) for at, h in known if at <= ledger.now or at > ledger.now + self.policy.max_wait_us]
        due = [hole for _, hole in sorted(late, key=lambda pair: pair[0])][:HOLES_AT_ONCE]
        if eager:
            newest = sorted((hole for _, hole in known), key=lambda hole: -hole.lo)[:HOLES_AT_ONCE]
            due += [hole for hole in newest if hole not in due]
        return due

    def in_holes(self, ledger: Ledger, due: Sequence[Hole]) -> list[int]:
        return sorted(ledger.present([(hole.lo, hole.hi) for hole in due]))[: self.policy.batch_max_rows]

    def writers(self, ledger: Ledger) -> frozenset[int] | None:
        return frozenset(ledger.open) if self.knows_writers else None

    def look_again_or_forget(self, ledger: Ledger, hole: Hole, writers: frozenset[int] | None) -> None:
        age = self.age(ledger, hole)
        if writers is None:
            nobody = age > self.policy.hole_age_seconds * MICROSECONDS
        else:
            hole.blockers = writers if hole.blockers is None else hole.blockers & writers
            nobody = not hole.blockers
        hole.next_check_at = None if nobody else ledger.now + min(max(age // 2, FIRST_CHECK_US), LAST_CHECK_US)
        if nobody:
            hole.blockers = None

    def age(self, ledger: Ledger, hole: Hole) -> int:
        hole.seen_at = min(hole.seen_at, ledger.now)  # the clock was set back: the age counts from now
        return ledger.now - hole.seen_at

    def fill(self, ledger: Ledger, taken: Runs) -> None:
        """Remove the numbers that a batch has taken from their holes."""
        kept: list[Hole] = []
        for hole in ledger.holes:
            if hole.next_check_at is None or hole.lo > taken[-1][1] or hole.hi < taken[0][0]:
                kept.append(hole)
                continue
            rest = runs.subtract(((hole.lo, hole.hi),), taken)
            kept += [Hole(lo, hi, hole.seen_at, hole.next_check_at, hole.blockers) for lo, hi in rest]
        ledger.holes = kept

    def claim_new(self, ledger: Ledger) -> Batch | None:
        self.producers_act()
        numbers = ledger.above(self.policy.batch_max_rows)
        numbers = numbers[: self.cut(ledger, numbers)]
        gaps = self.gaps(ledger, numbers)
        if gaps and not self.single_writer:
            young = [hi + 1 for _, hi in gaps if self.is_young(ledger, ledger.log[hi + 1])]
            numbers = [number for number in numbers if not young or number < young[0]]
        if not numbers:
            return None
        self.record(ledger, [gap for gap in gaps if gap[1] < numbers[-1]])
        ledger.cursor = numbers[-1]
        return self.lease(ledger, self.insert(ledger, runs.from_sorted(numbers)))

    def gaps(self, ledger: Ledger, numbers: Sequence[int]) -> Runs:
        """The gaps, from the same query result as the rows."""
        return batching.gaps(ledger.cursor, numbers)

    def is_young(self, ledger: Ledger, entry: Entry) -> bool:
        """Whether the row was written within ``young_hole_seconds``. A row dated more than 1 s ahead was written before
        the clock was set back, and is not young."""
        age = ledger.now - entry.written_at
        return -MICROSECONDS < age < self.policy.young_hole_seconds * MICROSECONDS

    def record(self, ledger: Ledger, gaps: Sequence[tuple[int, int]], wait: int = FIRST_CHECK_US) -> None:
        ledger.holes += [Hole(lo, hi, ledger.now, ledger.now + wait) for lo, hi in gaps]

    def cut(self, ledger: Ledger, numbers: Sequence[int]) -> int:
        sizes = [len(ledger.log[number].payload) for number in numbers]
        return batching.cut(sizes, self.policy.max_batch_bytes(ledger.lane))

    def insert(self, ledger: Ledger, members: Runs, **columns: object) -> Held:
        """Insert a batch: waiting and due now, unless ``columns`` say otherwise."""
        id = next(self._ids)
        held = Held(id, members, runs.count(members), BatchState.WAITING, ledger.now, id, ledger.now)
        for name, value in columns.items():
            setattr(held, name, value)
        ledger.batches[id] = held
        if held.state is BatchState.WAITING:
            ledger.live[id] = held
        return held

    def lease(self, ledger: Ledger, held: Held) -> Batch:
        """Lease the batch: the same members and key, and a new token."""
        held.state, held.token = BatchState.LEASED, next(self._ids)
        held.due_at = ledger.now + self.policy.lease_us
        held.requeued = False
        payloads = [ledger.log[number].payload for number in runs.numbers(held.members)]
        return Batch(
            id=held.id,
            lane=ledger.lane,
            members=held.members,
            rows=held.entries,
            payload_bytes=sum(map(len, payloads)),
            attempts=held.attempts,
            lease_token=held.token,
            lease_deadline=self.monotonic() + self.policy.lease_seconds - self.policy.request_timeout,
            ambiguous=held.ambiguous,
            lines="\n".join(payloads),
        )

    def backoff(self, lane: Lane) -> Backoff:
        limited = self.policy.attempts_limit(lane) is not None
        return Backoff(self.policy.backoff_base, self.policy.backoff_max, self.draw(), limited)

    def supersede(self, ledger: Ledger, held: Held) -> None:
        ledger.live.pop(held.id, None)
        held.state, held.ending, held.token = BatchState.SUPERSEDED, None, None
        held.due_at = held.settled_at = None

    def halve(self, ledger: Ledger, held: Held, attempts: int, ambiguous: bool) -> None:
        self.supersede(ledger, held)
        for half in runs.split(held.members, held.entries // 2):
            self.insert(ledger, half, root=held.root, attempts=attempts, ambiguous=ambiguous)

    def wait(self, ledger: Ledger, held: Held, wait_us: int) -> None:
        held.state, held.token, held.due_at = BatchState.WAITING, None, ledger.now + wait_us
