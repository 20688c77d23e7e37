"""The rows of the benchmarks: usage rows as in beacon's document, about 500 bytes of JSON each."""

from __future__ import annotations

from collections.abc import Sequence
from uuid import UUID

import uuid_utils

from outbox import UsageInterval

AT = "2025-01-06T10:00:00Z"
ONE = "0190a0a0-0000-7000-8000-000000000001"


def messages(count: int) -> list[UsageInterval]:
    return [
        UsageInterval(
            tenant_id=ONE,
            session_id=ONE,
            organization_id=ONE,
            transaction_type="longlived_traces",
            trace_count=7,
            start_insertion_time=AT,
            end_insertion_time=AT,
            start_interval_time=AT,
            end_interval_time=AT,
        )
        for _ in range(count)
    ]


_TEMPLATE = messages(1)[0]
_BEFORE, _AFTER = _TEMPLATE.payload.split(str(_TEMPLATE.id))


def prepared(count: int, payload_bytes: int = 0) -> Sequence[tuple[UUID, str]]:
    """Ids and stored payloads, equal to those of ``messages``, without the cost of building messages.

    ``payload_bytes``: the size of each payload; a transaction type that long is made up. By default as it is.
    """
    more = "x" * max(0, payload_bytes - len(_TEMPLATE.payload))
    after = _AFTER.replace(_TEMPLATE.transaction_type, _TEMPLATE.transaction_type + more)
    ids = [UUID(bytes=uuid_utils.uuid7().bytes) for _ in range(count)]
    return [(id, f"{_BEFORE}{id}{after}") for id in ids]
