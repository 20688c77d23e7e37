"""The moves of operators, size bounds and upkeep: requeue, discard, shed, off, purge, audit."""

from __future__ import annotations

from collections.abc import Container, Sequence
from dataclasses import dataclass
from uuid import UUID

from outbox.core import batching, runs
from outbox.core.health import Health, LaneState
from outbox.core.lane import Lane
from outbox.core.lifecycle import BatchState, Ending
from outbox.core.policy import MICROSECONDS, Retention
from tests.model.claiming import Claiming
from tests.model.tables import Held, Hole, Ledger

CLOCK_ERROR_US = 600 * MICROSECONDS
TOTAL_OF = {Ending.DELIVERED: "sent", Ending.REFUSED: "dead", Ending.SHED: "shed", Ending.DISCARDED: "shed"}


@dataclass(slots=True)
class Audited:
    """``strays``: rows that no claim would have found; ``renumbered``: those of them that got a new number;
    ``problem``: why the lane was stopped, or None."""

    strays: int = 0
    renumbered: int = 0
    problem: str | None = None


class Operating(Claiming):
    """The moves of `ModelStore` that a dispatcher does not make."""

    def requeue(self, lane: Lane, only: Container[UUID] | None = None) -> int:
        """Move dead letters into new waiting batches with 0 attempts, at most ``batch_max_rows`` entries in each unless
        a dead batch is larger. Returns the number of entries."""
        ledger = self.locked(lane)
        dead = self.dead(ledger, only)
        groups: list[list[Held]] = []
        for held in dead:
            if not groups or sum(each.entries for each in groups[-1]) + held.entries > self.policy.batch_max_rows:
                groups.append([])
            groups[-1].append(held)
        for group in groups:
            members = runs.union(run for held in group for run in held.members)
            ambiguous = any(held.ambiguous for held in group)
            self.insert(ledger, members, due_at=ledger.now - MICROSECONDS, ambiguous=ambiguous, requeued=True)
        for held in dead:
            self.leave_dead(ledger, held)
        return sum(held.entries for held in dead)

    def leave_dead(self, ledger: Ledger, held: Held) -> None:
        ledger.totals["dead"] -= held.entries
        self.supersede(ledger, held)

    def discard(self, lane: Lane, only: Container[UUID] | None = None) -> int:
        ledger = self.locked(lane)
        dead = self.dead(ledger, only)
        for held in dead:
            ledger.totals["dead"] -= held.entries
            self.end(ledger, held, Ending.DISCARDED)
        return sum(held.entries for held in dead)

    def dead(self, ledger: Ledger, only: Container[UUID] | None = None) -> list[Held]:
        dead = [held for held in ledger.batches.values() if held.ending is Ending.REFUSED]
        return sorted((held for held in dead if only is None or held.id in only), key=lambda held: held.members[-1][1])

    def shed(self, lane: Lane, at_most: int, ending: Ending = Ending.SHED) -> int:
        """End the oldest ``at_most`` pending entries: the rows that were read, never a range. Returns their number."""
        ledger = self.locked(lane)
        numbers = ledger.above(at_most)
        if numbers:
            self.record(ledger, batching.gaps(ledger.cursor, numbers))
            ledger.cursor = numbers[-1]
            self.end(ledger, self.insert(ledger, runs.from_sorted(numbers)), ending)
        return len(numbers)

    def switch_off(self, lane: Lane, reason: str = "off") -> int:
        """Discard pending and waiting entries, and those of expired leases; a batch whose lease lasts is left alone.
        Returns the number of entries."""
        total = 0
        while True:
            ledger = self.locked(lane)
            ledger.health = Health(LaneState.OFF, reason)
            waiting = [held for held in ledger.live.values() if self.is_due(ledger, held, probe=True)]
            for held in waiting:
                held.ambiguous = held.ambiguous or held.state is BatchState.LEASED
                self.end(ledger, held, Ending.DISCARDED)
            late = self.look_into_holes(ledger, eager=True)
            if late:
                self.fill(ledger, runs.from_sorted(late))
                self.end(ledger, self.insert(ledger, runs.from_sorted(late)), Ending.DISCARDED)
            shed = self.shed(lane, 10 * self.policy.batch_max_rows, Ending.DISCARDED)
            moved = sum(held.entries for held in waiting) + len(late) + shed
            if not moved:
                return total
            total += moved

    def switch_on(self, lane: Lane) -> None:
        ledger = self.locked(lane)
        if ledger.health.state is LaneState.OFF:
            ledger.health = Health()

    def end(self, ledger: Ledger, held: Held, ending: Ending) -> None:
        ledger.live.pop(held.id, None)
        held.state, held.ending, held.token, held.settled_at = BatchState.SETTLED, ending, None, ledger.now
        held.due_at = None if ending is Ending.REFUSED else ledger.now
        ledger.totals[TOTAL_OF[ending]] += held.entries

    # --- upkeep --------------------------------------------------------------------------------------------

    def purge(self, lane: Lane, rules: Retention) -> int:
        """Delete the rows of batches that were settled ``sent_seconds`` ago, raise the floor, delete old receipts.
        Returns the number of rows deleted.

        Rows are deleted without the lane's row lock: the state of each batch is checked again first.
        """
        ledger, now = self.ledgers[lane], self.clock()
        if ledger.health.stopped:
            return 0
        before = now - int(rules.sent_seconds * MICROSECONDS)
        deleted = 0
        for held in self.purgeable(ledger, before):
            self.anybody_acts()
            if self.still_purgeable(held, before):
                deleted += self.delete(ledger, held, now)
        self.raise_floor(self.locked(lane))
        self.delete_receipts(ledger, now - int(rules.receipts_seconds * MICROSECONDS))
        return deleted

    def purgeable(self, ledger: Ledger, before: int) -> list[Held]:
        return [held for held in ledger.batches.values() if self.still_purgeable(held, before)]

    def still_purgeable(self, held: Held, before: int) -> bool:
        settled = held.state is BatchState.SETTLED and held.purged_at is None
        return settled and held.due_at is not None and held.due_at <= before

    def delete(self, ledger: Ledger, held: Held, now: int) -> int:
        for number in runs.numbers(held.members):
            ledger.log.pop(number, None)
        held.purged_at, held.due_at = now, None
        return held.entries

    def raise_floor(self, ledger: Ledger) -> None:
        needed = [
            held.members[0][0] - 1
            for held in ledger.batches.values()
            if held.purged_at is None and held.state is not BatchState.SUPERSEDED and held.members[-1][1] > ledger.floor
        ]
        may_come = [hole.lo - 1 for hole in ledger.holes if hole.next_check_at is not None]
        floor = min([ledger.cursor, *needed, *may_come])
        if floor > ledger.floor:
            ledger.floor = floor
            ledger.holes = [hole for hole in ledger.holes if hole.next_check_at is not None or hole.hi > floor]
            for hole in ledger.holes:
                hole.lo = max(hole.lo, floor + 1)

    def delete_receipts(self, ledger: Ledger, before: int) -> None:
        for held in list(ledger.batches.values()):
            purged = held.purged_at is not None and held.purged_at < before
            superseded = held.state is BatchState.SUPERSEDED and held.created_at < before
            if held.members[-1][1] <= ledger.floor and (purged or superseded):
                del ledger.batches[held.id]

    def audit(self, lane: Lane, *, mend: bool = False) -> Audited:
        """Compare the log with the ledger and bring strays back. Stops the lane while its sequence is behind."""
        ledger, report = self.locked(lane), Audited()
        if mend:
            ledger.sequence = max(ledger.sequence, ledger.cursor, ledger.highest)
        if self.is_set_back(ledger):
            report.problem = f"the sequence stands at {ledger.sequence}, below the cursor {ledger.cursor}"
            if ledger.health.state is not LaneState.OFF:
                ledger.health = Health(LaneState.PAUSED, report.problem)
            return report
        self.bring_back(ledger, report)
        if ledger.health.stopped:
            ledger.health = Health()
        return report

    def is_set_back(self, ledger: Ledger) -> bool:
        return ledger.sequence < max(ledger.cursor, ledger.highest)

    def bring_back(self, ledger: Ledger, report: Audited) -> None:
        kept = [held for held in ledger.batches.values() if held.state is not BatchState.SUPERSEDED]
        members = runs.union(run for held in kept for run in held.members)
        inside = runs.union((hole.lo, hole.hi) for hole in ledger.holes)
        whole = ((ledger.floor + 1, ledger.cursor),) if ledger.floor < ledger.cursor else ()
        nobodys = runs.subtract(runs.subtract(whole, members), inside)
        forgotten = [hole for hole in ledger.holes if hole.next_check_at is None]
        revived = ledger.present([(hole.lo, hole.hi) for hole in forgotten])
        report.strays += len(ledger.present(nobodys)) + len(revived)
        self.revive(ledger, revived)
        self.record(ledger, nobodys, wait=0)
        purged = [held for held in kept if held.purged_at is not None]
        spent = {number for number in ledger.log if number <= ledger.floor}
        spent |= set(ledger.present([run for held in purged for run in held.members]))
        copies = {number for held in purged for number in self.copies(ledger, held)}
        for number in copies:
            del ledger.log[number]
        again = sorted(spent - copies)
        self.renumber(ledger, again)
        report.strays += len(again)
        report.renumbered += len(again)
        ledger.totals["strays"] += report.strays

    def copies(self, ledger: Ledger, held: Held) -> list[int]:
        """The numbers of rows that are certainly restored copies of entries that were delivered and purged."""
        if held.ending is not Ending.DELIVERED or (held.purged_at or 0) < held.created_at + CLOCK_ERROR_US:
            return []
        present = ledger.present(held.members)
        return [number for number in present if ledger.log[number].written_at < held.created_at]

    def revive(self, ledger: Ledger, numbers: Sequence[int]) -> None:
        if not numbers:
            return
        present = runs.from_sorted(sorted(numbers))
        kept = [hole for hole in ledger.holes if hole.next_check_at is not None]
        for hole in ledger.holes:
            if hole.next_check_at is None:
                rest = runs.subtract(((hole.lo, hole.hi),), present)
                kept += [Hole(lo, hi, hole.seen_at, None) for lo, hi in rest]
        ledger.holes = kept
        self.record(ledger, present, wait=0)

    def renumber(self, ledger: Ledger, numbers: Sequence[int]) -> None:
        at_work = {number for rows in ledger.open.values() for number, _ in rows}
        for number in numbers:
            ledger.sequence += 1
            while ledger.sequence in ledger.log or ledger.sequence in at_work:  # the INSERT waits, fails, is repeated
                ledger.sequence += 1
            ledger.log[ledger.sequence] = ledger.log.pop(number)
            ledger.highest = max(ledger.highest, ledger.sequence)
