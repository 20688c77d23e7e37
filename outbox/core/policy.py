"""The limits that the store and the dispatcher decide by. Built from the settings once."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from outbox.core.lane import LANES, Lane

MICROSECONDS = 1_000_000
MAX_RETRY_AFTER_SECONDS = 3600.0
"""A longer Retry-After is clamped to an hour."""


def is_due(at: int, now: int, max_wait: int) -> bool:
    """Whether ``at`` has come, or is more than ``max_wait`` after ``now``: nothing is dated so far ahead, so the clock
    was set back. All in microseconds; ``store.ledger.overdue`` is the same rule in SQL."""
    return at <= now or at > now + max_wait


@dataclass(frozen=True, slots=True)
class Policy:
    """Times in seconds, sizes in bytes; see the settings of the same names."""

    batch_max_rows: int = 1000
    batch_max_bytes: int | None = None
    """None: the lane's own default."""
    lease_seconds: float = 60.0
    request_timeout: float = 15.0
    backoff_base: float = 1.0
    backoff_max: float = 300.0
    attempts_limits: Mapping[Lane, int | None] = field(default_factory=dict)
    live_batches: int = 100
    """A lane with this many leased or waiting batches gets no new one."""
    young_hole_seconds: float = 0.03
    """A claim stops before a gap whose next row is younger than this: the transaction that took the missing number is
    probably about to commit."""
    hole_age_seconds: float = 3600.0
    """Age at which a hole is forgotten where the database cannot tell which transactions may still fill it."""

    def max_batch_bytes(self, lane: Lane) -> int:
        return self.batch_max_bytes or LANES[lane].max_batch_bytes

    def attempts_limit(self, lane: Lane) -> int | None:
        return self.attempts_limits.get(lane)

    @property
    def lease_us(self) -> int:
        return int(self.lease_seconds * MICROSECONDS)

    @property
    def max_wait_us(self) -> int:
        """Upper bound of a lease or a wait, in µs. A time further ahead counts as due: a clock jumped."""
        longest = max(self.lease_seconds, self.backoff_max, MAX_RETRY_AFTER_SECONDS)
        return int((longest + 60) * MICROSECONDS)


@dataclass(frozen=True, slots=True)
class Retention:
    """How long settled rows are kept, in seconds since they were settled.

    When the sent rows exceed ``max_bytes`` they are purged sooner, but not before ``at_least_seconds``.
    """

    sent_seconds: float
    receipts_seconds: float
    max_bytes: int
    at_least_seconds: float


@dataclass(frozen=True, slots=True)
class Bounds:
    """Upper bounds of what a telemetry lane may hold, live batches included. Beyond them the oldest entries above the
    cursor are shed."""

    entries: int
    size: int
    """Bytes of payload."""
    age_seconds: float
