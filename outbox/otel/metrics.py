"""Metrics of the SDK as OTLP/JSON."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

from opentelemetry.sdk.metrics import Exemplar
from opentelemetry.sdk.metrics.export import (
    ExponentialHistogram,
    ExponentialHistogramDataPoint,
    Gauge,
    Histogram,
    HistogramDataPoint,
    Metric,
    NumberDataPoint,
    Sum,
)

from outbox.otel.values import Json, attributes, double, nanoseconds, number, span_id, text, trace_id

Point = NumberDataPoint | HistogramDataPoint | ExponentialHistogramDataPoint


def metric_json(metric: Metric) -> Json:
    """A Metric of metrics/v1. Raises TypeError for a kind that OTLP does not have."""
    out: Json = {"name": text(metric.name)}
    if metric.description:
        out["description"] = text(metric.description)
    if metric.unit:
        out["unit"] = text(metric.unit)
    kind, body = _data(metric.data)
    return out | {kind: body}


def points_of(metric: Json) -> list[Json]:
    """The data points of a written metric."""
    points: list[Json] = next(body["dataPoints"] for body in metric.values() if isinstance(body, dict))
    return points


def halves(metric: Json) -> Iterator[Json]:
    """The same metric twice, with half of its data points each."""
    [(kind, body)] = [(key, value) for key, value in metric.items() if isinstance(value, dict)]
    points = body["dataPoints"]
    middle = len(points) // 2
    for some in (points[:middle], points[middle:]):
        yield metric | {kind: body | {"dataPoints": some}}


def _data(data: Any) -> tuple[str, Json]:
    match data:
        case Gauge():
            return "gauge", {"dataPoints": [_number_point(point) for point in data.data_points]}
        case Sum():
            points = [_number_point(point) for point in data.data_points]
            return "sum", _temporal(data, points) | {"isMonotonic": bool(data.is_monotonic)}
        case Histogram():
            return "histogram", _temporal(data, [_histogram_point(point) for point in data.data_points])
        case ExponentialHistogram():
            return "exponentialHistogram", _temporal(data, [_exponential_point(point) for point in data.data_points])
    raise TypeError(f"OTLP has no metric of kind {type(data).__name__}")


def _temporal(data: Sum | Histogram | ExponentialHistogram, points: list[Json]) -> Json:
    return {"dataPoints": points, "aggregationTemporality": int(data.aggregation_temporality)}


def _number_point(point: NumberDataPoint) -> Json:
    return _common(point) | number(point.value) | _exemplars(point)


def _histogram_point(point: HistogramDataPoint) -> Json:
    out = _common(point) | _counted(point)
    out["bucketCounts"] = [str(count) for count in point.bucket_counts]
    out["explicitBounds"] = [double(bound) for bound in point.explicit_bounds]
    return out | _extremes(point) | _exemplars(point)


def _exponential_point(point: ExponentialHistogramDataPoint) -> Json:
    out = _common(point) | _counted(point)
    out |= {"scale": point.scale, "zeroCount": str(point.zero_count)}
    for sign, buckets in (("positive", point.positive), ("negative", point.negative)):
        if buckets.bucket_counts:
            counts = [str(count) for count in buckets.bucket_counts]
            out[sign] = {"offset": buckets.offset, "bucketCounts": counts}
    if point.flags:
        out["flags"] = point.flags
    return out | _extremes(point) | _exemplars(point)


def _common(point: Point) -> Json:
    out: Json = {}
    if point.attributes:
        out["attributes"] = attributes(point.attributes)
    if point.start_time_unix_nano:
        out["startTimeUnixNano"] = nanoseconds(point.start_time_unix_nano)
    out["timeUnixNano"] = nanoseconds(point.time_unix_nano)
    return out


def _counted(point: HistogramDataPoint | ExponentialHistogramDataPoint) -> Json:
    return {"count": str(point.count), "sum": double(point.sum)}


def _extremes(point: HistogramDataPoint | ExponentialHistogramDataPoint) -> Json:
    """Minimum and maximum. The SDK has infinities where it did not record them; these are left out."""
    return {
        name: double(value)
        for name, value in (("min", point.min), ("max", point.max))
        if value is not None and not math.isinf(value)
    }


def _exemplars(point: Point) -> Json:
    return {"exemplars": [_exemplar(each) for each in point.exemplars]} if point.exemplars else {}


def _exemplar(exemplar: Exemplar) -> Json:
    out: Json = {"timeUnixNano": nanoseconds(exemplar.time_unix_nano)} | number(exemplar.value)
    if exemplar.filtered_attributes:
        out["filteredAttributes"] = attributes(exemplar.filtered_attributes)
    if exemplar.span_id:
        out["spanId"] = span_id(exemplar.span_id)
    if exemplar.trace_id:
        out["traceId"] = trace_id(exemplar.trace_id)
    return out
