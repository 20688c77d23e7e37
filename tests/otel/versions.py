"""Skips by the installed versions of OpenTelemetry: the oldest supported ones are too old for a comparison."""

from __future__ import annotations

from importlib.metadata import version

import pytest
from opentelemetry.proto.logs.v1.logs_pb2 import LogRecord
from opentelemetry.proto.resource.v1.resource_pb2 import Resource
from packaging.version import Version

needs_a_full_encoder = pytest.mark.skipif(
    Version(version("opentelemetry-exporter-otlp-proto-common")) < Version("1.45"),
    reason="before 1.45 the official encoder, which ours is compared with, leaves out fields that ours keeps",
)
needs_suppression_of_sql = pytest.mark.skipif(
    Version(version("opentelemetry-instrumentation-sqlalchemy")) < Version("0.66b0"),
    reason="before 0.66b0 the instrumentation of SQLAlchemy traces its statements even where tracing is suppressed",
)
needs_the_messages_of_otlp_1_7 = pytest.mark.skipif(
    "entity_refs" not in Resource.DESCRIPTOR.fields_by_name or "event_name" not in LogRecord.DESCRIPTOR.fields_by_name,
    reason="the official messages that are installed lack fields of OTLP 1.7, which ours keeps",
)
