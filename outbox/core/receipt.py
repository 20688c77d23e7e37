"""What goes into a judgement and what comes out of it: Answer or Failure in, Receipt out.

Answer ──┐
         ├─ judge (core/verdict.py) ─▶ Receipt(verdict, counted, reason, ...)
Failure ─┘
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum


class Verdict(StrEnum):
    DELIVERED = "delivered"
    REFUSED = "refused"
    """This body will never be accepted: halve; a batch of one is dead."""
    TOO_LARGE = "too_large"
    """Halve without counting; a batch of one is dead."""
    UNAVAILABLE = "unavailable"
    """Not taken, try the same batch again later."""
    AMBIGUOUS = "ambiguous"
    """Beacon may have taken it: the same batch again, under the same key."""
    MISCONFIGURED = "misconfigured"
    """The lane pauses, nothing is counted."""
    UNAUTHORIZED = "unauthorized"
    """Licence or token refused, after one re-verify: the lane pauses, nothing is counted."""
    INTERRUPTED = "interrupted"
    """Stopped before the request left: back to waiting, nothing is counted."""


@dataclass(frozen=True, slots=True)
class Answer:
    """An HTTP answer as read from the wire. Header names are lower-case."""

    status: int
    headers: Mapping[str, str]
    body: bytes
    truncated: bool = False
    """The answer was longer than the cap, or ended early: ``body`` is what was read."""


class Failure(StrEnum):
    """A request without an answer."""

    NOT_SENT = "not_sent"
    """Certainly not sent: DNS, connect, pool timeout."""
    LOST = "lost"
    """The request may have arrived: read or write error, deadline after it left."""
    INTERRUPTED = "interrupted"
    """Stopped before the request left."""


@dataclass(frozen=True, slots=True)
class Receipt:
    """What came of sending one batch once: all that settling needs, all that an operator is shown."""

    verdict: Verdict
    counted: bool
    """Whether the attempt counts into ``num_failed_send_attempts``."""
    reason: str
    """One sentence for a person: what beacon said. Never a secret."""
    status: int | None = None
    retry_after_seconds: float | None = None
    """0..3600; the lane waits, not only the batch."""
    inserted_count: int | None = None
    shortfall: int = 0
    """Usage rows sent less rows inserted, on a delivered answer."""
    rejected: int = 0
    """OTLP partialSuccess rejections: recorded, never resent."""
    warning: str | None = None
    """OTLP partialSuccess message."""
    excerpt: str = ""
    """The head of the answer's body as printable text, at most 500 characters."""
    body_sha256: str | None = None
    """Hex digest of the request body that was sent; of an envelope sent in parts, as it would be in one."""
    taken_in_part: bool = False
    """Beacon took some parts of an envelope that is too large for it, and not all."""
    left: bool = False
    """Of no answer: something may have left all the same, so that beacon, or what stands before it, was reached."""

    @property
    def untried(self) -> bool:
        """Nothing is known anew: the batch was leased and its turn did not come."""
        return self.verdict is Verdict.INTERRUPTED and not self.reason

    @property
    def remark(self) -> str | None:
        """What an operator should hear of a delivered batch; None: beacon took all of it without a word."""
        if self.verdict is not Verdict.DELIVERED or not (self.rejected or self.shortfall or self.warning):
            return None
        return f"{self.reason}: {self.warning}" if self.warning else self.reason

    @property
    def unreached(self) -> bool:
        """No answer, and certainly nothing sent: beacon knows nothing of the batch."""
        return self.verdict is Verdict.UNAVAILABLE and self.status is None and not self.left
