"""What passes between the dispatcher and the store, a step at a time."""

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
    """Entries that a producer of this process has just committed: whoever claims them need not read them."""

    first: int
    """Number of the first; those of the others follow without a gap."""
    payloads: Sequence[str]
    at: float
    """Of ``boottime``, after the commit."""

    @staticmethod
    def joined(parts: Sequence[Committed | None]) -> Committed | None:
        """All of them as one. None: something else was committed, too, or a number is missing between them."""
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
    """A batch that was sent, and what came of it."""

    batch: Batch
    receipt: Receipt
    seconds: float = 0.0
    """From the send to its answer."""


@dataclass(slots=True)
class Settled:
    """What one group of settlements did. Counts of entries, but ``batches`` and ``lost``."""

    batches: int = 0
    sent: int = 0
    failed: int = 0
    dead: int = 0
    lost: list[UUID] = field(default_factory=list)
    """Batches whose lease was gone: nothing was changed for them."""

    def add(self, other: Settled) -> None:
        self.batches += other.batches
        self.sent += other.sent
        self.failed += other.failed
        self.dead += other.dead
        self.lost += other.lost


@dataclass(slots=True)
class Step:
    """What one step of a lane did: settled a group, and leased the next batches."""

    batches: Sequence[Batch] = ()
    settled: Settled = field(default_factory=Settled)
    emptied: bool = False
    """The claim saw that no entry is left above the cursor, or was given all that its caller knew of."""


@dataclass(frozen=True, slots=True)
class Outlook:
    """What waits in a lane, by one read. Seconds until the next timer; None: no timer runs."""

    ready: bool
    next_seconds: float | None
    paused: bool = False
    """The lane is off or stopped, or something waits for its probe: what is committed changes nothing until then."""


@dataclass(frozen=True, slots=True)
class DispatchReport:
    """What a tick did. Counts of entries, but ``batches`` counts requests settled."""

    sent: int = 0
    failed: int = 0
    """Entries whose attempt failed and is counted; they wait for the next."""
    dead: int = 0
    batches: int = 0
    more: bool = False
    """Something can be sent right now."""
    next_seconds: float | None = None
    """Until the next timer: a retry, a probe, an expiring lease. None: no timer runs."""
    paused: bool = False
    """A lane waits for its probe: nothing of it leaves before that timer, whatever is committed."""

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
    """What the dispatcher needs of the store."""

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
