"""Which of OpenTelemetry's packages are there: the oldest that the outbox serves are too old to be compared with."""

from __future__ import annotations

from importlib.metadata import version

import pytest
from packaging.version import Version

needs_a_full_encoder = pytest.mark.skipif(
    Version(version("opentelemetry-exporter-otlp-proto-common")) < Version("1.45"),
    reason="before 1.45 the official encoder, which ours is compared with, leaves out fields that ours keeps",
)
needs_suppression_of_sql = pytest.mark.skipif(
    Version(version("opentelemetry-instrumentation-sqlalchemy")) < Version("0.66b0"),
    reason="before 0.66b0 the instrumentation of SQLAlchemy traces its statements even where tracing is suppressed",
)
