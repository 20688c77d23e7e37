"""Input and output of ``judge``: an Answer or a Failure in, a Receipt out.

Answer ──┐
         ├─ judge (core/verdict.py) ─▶ Receipt(verdict, counted, reason, ...)
Failure ─┘
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum


class Verdict(StrEnum):
    """What an answer, or the lack of one, means for the batch."""

    DELIVERED = "delivered"
    REFUSED = "refused"
    """This body will never be accepted: the batch is halved; a batch of one is dead."""
    TOO_LARGE = "too_large"
    """The batch is halved and nothing is counted; a batch of one is dead."""
    UNAVAILABLE = "unavailable"
    """Not accepted for now: the same batch is sent again later."""
    AMBIGUOUS = "ambiguous"
    """Beacon may have accepted it: the same batch is sent again, under the same key."""
    MISCONFIGURED = "misconfigured"
    """The lane pauses, nothing is counted."""
    UNAUTHORIZED = "unauthorized"
    """Licence or token refused, also after one new verify: the lane pauses, nothing is counted."""
    INTERRUPTED = "interrupted"
    """Stopped before the request left: back to waiting, nothing is counted."""


@dataclass(frozen=True, slots=True)
class Answer:
    """An HTTP response. Header names are lower-case."""

    status: int
    headers: Mapping[str, str]
    body: bytes
    truncated: bool = False
    """The response was longer than the limit, or ended early. ``body`` is what was read."""


class Failure(StrEnum):
    """Why a request has no answer."""

    NOT_SENT = "not_sent"
    """Certainly not sent: DNS failure, connect failure, pool timeout."""
    LOST = "lost"
    """The request may have arrived: read or write error, or the deadline passed after it began to leave."""
    INTERRUPTED = "interrupted"
    """Stopped before the request left."""


@dataclass(frozen=True, slots=True)
class Receipt:
    """The result of sending one batch once: everything that the settle needs and that an operator is shown."""

    verdict: Verdict
    counted: bool
    """Whether the attempt counts into ``num_failed_send_attempts``."""
    reason: str
    """One sentence for the operator: what beacon answered. Contains no secret."""
    status: int | None = None
    retry_after_seconds: float | None = None
    """0..3600; it delays the whole lane, not only the batch."""
    inserted_count: int | None = None
    shortfall: int = 0
    """Usage rows sent minus rows inserted, if the verdict is delivered."""
    rejected: int = 0
    """Items rejected by an OTLP partialSuccess. They are recorded and never sent again."""
    warning: str | None = None
    """OTLP partialSuccess message."""
    excerpt: str = ""
    """The beginning of the response body as printable text, at most 500 characters."""
    body_sha256: str | None = None
    """Hex digest of the request body before compression. Of an envelope sent in parts: of the whole body."""
    taken_in_part: bool = False
    """Beacon accepted some parts, but not all, of an envelope that is too large for it."""
    left: bool = False
    """Although there is no answer, something may have been sent: beacon, or a proxy before it, was reached."""

    @property
    def untried(self) -> bool:
        """The batch was leased but not sent, so there is no news of it."""
        return self.verdict is Verdict.INTERRUPTED and not self.reason

    @property
    def remark(self) -> str | None:
        """What an operator should know about a delivered batch; None: beacon accepted all of it without a message."""
        if self.verdict is not Verdict.DELIVERED or not (self.rejected or self.shortfall or self.warning):
            return None
        return f"{self.reason}: {self.warning}" if self.warning else self.reason

    @property
    def unreached(self) -> bool:
        """There is no answer, and certainly nothing was sent: beacon has not seen the batch."""
        return self.verdict is Verdict.UNAVAILABLE and self.status is None and not self.left
