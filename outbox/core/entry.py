"""What a reader of the outbox sees: an entry, a dead letter, a lane."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

from outbox.core.health import LaneState
from outbox.core.lane import Lane
from outbox.core.lifecycle import Status

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def moment(micros: int | None) -> datetime | None:
    """The aware UTC datetime of ``micros`` since the epoch."""
    return None if micros is None else EPOCH + timedelta(microseconds=micros)


def micros(when: datetime) -> int:
    """Microseconds since the epoch of an aware datetime. Raises ValueError for a naive one."""
    if when.tzinfo is None:
        raise ValueError(f"{when.isoformat()} has no time zone")
    return (when - EPOCH) // timedelta(microseconds=1)


@dataclass(frozen=True, slots=True)
class EntryView:
    """One entry, with the batch that holds it."""

    id: UUID
    lane: Lane
    seq: int
    """Has meaning only inside one database."""
    status: Status
    num_failed_send_attempts: int
    created_at: datetime
    settled_at: datetime | None
    last_error: str | None
    batch_id: UUID | None
    """The Idempotency-Key that it travels or travelled under; None while pending."""
    maybe_delivered: bool
    """An answer was lost: beacon may have the entry although it is not sent."""
    next_attempt_at: datetime | None
    receipt: Mapping[str, Any] | None
    """What beacon answered last: verdict, status, reason, excerpt, body_sha256."""
    payload: str


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """One dead entry."""

    id: UUID
    lane: Lane
    batch_id: UUID
    died_at: datetime
    num_failed_send_attempts: int
    maybe_delivered: bool
    last_error: str | None
    trace_count: int | None
    """Of a usage entry; None on the telemetry lanes."""


@dataclass(frozen=True, slots=True)
class DeadCounts:
    """Dead letters of one lane: how many, and the traces they count."""

    entries: int
    trace_count: int


def state_and_reason(state: str, reason: str | None) -> str:
    return f"{state}: {reason}" if reason else state


@dataclass(frozen=True, slots=True)
class LaneStatus:
    """Counts of entries; see ``outbox status``."""

    state: str
    reason: str | None
    pending: int
    in_flight: int
    waiting: int
    sent: int
    dead: int
    shed: int
    oldest_pending_seconds: float | None
    failed_attempts: int
    """Attempts counted so far, of all batches."""
    senders: int
    """Batches that workers hold now: on the wire, or next to leave."""
    strays: int
    """Rows that only the auditor found."""
    next_probe_seconds: float | None
    """While paused: until a batch may probe. None while paused: it needs mending."""
    rejected: int = 0
    """Spans, data points and log records of delivered batches that beacon says it rejected. They are not sent again."""
    shortfall: int = 0
    """Usage rows of delivered batches beyond beacon's ``inserted_count``: it had them already, or did not take them."""
    last_warning: str | None = None
    """What beacon said last of a delivered batch that it did not take as a whole, or took with a message."""
    last_warning_at: datetime | None = None
    removed: int = 0
    """Attributes, fields and parts of them taken out of telemetry before it was stored; see ``outbox preview``."""

    @property
    def unfinished(self) -> int:
        return self.pending + self.in_flight + self.waiting

    @property
    def stopped(self) -> bool:
        """Paused until an operator mends it: the log contradicts the ledger."""
        return self.state == LaneState.PAUSED and self.next_probe_seconds is None

    @property
    def why(self) -> str:
        """The state, and the reason if there is one."""
        return state_and_reason(self.state, self.reason)


@dataclass(frozen=True, slots=True)
class SchemaStatus:
    current: str | None
    head: str


@dataclass(frozen=True, slots=True)
class LicenseStatus:
    """Whether a licence is configured, and what is known of its token. Never the licence."""

    present: bool
    offline: bool


@dataclass(frozen=True, slots=True)
class OutboxStatus:
    """What ``outbox status --output json`` prints."""

    lanes: Mapping[str, LaneStatus]
    license: LicenseStatus
    schema: SchemaStatus

    @property
    def unfinished(self) -> int:
        return sum(lane.unfinished for lane in self.lanes.values())
