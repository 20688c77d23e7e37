"""The messages of OTLP as tables, after opentelemetry-proto 1.x: field name -> kind.

A kind is one of

    string bool double bytes            as in JSON; bytes are base64
    uint32 int32                        numbers
    uint64 int64                        decimal text, since JSON's numbers end at 2**53
    trace id, span id, ... or empty     hex digits
    a name from ENUMS                   an integer
    a name from MESSAGES                an object
    [kind]                              an array of it

A new field or signal is a new line here; ``otlp_check`` turns the tables into functions.
"""

from __future__ import annotations

MESSAGES: dict[str, dict[str, str]] = {
    # The document of each signal: exactly one key, not empty.
    "metrics": {"resourceMetrics": "[ResourceMetrics]"},
    "traces": {"resourceSpans": "[ResourceSpans]"},
    "logs": {"resourceLogs": "[ResourceLogs]"},
    # common/v1, resource/v1
    "AnyValue": {
        "stringValue": "string",
        "boolValue": "bool",
        "intValue": "int64",
        "doubleValue": "double",
        "arrayValue": "ArrayValue",
        "kvlistValue": "KeyValueList",
        "bytesValue": "bytes",
    },
    "ArrayValue": {"values": "[AnyValue]"},
    "KeyValueList": {"values": "[KeyValue]"},
    "KeyValue": {"key": "string", "value": "AnyValue"},
    "InstrumentationScope": {
        "name": "string",
        "version": "string",
        "attributes": "[KeyValue]",
        "droppedAttributesCount": "uint32",
    },
    "EntityRef": {
        "schemaUrl": "string",
        "type": "string",
        "idKeys": "[string]",
        "descriptionKeys": "[string]",
    },
    "Resource": {
        "attributes": "[KeyValue]",
        "droppedAttributesCount": "uint32",
        "entityRefs": "[EntityRef]",
    },
    # trace/v1
    "ResourceSpans": {"resource": "Resource", "scopeSpans": "[ScopeSpans]", "schemaUrl": "string"},
    "ScopeSpans": {"scope": "InstrumentationScope", "spans": "[Span]", "schemaUrl": "string"},
    "Span": {
        "traceId": "trace id",
        "spanId": "span id",
        "traceState": "string",
        "parentSpanId": "span id or empty",
        "flags": "uint32",
        "name": "string",
        "kind": "SpanKind",
        "startTimeUnixNano": "uint64",
        "endTimeUnixNano": "uint64",
        "attributes": "[KeyValue]",
        "droppedAttributesCount": "uint32",
        "events": "[Event]",
        "droppedEventsCount": "uint32",
        "links": "[Link]",
        "droppedLinksCount": "uint32",
        "status": "Status",
    },
    "Event": {
        "timeUnixNano": "uint64",
        "name": "string",
        "attributes": "[KeyValue]",
        "droppedAttributesCount": "uint32",
    },
    "Link": {
        "traceId": "trace id",
        "spanId": "span id",
        "traceState": "string",
        "attributes": "[KeyValue]",
        "droppedAttributesCount": "uint32",
        "flags": "uint32",
    },
    "Status": {"message": "string", "code": "StatusCode"},
    # metrics/v1
    "ResourceMetrics": {"resource": "Resource", "scopeMetrics": "[ScopeMetrics]", "schemaUrl": "string"},
    "ScopeMetrics": {"scope": "InstrumentationScope", "metrics": "[Metric]", "schemaUrl": "string"},
    "Metric": {
        "name": "string",
        "description": "string",
        "unit": "string",
        "gauge": "Gauge",
        "sum": "Sum",
        "histogram": "Histogram",
        "exponentialHistogram": "ExponentialHistogram",
        "summary": "Summary",
        "metadata": "[KeyValue]",
    },
    "Gauge": {"dataPoints": "[NumberDataPoint]"},
    "Sum": {
        "dataPoints": "[NumberDataPoint]",
        "aggregationTemporality": "AggregationTemporality",
        "isMonotonic": "bool",
    },
    "Histogram": {
        "dataPoints": "[HistogramDataPoint]",
        "aggregationTemporality": "AggregationTemporality",
    },
    "ExponentialHistogram": {
        "dataPoints": "[ExponentialHistogramDataPoint]",
        "aggregationTemporality": "AggregationTemporality",
    },
    "Summary": {"dataPoints": "[SummaryDataPoint]"},
    "NumberDataPoint": {
        "attributes": "[KeyValue]",
        "startTimeUnixNano": "uint64",
        "timeUnixNano": "uint64",
        "asDouble": "double",
        "asInt": "int64",
        "exemplars": "[Exemplar]",
        "flags": "uint32",
    },
    "HistogramDataPoint": {
        "attributes": "[KeyValue]",
        "startTimeUnixNano": "uint64",
        "timeUnixNano": "uint64",
        "count": "uint64",
        "sum": "double",
        "bucketCounts": "[uint64]",
        "explicitBounds": "[double]",
        "exemplars": "[Exemplar]",
        "flags": "uint32",
        "min": "double",
        "max": "double",
    },
    "ExponentialHistogramDataPoint": {
        "attributes": "[KeyValue]",
        "startTimeUnixNano": "uint64",
        "timeUnixNano": "uint64",
        "count": "uint64",
        "sum": "double",
        "scale": "int32",
        "zeroCount": "uint64",
        "positive": "Buckets",
        "negative": "Buckets",
        "flags": "uint32",
        "exemplars": "[Exemplar]",
        "min": "double",
        "max": "double",
        "zeroThreshold": "double",
    },
    "Buckets": {"offset": "int32", "bucketCounts": "[uint64]"},
    "SummaryDataPoint": {
        "attributes": "[KeyValue]",
        "startTimeUnixNano": "uint64",
        "timeUnixNano": "uint64",
        "count": "uint64",
        "sum": "double",
        "quantileValues": "[ValueAtQuantile]",
        "flags": "uint32",
    },
    "ValueAtQuantile": {"quantile": "double", "value": "double"},
    "Exemplar": {
        "filteredAttributes": "[KeyValue]",
        "timeUnixNano": "uint64",
        "asDouble": "double",
        "asInt": "int64",
        "spanId": "span id or empty",
        "traceId": "trace id or empty",
    },
    # logs/v1
    "ResourceLogs": {"resource": "Resource", "scopeLogs": "[ScopeLogs]", "schemaUrl": "string"},
    "ScopeLogs": {"scope": "InstrumentationScope", "logRecords": "[LogRecord]", "schemaUrl": "string"},
    "LogRecord": {
        "timeUnixNano": "uint64",
        "observedTimeUnixNano": "uint64",
        "severityNumber": "SeverityNumber",
        "severityText": "string",
        "body": "AnyValue",
        "attributes": "[KeyValue]",
        "droppedAttributesCount": "uint32",
        "flags": "uint32",
        "traceId": "trace id or empty",
        "spanId": "span id or empty",
        "eventName": "string",
    },
}

ONEOFS: dict[str, frozenset[str]] = {
    "AnyValue": frozenset(MESSAGES["AnyValue"]),
    "Metric": frozenset({"gauge", "sum", "histogram", "exponentialHistogram", "summary"}),
    "NumberDataPoint": frozenset({"asDouble", "asInt"}),
    "Exemplar": frozenset({"asDouble", "asInt"}),
}
"""The fields of which a message has at most one."""

MISPLACED: dict[str, tuple[str, ...]] = {
    "Sum": ("aggregationTemporality", "isMonotonic"),
    "Histogram": ("aggregationTemporality",),
    "ExponentialHistogram": ("aggregationTemporality",),
}
"""Fields that some writers, the beacon document among them, put into each data point instead."""

_LEVELS = ("TRACE", "DEBUG", "INFO", "WARN", "ERROR", "FATAL")

ENUMS: dict[str, dict[str, int]] = {
    "SpanKind": {
        "SPAN_KIND_UNSPECIFIED": 0,
        "SPAN_KIND_INTERNAL": 1,
        "SPAN_KIND_SERVER": 2,
        "SPAN_KIND_CLIENT": 3,
        "SPAN_KIND_PRODUCER": 4,
        "SPAN_KIND_CONSUMER": 5,
    },
    "StatusCode": {"STATUS_CODE_UNSET": 0, "STATUS_CODE_OK": 1, "STATUS_CODE_ERROR": 2},
    "AggregationTemporality": {
        "AGGREGATION_TEMPORALITY_UNSPECIFIED": 0,
        "AGGREGATION_TEMPORALITY_DELTA": 1,
        "AGGREGATION_TEMPORALITY_CUMULATIVE": 2,
    },
    "SeverityNumber": {
        "SEVERITY_NUMBER_UNSPECIFIED": 0,
        **{
            f"SEVERITY_NUMBER_{level}{step if step > 1 else ''}": 4 * rank + step
            for rank, level in enumerate(_LEVELS)
            for step in range(1, 5)
        },
    },
}
