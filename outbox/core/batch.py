"""A batch as the worker holds it, between claim and settle."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from uuid import UUID

from outbox.core.lane import Lane
from outbox.core.runs import Runs


@dataclass(frozen=True, slots=True)
class Batch:
    """A leased batch: frozen members, one request, one key."""

    id: UUID
    lane: Lane
    members: Runs
    rows: int
    payload_bytes: int
    attempts: int
    """Counted failures so far: the ``num_failed_send_attempts`` of its entries on the wire."""
    lease_token: UUID
    lease_deadline: float
    """Of ``boottime``, in this process: no POST starts after it."""
    ambiguous: bool
    """An earlier attempt may have reached beacon."""
    lines: str
    """Final JSON text of each entry, in order of seq, a line each: compact JSON holds no line break."""
    probe_until: int | None = None
    """Sent to a paused lane to see whether beacon is back, and how long the lane waits for its answer: its
    ``next_probe_at``. While that stands this is the lane's probe; None: it is none."""

    part: str = ""
    """Of a batch of one envelope that is sent in parts: which of them this is, as in "/2/1"."""

    @property
    def key(self) -> str:
        """The Idempotency-Key: the same whenever the same is sent."""
        return f"{self.id}{self.part}"

    @property
    def payloads(self) -> Sequence[str]:
        """The text of each entry; ``len(payloads) == rows``."""
        return self.lines.split("\n")
