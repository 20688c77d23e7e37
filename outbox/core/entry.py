"""Read-only views of the outbox: an entry, a dead letter, the status of a lane."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

from outbox.core.health import LaneState
from outbox.core.lane import Lane
from outbox.core.lifecycle import BatchState, Status

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def moment(micros: int | None) -> datetime | None:
    """The aware UTC datetime of ``micros`` since the epoch; None for None."""
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
    """Sequence number in the lane's log, meaningful only inside one database."""
    status: Status
    num_failed_send_attempts: int
    created_at: datetime
    settled_at: datetime | None
    last_error: str | None
    batch_id: UUID | None
    """The batch's id, which is its Idempotency-Key; None while the entry is in no batch."""
    batch_state: BatchState | None
    batch_entries: int | None
    """Entries of the batch, which share its attempts and its answer."""
    batch_attempts: int | None
    maybe_delivered: bool
    """An answer was lost: beacon may have the entry although its status is not sent."""
    next_attempt_at: datetime | None
    """When the batch is due, while it waits."""
    receipt: Mapping[str, Any] | None
    """Beacon's last answer: verdict, status, reason, excerpt, body_sha256."""
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
    """The ``trace_count`` of a usage entry; None on telemetry lanes."""


@dataclass(frozen=True, slots=True)
class DeadCounts:
    """The number of dead letters of one lane, and the sum of their ``trace_count``."""

    entries: int
    trace_count: int


def state_and_reason(state: str, reason: str | None) -> str:
    return f"{state}: {reason}" if reason else state


@dataclass(frozen=True, slots=True)
class LaneStatus:
    """The status of one lane, as ``outbox status`` prints it. Counts are of entries unless said otherwise."""

    state: str
    reason: str | None
    pending: int
    in_flight: int
    waiting: int
    sent: int
    dead: int
    shed: int
    oldest_pending_seconds: float | None
    """The age of the oldest entry to be delivered, be it pending, in flight or waiting; None: there is none."""
    failed_attempts: int
    """Failed attempts counted so far, of all batches."""
    senders: int
    """Batches that workers hold now: in flight, or the next to be sent."""
    strays: int
    """Rows that only the auditor found."""
    next_probe_seconds: float | None
    """While paused: seconds until a probe may leave; None: the lane is stopped until it is mended."""
    rejected: int = 0
    """Spans, data points and log records of delivered batches that beacon rejected (OTLP partialSuccess). They are not
    sent again."""
    shortfall: int = 0
    """Usage rows of delivered batches beyond ``inserted_count``: beacon had them already or did not store them."""
    last_warning: str | None = None
    """Beacon's latest remark on a delivered batch: it did not accept all of it, or added a message."""
    last_warning_at: datetime | None = None
    removed: int = 0
    """Attributes, fields and parts of them removed from telemetry before it was stored; see ``outbox preview``."""

    @property
    def unfinished(self) -> int:
        """Entries that are still to be sent."""
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
    """Alembic revisions of the database (None: no schema) and of this version of the code."""

    current: str | None
    head: str


@dataclass(frozen=True, slots=True)
class LicenseStatus:
    """Whether a licence is configured and whether the process is offline. Never the licence itself."""

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
