"""Usage messages that differ only by their id."""

from __future__ import annotations

from uuid import UUID, uuid4

from outbox import UsageInterval

_TENANT = "0190a0a0-0000-7000-8000-000000000001"


def interval(id: UUID | None = None, trace_count: int = 1) -> UsageInterval:
    return UsageInterval(
        id=id or uuid4(),
        tenant_id=_TENANT,
        session_id=_TENANT,
        trace_count=trace_count,
        start_insertion_time="2025-01-06T10:00:00Z",
        end_insertion_time="2025-01-06T10:05:00Z",
        start_interval_time="2025-01-06T10:00:00Z",
        end_interval_time="2025-01-06T10:05:00Z",
        transaction_type="longlived_traces",
        organization_id=_TENANT,
    )


def intervals(n: int) -> list[UsageInterval]:
    return [interval() for _ in range(n)]
