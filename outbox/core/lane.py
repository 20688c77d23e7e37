"""The four lanes: one endpoint, one log table, one health state each.

| lane    | path              | body                              | value class |
|---------|-------------------|-----------------------------------|-------------|
| usage   | /ingest-traces    | {"license", "trace_transactions"} | billing: never shed, never expires |
| metrics | /v1/metrics       | {"resourceMetrics": [...]}        | telemetry: sheds its oldest beyond its bounds |
| traces  | /v1/traces        | {"resourceSpans": [...]}          | telemetry |
| logs    | /v1/logs          | {"resourceLogs": [...]}           | telemetry |

Adding a lane is adding a row to ``LANES`` and a migration that makes its log.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from typing import Literal, get_args

Signal = Literal["metrics", "traces", "logs"]
SIGNALS: tuple[Signal, ...] = get_args(Signal)


class Lane(StrEnum):
    USAGE = "usage"
    METRICS = "metrics"
    TRACES = "traces"
    LOGS = "logs"


@dataclass(frozen=True, slots=True)
class LaneSpec:
    """The properties of one lane.

    ``max_payload_bytes`` limits one entry; ``max_batch_bytes`` is the default limit of a batch.
    """

    lane: Lane
    path: str
    root_key: str
    """The key of the body's array; telemetry payloads are ``{"<root_key>":[...]}``."""
    billing: bool
    """Entries are billing data: never shed, never expired."""
    max_payload_bytes: int
    max_batch_bytes: int
    table: str = field(init=False)
    """Name of its log table."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "table", f"outbox_{self.lane}")


_MIB = 1024 * 1024

LANES: dict[Lane, LaneSpec] = {
    spec.lane: spec
    for spec in (
        LaneSpec(Lane.USAGE, "/ingest-traces", "trace_transactions", True, 4096, 1 * _MIB),
        LaneSpec(Lane.METRICS, "/v1/metrics", "resourceMetrics", False, 4 * _MIB, 4 * _MIB),
        LaneSpec(Lane.TRACES, "/v1/traces", "resourceSpans", False, 4 * _MIB, 4 * _MIB),
        LaneSpec(Lane.LOGS, "/v1/logs", "resourceLogs", False, 4 * _MIB, 4 * _MIB),
    )
}
