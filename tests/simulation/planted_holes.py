"""Planted bugs of the log: gaps, holes, and the transactions that may still fill them."""

from __future__ import annotations

from collections.abc import Container, Sequence
from typing import Any

from outbox.core import batching
from outbox.core.batch import Batch
from outbox.core.lane import Lane
from outbox.core.policy import MICROSECONDS
from outbox.core.runs import Runs
from outbox.core.step import Settlement, Step
from tests.model.claiming import FIRST_CHECK_US
from tests.model.tables import Entry, Hole, Ledger
from tests.simulation.planted import Planted


class GapsAreForgotten(Planted):
    """A claim steps over missing numbers without recording a hole."""

    def record(self, ledger: Ledger, gaps: Sequence[tuple[int, int]], wait: int = FIRST_CHECK_US) -> None:
        """Records no hole."""


class AGapIsCountedAtTheHead(Planted):
    """Numbers handed out beyond the last row seen are recorded as a hole, which lies above the cursor."""

    def claim_new(self, ledger: Ledger) -> Batch | None:
        batch = super().claim_new(ledger)
        if batch is not None and ledger.sequence > ledger.cursor:
            self.record(ledger, [(ledger.cursor + 1, ledger.sequence)])
        return batch


class GapsComeFromASecondLook(Planted):
    """The gaps are read by a second query: a row that commits between the two is neither claimed nor a gap."""

    def gaps(self, ledger: Ledger, numbers: Sequence[int]) -> Runs:
        self.producers_act()
        return batching.gaps(ledger.cursor, ledger.present([(ledger.cursor + 1, numbers[-1])])) if numbers else ()


class TheSnapshotIsOlderThanTheLock(Planted):
    """As under REPEATABLE READ: the rows are those of a snapshot from before the wait for the lane's row lock, the
    holes and the writers are current."""

    snapshot: Container[int] = ()

    def step(self, lane: Lane, settlements: Sequence[Settlement], **options: Any) -> Step:
        snapshot = frozenset(self.ledgers[lane].log)
        self.anybody_acts()
        self.snapshot = snapshot
        return super().step(lane, settlements, **options)

    def in_holes(self, ledger: Ledger, due: Sequence[Hole]) -> list[int]:
        return [number for number in super().in_holes(ledger, due) if number in self.snapshot]


class AHoleIsForgottenByAge(Planted):
    """A hole is forgotten after 30 s, although its transaction may still commit."""

    def writers(self, ledger: Ledger) -> frozenset[int] | None:
        return None

    def look_again_or_forget(self, ledger: Ledger, hole: Hole, writers: frozenset[int] | None) -> None:
        super().look_again_or_forget(ledger, hole, writers)
        if ledger.now - hole.seen_at > 30 * MICROSECONDS:
            hole.next_check_at = None


class WritersAreKnownByTransactionId(Planted):
    """A transaction in COPY, which takes numbers before it has a transaction id, is not seen as a writer."""

    def writers(self, ledger: Ledger) -> frozenset[int] | None:
        known = super().writers(ledger)
        return None if known is None else known - self.without_id


class AHoleIsLookedIntoBeforeItsWriters(Planted):
    """The rows in a hole are read before its writers: a transaction that commits between the two reads is lost."""

    def look_into_holes(self, ledger: Ledger, eager: bool) -> list[int]:
        due = self.due_holes(ledger, eager)
        found = self.in_holes(ledger, due)
        self.producers_act()
        writers = self.writers(ledger)
        for hole in due:
            if not any(hole.lo <= number <= hole.hi for number in found):
                self.look_again_or_forget(ledger, hole, writers)
        return found


class HolesAreLookedIntoWithoutTheLock(Planted):
    """Two workers look into the same hole and claim the same late row."""

    def look_into_holes(self, ledger: Ledger, eager: bool) -> list[int]:
        found = super().look_into_holes(ledger, eager)
        self.anybody_acts()
        return found


class RowsAreClaimedWithoutTheLock(Planted):
    """Two workers claim from the same cursor."""

    def gaps(self, ledger: Ledger, numbers: Sequence[int]) -> Runs:
        gaps = super().gaps(ledger, numbers)
        self.anybody_acts()
        return gaps


class TheFloorRisesPastHoles(Planted):
    """The floor rises past holes, and no claim looks below the floor."""

    def raise_floor(self, ledger: Ledger) -> None:
        holes, ledger.holes = ledger.holes, []
        super().raise_floor(ledger)
        ledger.holes = [hole for hole in holes if hole.lo > ledger.floor]


class AHoleSeenInTheFutureStays(Planted):
    """After the clock was set back, a hole is checked every 20 ms until the clock has caught up."""

    def age(self, ledger: Ledger, hole: Hole) -> int:
        return ledger.now - hole.seen_at


class ARowFromTheFutureIsYoung(Planted):
    """After the clock was set back by a day, no claim passes a gap for a day."""

    def is_young(self, ledger: Ledger, entry: Entry) -> bool:
        return ledger.now - entry.written_at < self.policy.young_hole_seconds * MICROSECONDS
