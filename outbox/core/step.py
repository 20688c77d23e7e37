"""The arguments and results of one step of a lane, as they pass between the dispatcher and the store."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from operator import attrgetter
from typing import NamedTuple, Protocol
from uuid import UUID

from outbox.core.batch import Batch
from outbox.core.lane import Lane
from outbox.core.policy import Policy
from outbox.core.receipt import Receipt


class Committed(NamedTuple):
    """Entries that a producer of this process has just committed. The claim need not read them from the database."""

    first: int
    """Sequence number of the first entry; the others follow without a gap."""
    payloads: Sequence[str]
    at: float
    """When they were committed, on the clock ``boottime``, taken after the commit."""

    @staticmethod
    def joined(parts: Sequence[Committed | None]) -> Committed | None:
        """All ``parts`` as one. None: a part is None (other commits), or a number between them is missing."""
        if len(parts) == 1:
            return parts[0]
        known = sorted((part for part in parts if part is not None), key=attrgetter("first"))
        if not parts or len(known) < len(parts):
            return None
        payloads: list[str] = []
        for part in known:
            if part.first != known[0].first + len(payloads):
                return None
            payloads += part.payloads
        return Committed(known[0].first, payloads, min(part.at for part in known))


@dataclass(frozen=True, slots=True)
class Settlement:
    """A batch that was sent, with the receipt of its request."""

    batch: Batch
    receipt: Receipt
    seconds: float = 0.0
    """Time from the start of the request to its answer."""


@dataclass(slots=True)
class Settled:
    """What one group of settlements did. The counts are of entries, except ``batches``."""

    batches: int = 0
    sent: int = 0
    failed: int = 0
    dead: int = 0
    lost: list[UUID] = field(default_factory=list)
    """Ids of batches whose lease was lost: nothing was changed for them."""

    def add(self, other: Settled) -> None:
        self.batches += other.batches
        self.sent += other.sent
        self.failed += other.failed
        self.dead += other.dead
        self.lost += other.lost


@dataclass(slots=True)
class Step:
    """What one step of a lane did: settled a group of batches and leased the next ones."""

    batches: Sequence[Batch] = ()
    settled: Settled = field(default_factory=Settled)
    emptied: bool = False
    """The claim saw no more entries above the cursor, or took everything that its caller passed as committed."""


@dataclass(frozen=True, slots=True)
class Outlook:
    """What a lane has to do, by one read. ``next_seconds``: until its next timer; None: no timer runs."""

    ready: bool
    next_seconds: float | None
    paused: bool = False
    """The lane is off or stopped, or entries wait for its next probe. New commits change nothing until then."""


@dataclass(frozen=True, slots=True)
class DispatchReport:
    """What a tick did. The counts are of entries, except ``batches``, which counts settled requests."""

    sent: int = 0
    failed: int = 0
    """Entries whose attempt failed and was counted; they wait for the next one."""
    dead: int = 0
    batches: int = 0
    more: bool = False
    """Something can be sent right now."""
    next_seconds: float | None = None
    """Seconds until the next timer: a retry, a probe, or an expiring lease. None: no timer runs."""
    paused: bool = False
    """A lane waits for its next probe. New commits do not change when it sends."""

    def __add__(self, other: DispatchReport) -> DispatchReport:
        return DispatchReport(
            self.sent + other.sent,
            self.failed + other.failed,
            self.dead + other.dead,
            self.batches + other.batches,
            self.more or other.more,
            min((s for s in (self.next_seconds, other.next_seconds) if s is not None), default=None),
            self.paused or other.paused,
        )


class DispatchStore(Protocol):
    """The part of the store that the dispatcher uses."""

    policy: Policy

    @property
    def notifies(self) -> bool: ...
    def step(
        self,
        lane: Lane,
        settlements: Sequence[Settlement],
        *,
        want: int,
        look_due: bool,
        eager: bool = False,
        committed: Committed | None = None,
    ) -> Step: ...
    def outlook(self, lane: Lane, *, stepped: bool = False) -> Outlook: ...
