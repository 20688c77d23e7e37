"""Telemetry of the SDK, made by hypothesis: more kinds of it than any application has."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import opentelemetry.sdk._logs as sdk_logs
from hypothesis import strategies as st
from opentelemetry._logs import SeverityNumber
from opentelemetry.sdk.metrics import Exemplar
from opentelemetry.sdk.metrics import export as sdk
from opentelemetry.sdk.metrics.export import Buckets
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import Event, ReadableSpan
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.trace import Link, SpanContext, SpanKind, Status, StatusCode, TraceFlags, TraceState

texts = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\x00"), max_size=12)
names = st.text("abcdefghij.é", min_size=1, max_size=8)
floats = st.floats(allow_nan=False, allow_infinity=False)
scalars = texts | st.booleans() | st.integers(-(2**63), 2**63 - 1) | floats
times = st.integers(1, 2**63)
counts = st.integers(0, 2**53)
values: st.SearchStrategy[Any] = (
    scalars | st.lists(texts, max_size=3) | st.lists(floats, max_size=3) | st.binary(max_size=5)
)
attributes = st.dictionaries(names, values, max_size=3)
nested = st.recursive(
    scalars | st.binary(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(names, inner, max_size=3),
    max_leaves=6,
)

RESOURCES = [
    Resource({"service.name": "shop", "ports": (80, 443), "ratio": 0.5}),
    Resource({"service.name": "bücher"}, "https://opentelemetry.io/schemas/1.20.0"),
    Resource({}),
]
SCOPES = [
    InstrumentationScope("shop.orders", "1.2"),
    InstrumentationScope("shop.paying", None, "https://opentelemetry.io/schemas/1.21.0", {"a": 1}),
    InstrumentationScope("bare"),
]
resources = st.sampled_from(RESOURCES)
scopes = st.sampled_from(SCOPES)

contexts = st.builds(
    SpanContext,
    trace_id=st.integers(1, 2**128 - 1),
    span_id=st.integers(1, 2**64 - 1),
    is_remote=st.booleans(),
    trace_flags=st.sampled_from([TraceFlags(0), TraceFlags(1)]),
    trace_state=st.sampled_from([TraceState(), TraceState([("a", "1"), ("b", "2")])]),
)
statuses = st.just(Status(StatusCode.OK)) | st.builds(Status, st.just(StatusCode.ERROR), texts) | st.just(Status())
events = st.builds(Event, name=texts, attributes=attributes, timestamp=times)
links = st.builds(Link, contexts, attributes)
spans: st.SearchStrategy[ReadableSpan] = st.builds(
    ReadableSpan,
    name=texts,
    context=contexts,
    parent=st.none() | contexts,
    resource=resources,
    attributes=attributes,
    events=st.lists(events, max_size=2),
    links=st.lists(links, max_size=2),
    kind=st.sampled_from(SpanKind),
    status=statuses,
    start_time=times,
    end_time=times,
    instrumentation_scope=scopes,
)


def log_data(scope: InstrumentationScope | None, resource: Resource, **fields: Any) -> Any:
    """What a log exporter is handed: the SDK renamed it in 1.39."""
    if not hasattr(sdk_logs, "ReadableLogRecord"):
        return sdk_logs.LogData(sdk_logs.LogRecord(resource=resource, **fields), scope)
    from opentelemetry._logs import LogRecord

    context = {name: fields.pop(name) for name in ("trace_id", "span_id", "trace_flags") if name in fields}
    record = LogRecord(**fields)
    for name, value in context.items():
        setattr(record, name, value)
    return sdk_logs.ReadableLogRecord(record, resource, scope)


logs = st.builds(
    log_data,
    scopes,
    resources,
    timestamp=times,
    observed_timestamp=times,
    trace_id=st.just(0) | st.integers(1, 2**128 - 1),
    span_id=st.just(0) | st.integers(1, 2**64 - 1),
    trace_flags=st.sampled_from([TraceFlags(0), TraceFlags(1)]),
    severity_text=texts,
    severity_number=st.sampled_from(SeverityNumber),
    body=nested,
    attributes=attributes,
)

exemplars = st.lists(
    st.builds(
        Exemplar,
        filtered_attributes=attributes,
        value=floats | st.integers(-(2**63), 2**63 - 1),
        time_unix_nano=times,
        span_id=st.integers(1, 2**64 - 1),
        trace_id=st.integers(1, 2**128 - 1),
    ),
    max_size=1,
)
number_points = st.builds(
    sdk.NumberDataPoint,
    attributes=attributes,
    start_time_unix_nano=times,
    time_unix_nano=times,
    value=floats | st.integers(-(2**63), 2**63 - 1),
    exemplars=exemplars,
)
histogram_points = st.builds(
    sdk.HistogramDataPoint,
    attributes=attributes,
    start_time_unix_nano=times,
    time_unix_nano=times,
    count=counts,
    sum=floats,
    bucket_counts=st.lists(counts, max_size=4),
    explicit_bounds=st.lists(floats, max_size=4),
    min=floats,
    max=floats,
    exemplars=exemplars,
)
buckets = st.builds(Buckets, offset=st.integers(-50, 50), bucket_counts=st.lists(counts, max_size=4))
exponential_points = st.builds(
    sdk.ExponentialHistogramDataPoint,
    attributes=attributes,
    start_time_unix_nano=times,
    time_unix_nano=times,
    count=counts,
    sum=floats,
    scale=st.integers(-10, 20),
    zero_count=counts,
    positive=buckets,
    negative=buckets,
    flags=st.just(0),
    min=floats,
    max=floats,
    exemplars=exemplars,
)
temporalities = st.sampled_from(sdk.AggregationTemporality)
gauges = st.builds(sdk.Gauge, st.lists(number_points, min_size=1, max_size=2))
sums = st.builds(sdk.Sum, st.lists(number_points, min_size=1, max_size=2), temporalities, st.booleans())
histograms = st.builds(sdk.Histogram, st.lists(histogram_points, min_size=1, max_size=2), temporalities)
exponentials = st.builds(sdk.ExponentialHistogram, st.lists(exponential_points, min_size=1, max_size=2), temporalities)
metrics = st.builds(sdk.Metric, names, texts, texts, gauges | sums | histograms | exponentials)


def metrics_data(resource: Resource, scope: InstrumentationScope, metrics: Sequence[sdk.Metric]) -> sdk.MetricsData:
    of_scope = sdk.ScopeMetrics(scope, metrics, scope.schema_url or "")
    return sdk.MetricsData([sdk.ResourceMetrics(resource, [of_scope], resource.schema_url)])


collections = st.builds(metrics_data, resources, scopes, st.lists(metrics, min_size=1, max_size=2))
