"""The schema of each endpoint's body, and the number of items in a body.

Usage rows are checked field by field: exactly the twelve fields of beacon's document. Of telemetry only the structure
is checked: resources, scopes and items are objects in arrays. The contents of items are not checked, because beacon's
own examples deviate from OTLP there.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from typing import Annotated, Any, TypeVar

import msgspec
from msgspec import Meta, Struct

from outbox.core.lane import LANES, Lane

Body = TypeVar("Body")
Id = Annotated[str, Meta(min_length=36, max_length=36)]
Count = Annotated[int, Meta(ge=0)]
Time = Annotated[datetime, Meta(tz=True)]


class BodyError(Exception):
    """A body does not match the schema of its endpoint. ``path`` is JSONPath: ``$.trace_transactions[3]``."""

    def __init__(self, reason: str, path: str) -> None:
        self.reason = reason
        self.path = path
        super().__init__(f"{path}: {reason}")


class VerifyBody(Struct, forbid_unknown_fields=True):
    license: str


class UsageRow(Struct, forbid_unknown_fields=True, gc=False):
    id: Id
    tenant_id: Id
    session_id: Id
    trace_count: Count
    start_insertion_time: Time
    end_insertion_time: Time
    start_interval_time: Time
    end_interval_time: Time
    status: str
    num_failed_send_attempts: Count
    transaction_type: str
    organization_id: Id


class UsageBody(Struct, forbid_unknown_fields=True):
    license: str
    trace_transactions: list[UsageRow]


class LaxUsageRow(Struct, gc=False):
    """Only the fields that the record needs, for benchmarks that the full check would slow down."""

    id: str
    num_failed_send_attempts: int


class LaxUsageBody(Struct):
    license: str
    trace_transactions: list[LaxUsageRow]


class _Item(Struct, gc=False):
    """Any object."""


class _Data(Struct, rename="camel"):
    data_points: list[_Item] = []


class _Metric(Struct, rename="camel"):
    gauge: _Data | None = None
    sum: _Data | None = None
    histogram: _Data | None = None
    exponential_histogram: _Data | None = None
    summary: _Data | None = None


class _ScopeMetrics(Struct):
    metrics: list[_Metric] = []


class _ResourceMetrics(Struct, rename="camel"):
    scope_metrics: list[_ScopeMetrics] = []


class _MetricsBody(Struct, rename="camel", forbid_unknown_fields=True):
    resource_metrics: list[_ResourceMetrics]


class _ScopeSpans(Struct):
    spans: list[_Item] = []


class _ResourceSpans(Struct, rename="camel"):
    scope_spans: list[_ScopeSpans] = []


class _TracesBody(Struct, rename="camel", forbid_unknown_fields=True):
    resource_spans: list[_ResourceSpans]


class _ScopeLogs(Struct, rename="camel"):
    log_records: list[_Item] = []


class _ResourceLogs(Struct, rename="camel"):
    scope_logs: list[_ScopeLogs] = []


class _LogsBody(Struct, rename="camel", forbid_unknown_fields=True):
    resource_logs: list[_ResourceLogs]


_verify = msgspec.json.Decoder(VerifyBody)
_usage = msgspec.json.Decoder(UsageBody)
_lax_usage = msgspec.json.Decoder(LaxUsageBody)
_metrics = msgspec.json.Decoder(_MetricsBody)
_traces = msgspec.json.Decoder(_TracesBody)
_logs = msgspec.json.Decoder(_LogsBody)
_patch = msgspec.json.Decoder(dict[str, Any])
_anything = msgspec.json.Decoder()


def read_verify(body: bytes) -> str:
    """The licence in the body of a verify request. Raises BodyError."""
    return _decoded(_verify.decode, body).license


def read_usage(body: bytes, *, strict: bool) -> UsageBody | LaxUsageBody:
    """The body of a usage request. Raises BodyError, which names every extra and missing field of the first bad row."""
    if not strict:
        return _decoded(_lax_usage.decode, body)
    try:
        return _decoded(_usage.decode, body)
    except BodyError as error:
        raise _row_by_row(body) or error from None


def read_patch(body: bytes) -> dict[str, Any]:
    """The faults by name in the body of ``POST /_simulator``. Raises BodyError."""
    return _decoded(_patch.decode, body)


def read_telemetry(lane: Lane, body: bytes) -> int:
    """The number of data points, spans or log records in the body of a telemetry request. Raises BodyError."""
    match lane:
        case Lane.METRICS:
            return _count_metrics(_decoded(_metrics.decode, body))
        case Lane.TRACES:
            spans = _decoded(_traces.decode, body).resource_spans
            return sum(len(s.spans) for r in spans for s in r.scope_spans)
        case Lane.LOGS:
            logs = _decoded(_logs.decode, body).resource_logs
            return sum(len(s.log_records) for r in logs for s in r.scope_logs)
    raise AssertionError(f"{lane} is not a telemetry lane")


def _decoded(decode: Callable[[bytes], Body], body: bytes) -> Body:
    try:
        return decode(body)
    except msgspec.ValidationError as error:
        reason, _, path = str(error).partition(" - at `")
        raise BodyError(reason, path.rstrip("`") or "$") from None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise BodyError(str(error), "$") from None
    except RecursionError:
        raise BodyError("JSON is nested too deeply", "$") from None


def _count_metrics(body: _MetricsBody) -> int:
    metrics = [m for r in body.resource_metrics for s in r.scope_metrics for m in s.metrics]
    kinds = [
        kind
        for m in metrics
        for kind in (m.gauge, m.sum, m.histogram, m.exponential_histogram, m.summary)
        if kind is not None
    ]
    return sum(len(kind.data_points) for kind in kinds)


_ROW_FIELDS = frozenset(UsageRow.__struct_fields__)


def _row_by_row(body: bytes) -> BodyError | None:
    """An error that names every extra and missing field of the first bad row. None if all field names are right."""
    try:
        document: Any = _decoded(_anything.decode, body)
    except BodyError:
        return None
    root_key = LANES[Lane.USAGE].root_key
    rows = document.get(root_key) if isinstance(document, dict) else None
    for index, row in enumerate(rows if isinstance(rows, list) else ()):
        if not isinstance(row, dict) or row.keys() == _ROW_FIELDS:
            continue
        names = [f"{name} is missing" for name in UsageRow.__struct_fields__ if name not in row]
        names += [f"{name} is not a field" for name in row if name not in _ROW_FIELDS]
        return BodyError("; ".join(names), f"$.{root_key}[{index}]")
    return None
