"""A batch as the worker holds it, between claim and settle."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from uuid import UUID

from outbox.core.lane import Lane
from outbox.core.runs import Runs


@dataclass(frozen=True, slots=True)
class Batch:
    """A leased batch: its members never change, and it is sent as one request under one key."""

    id: UUID
    lane: Lane
    members: Runs
    rows: int
    payload_bytes: int
    attempts: int
    """Counted failures so far: the ``num_failed_send_attempts`` of its entries on the wire."""
    lease_token: UUID
    lease_deadline: float
    """On the clock ``boottime`` of this process: no POST starts after it."""
    ambiguous: bool
    """An earlier attempt may have reached beacon."""
    lines: str
    """The final JSON text of each entry, one per line, in order of ``seq``. Compact JSON contains no line break."""
    probe_until: int | None = None
    """Set if the batch is the probe of a paused lane: the ``next_probe_at`` that the claim wrote, until which the lane
    waits for the answer. The batch is the lane's probe as long as the lane's row still has this value; None: not a
    probe."""

    part: str = ""
    """Which part this is, as in "/2/1", of a batch of one envelope that is sent in parts; else empty."""

    @property
    def key(self) -> str:
        """The Idempotency-Key: every attempt to send the same content has the same key."""
        return f"{self.id}{self.part}"

    @property
    def payloads(self) -> Sequence[str]:
        """The text of each entry; ``len(payloads) == rows``."""
        return self.lines.split("\n")
