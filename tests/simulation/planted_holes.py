"""Planted bugs of the log: gaps, holes, and who may still fill them."""

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
    """Numbers that were not there yet are stepped over and not put down."""

    def record(self, ledger: Ledger, gaps: Sequence[tuple[int, int]], wait: int = FIRST_CHECK_US) -> None:
        """Nothing."""


class AGapIsCountedAtTheHead(Planted):
    """Numbers handed out beyond the last row seen are put down as a hole, and lie above the cursor."""

    def claim_new(self, ledger: Ledger) -> Batch | None:
        batch = super().claim_new(ledger)
        if batch is not None and ledger.sequence > ledger.cursor:
            self.record(ledger, [(ledger.cursor + 1, ledger.sequence)])
        return batch


class GapsComeFromASecondLook(Planted):
    """A row that commits between the two looks is neither claimed nor a gap."""

    def gaps(self, ledger: Ledger, numbers: Sequence[int]) -> Runs:
        self.producers_act()
        return batching.gaps(ledger.cursor, ledger.present([(ledger.cursor + 1, numbers[-1])])) if numbers else ()


class TheSnapshotIsOlderThanTheLock(Planted):
    """REPEATABLE READ: rows as they were before the lane's row was waited for, holes and writers as they are."""

    snapshot: Container[int] = ()

    def step(self, lane: Lane, settlements: Sequence[Settlement], **options: Any) -> Step:
        snapshot = frozenset(self.ledgers[lane].log)
        self.anybody_acts()
        self.snapshot = snapshot
        return super().step(lane, settlements, **options)

    def in_holes(self, ledger: Ledger, due: Sequence[Hole]) -> list[int]:
        return [number for number in super().in_holes(ledger, due) if number in self.snapshot]


class AHoleIsForgottenByAge(Planted):
    """Half a minute is enough for any transaction."""

    def writers(self, ledger: Ledger) -> frozenset[int] | None:
        return None

    def look_again_or_forget(self, ledger: Ledger, hole: Hole, writers: frozenset[int] | None) -> None:
        super().look_again_or_forget(ledger, hole, writers)
        if ledger.now - hole.seen_at > 30 * MICROSECONDS:
            hole.next_check_at = None


class WritersAreKnownByTransactionId(Planted):
    """COPY takes numbers before its transaction has an id."""

    def writers(self, ledger: Ledger) -> frozenset[int] | None:
        known = super().writers(ledger)
        return None if known is None else known - self.without_id


class AHoleIsLookedIntoBeforeItsWriters(Planted):
    """First that it is empty, then that nobody can fill it: whoever commits in between is lost."""

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
    """Two workers find the same late row."""

    def look_into_holes(self, ledger: Ledger, eager: bool) -> list[int]:
        found = super().look_into_holes(ledger, eager)
        self.anybody_acts()
        return found


class RowsAreClaimedWithoutTheLock(Planted):
    """Two workers read from the same cursor."""

    def gaps(self, ledger: Ledger, numbers: Sequence[int]) -> Runs:
        gaps = super().gaps(ledger, numbers)
        self.anybody_acts()
        return gaps


class TheFloorRisesPastHoles(Planted):
    """Nobody looks below the floor."""

    def raise_floor(self, ledger: Ledger) -> None:
        holes, ledger.holes = ledger.holes, []
        super().raise_floor(ledger)
        ledger.holes = [hole for hole in holes if hole.lo > ledger.floor]


class AHoleSeenInTheFutureStays(Planted):
    """After the clock was set back a hole is looked into every 20 ms until the clock has caught up."""

    def age(self, ledger: Ledger, hole: Hole) -> int:
        return ledger.now - hole.seen_at


class ARowFromTheFutureIsYoung(Planted):
    """After the clock was set back by a day no claim passes a gap for a day."""

    def is_young(self, ledger: Ledger, entry: Entry) -> bool:
        return ledger.now - entry.written_at < self.policy.young_hole_seconds * MICROSECONDS
