"""The tables of the model, as plain rows in dicts and lists, and the ledger invariant over them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from uuid import UUID

from outbox.core import runs
from outbox.core.health import Health
from outbox.core.lane import Lane
from outbox.core.lifecycle import BatchState, Ending, Status, status_of
from outbox.core.runs import Runs


@dataclass(slots=True)
class Entry:
    id: UUID
    payload: str
    written_at: int


@dataclass(slots=True)
class Held:
    """A row of ``outbox_batch``."""

    id: UUID
    members: Runs
    entries: int
    state: BatchState
    due_at: int | None
    root: UUID
    created_at: int
    attempts: int = 0
    ambiguous: bool = False
    token: UUID | None = None
    crashes: int = 0
    ending: Ending | None = None
    settled_at: int | None = None
    purged_at: int | None = None
    requeued: bool = False
    """Not leased since it was requeued, so that its entries are pending."""


@dataclass(slots=True)
class Hole:
    """A row of ``outbox_hole``. ``next_check_at`` is None for a forgotten hole."""

    lo: int
    hi: int
    seen_at: int
    next_check_at: int | None
    blockers: frozenset[int] | None = None


@dataclass(slots=True)
class Ledger:
    """The tables of one lane. ``open``: the uncommitted rows of each open transaction."""

    lane: Lane
    log: dict[int, Entry] = field(default_factory=dict)
    open: dict[int, list[tuple[int, Entry]]] = field(default_factory=dict)
    batches: dict[UUID, Held] = field(default_factory=dict)
    live: dict[UUID, Held] = field(default_factory=dict)
    holes: list[Hole] = field(default_factory=list)
    sequence: int = 0
    highest: int = 0
    floor: int = 0
    cursor: int = 0
    version: int = 0
    now: int = 0
    health: Health = field(default_factory=Health)
    totals: dict[str, int] = field(
        default_factory=lambda: dict.fromkeys(
            ("sent", "dead", "shed", "failed_attempts", "strays", "rejected", "shortfall"), 0
        )
    )

    def above(self, limit: int) -> list[int]:
        """The first ``limit`` numbers above the cursor that have a row."""
        found: list[int] = []
        for number in range(self.cursor + 1, self.highest + 1):
            if number in self.log:
                found.append(number)
                if len(found) == limit:
                    break
        return found

    def present(self, ranges: Runs | Sequence[tuple[int, int]]) -> list[int]:
        return [number for lo, hi in ranges for number in range(lo, hi + 1) if number in self.log]

    def holders(self) -> dict[int, Held]:
        kept = (held for held in self.batches.values() if held.state is not BatchState.SUPERSEDED)
        return {number: held for held in kept for number in runs.numbers(held.members)}

    def statuses(self) -> dict[UUID, tuple[Status, int]]:
        """The status and the counted attempts of every entry."""
        holders = self.holders()
        return {entry.id: _told(holders.get(number)) for number, entry in self.log.items()}

    def problem(self, *, rows_forgotten: bool = False) -> str | None:
        """How the ledger invariant is broken; None if it holds.

        ``rows_forgotten``: allow rows in forgotten holes. Where holes are forgotten by age, a clock that was set
        forward does so too early, and only the auditor finds the row.
        """
        kept = [held for held in self.batches.values() if held.state is not BatchState.SUPERSEDED]
        spans = [run for held in kept for run in held.members] + [(hole.lo, hole.hi) for hole in self.holes]
        reached = self.floor
        for lo, hi in sorted(spans):
            if hi > self.floor and max(lo, self.floor + 1) != reached + 1:
                return f"{self.lane}: numbers from {lo} to {reached + 1} are nobody's, or have two owners"
            reached = max(reached, hi)
        if reached != self.cursor:
            return f"{self.lane}: the ledger reaches {reached}, the cursor is {self.cursor}"
        for held in kept:
            if held.purged_at is None and len(self.present(held.members)) != held.entries:
                return f"{self.lane}: {held.state} batch {runs.encode(held.members)} has lost rows"
        for hole in self.holes:
            if not rows_forgotten and hole.next_check_at is None and self.present([(hole.lo, hole.hi)]):
                return f"{self.lane}: a committed row is inside the forgotten hole {hole.lo}-{hole.hi}"
        return None


def _told(held: Held | None) -> tuple[Status, int]:
    if held is None or held.requeued:
        return Status.PENDING, 0
    return status_of(held.state, held.ending), held.attempts
