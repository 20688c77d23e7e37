"""The exporters behind the SDK's own processors and readers."""

from __future__ import annotations

import logging
import sqlite3
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from opentelemetry.sdk._logs import LoggerProvider
from opentelemetry.sdk._logs.export import BatchLogRecordProcessor
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import MetricExportResult, PeriodicExportingMetricReader
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SimpleSpanProcessor, SpanExportResult

from outbox import BeaconTransport, Dispatcher, Outbox, Settings
from outbox.core.health import Health, LaneState
from outbox.core.lane import LANES, Lane
from outbox.otel import OutboxLogExporter, OutboxMetricExporter, OutboxSpanExporter
from outbox.otel.documents import Packer
from outbox.simulator import Simulator
from tests.otel import made, stored
from tests.otel.conftest import OpenBox
from tests.otel.spanning import SHOP, ended


@pytest.fixture
def spans() -> list[ReadableSpan]:
    return ended("a", "b")


def test_spans_of_a_batch_processor_are_one_entry(box: Outbox) -> None:
    provider = TracerProvider(resource=SHOP)
    provider.add_span_processor(BatchSpanProcessor(OutboxSpanExporter(box), schedule_delay_millis=3_600_000))
    for number in range(5):
        with provider.get_tracer("shop").start_as_current_span(f"order {number}"):
            pass
    provider.shutdown()
    assert stored.names(box) == [f"order {number}" for number in range(5)]
    assert box.status().lanes["traces"].pending == 1


def test_metrics_of_a_periodic_reader_are_stored(box: Outbox) -> None:
    reader = PeriodicExportingMetricReader(OutboxMetricExporter(box), export_interval_millis=3_600_000)
    provider = MeterProvider([reader], SHOP)
    provider.get_meter("shop").create_counter("orders", "1").add(3, {"paid": True})
    provider.shutdown()
    [metric] = stored.metrics(box)
    assert (metric.name, metric.sum.data_points[0].as_int) == ("orders", 3)


@contextmanager
def logging_to(box: Outbox) -> Iterator[LoggerProvider]:
    """Send everything that is logged at INFO to the SDK, and from there to ``box``."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "`LoggingHandler` in `opentelemetry-sdk` is deprecated")
        from opentelemetry.sdk._logs import LoggingHandler

        provider = LoggerProvider(SHOP)
        provider.add_log_record_processor(BatchLogRecordProcessor(OutboxLogExporter(box)))
        handler = LoggingHandler(logger_provider=provider)
    root = logging.getLogger()
    before = root.level
    root.addHandler(handler)
    root.setLevel(logging.INFO)
    try:
        yield provider
    finally:
        root.removeHandler(handler)
        root.setLevel(before)
        provider.shutdown()


def bodies(box: Outbox) -> list[str]:
    return [record.body.string_value for record in stored.records(box)]


def test_log_records_of_a_batch_processor_are_stored_but_for_outboxs_own(box: Outbox) -> None:
    with logging_to(box):
        for name in ("shop", "outbox.otel", "outbox.dispatcher", "outboxes", "shop.outbox", "httpx"):
            logging.getLogger(name).warning("from %s", name)
    assert bodies(box) == ["from shop", "from outboxes", "from shop.outbox", "from httpx"]


@pytest.mark.parametrize(
    ("answer", "sent", "logged"),
    [({}, 1, "HTTP Request: POST"), ({"status": 503, "lanes": ["logs"]}, 0, "beacon answered 503")],
    ids=["sent", "waits for beacon"],
)
def test_a_log_record_is_not_followed_by_records_of_its_own_delivery(
    open_box: OpenBox, caplog: pytest.LogCaptureFixture, answer: dict[str, Any], sent: int, logged: str
) -> None:
    with Simulator(license="test-license-key", **answer) as beacon:
        box = open_box(beacon_url=beacon.url)
        with logging_to(box) as provider, BeaconTransport(box.settings) as transport:
            dispatcher = Dispatcher(box, transport)
            logging.getLogger("shop").warning("one order")
            provider.force_flush()
            assert dispatcher.run_once().sent == sent
            provider.force_flush()
            assert bodies(box) == ["one order"]
    assert logged in caplog.text


def test_success_is_told_after_the_commit(box: Outbox, spans: list[ReadableSpan]) -> None:
    assert OutboxSpanExporter(box).export(spans) is SpanExportResult.SUCCESS
    assert stored.names(box) == ["a", "b"]


def test_a_database_without_tables_is_a_failure_that_says_what_to_do(
    tmp_path: Any, spans: list[ReadableSpan], caplog: pytest.LogCaptureFixture
) -> None:
    with Outbox(settings=Settings(database_url=f"sqlite:///{tmp_path / 'empty.db'}")) as box:
        assert OutboxSpanExporter(box).export(spans) is SpanExportResult.FAILURE
    assert "lane traces: 2 items were not stored and are lost" in caplog.text
    assert "Run: outbox migrate" in caplog.text


def test_an_export_waits_for_a_database_that_is_busy(
    box: Outbox, spans: list[ReadableSpan], monkeypatch: pytest.MonkeyPatch
) -> None:
    tried: list[int] = []
    put = box.put

    def busy_at_first(*messages: Any, **options: Any) -> Any:
        tried.append(len(messages))
        if len(tried) == 1:
            lock.execute("BEGIN IMMEDIATE")
        elif len(tried) == 2:
            lock.rollback()
        return put(*messages, **options)

    monkeypatch.setattr(box, "put", busy_at_first)
    pooled = box.engine.raw_connection()
    pooled.driver_connection.execute("PRAGMA busy_timeout = 1")  # type: ignore[union-attr]
    pooled.close()
    lock = sqlite3.connect(box.engine.url.database or "", isolation_level=None)
    try:
        assert OutboxSpanExporter(box).export(spans) is SpanExportResult.SUCCESS
    finally:
        lock.close()
    assert tried == [1, 1]
    assert stored.names(box) == ["a", "b"]


def test_a_lane_that_is_paused_loses_nothing(box: Outbox, spans: list[ReadableSpan]) -> None:
    box.store._on(Lane.TRACES, lambda row: setattr(row, "health", Health(LaneState.PAUSED, "a test", 2**62)))
    assert OutboxSpanExporter(box).export(spans) is SpanExportResult.SUCCESS
    status = box.status().lanes["traces"]
    assert (status.state, status.pending) == ("paused", 1)
    assert stored.names(box) == ["a", "b"]


def test_what_is_too_large_for_one_envelope_is_several_in_one_transaction(box: Outbox) -> None:
    large = ended("a", "b", "c", "d", text="x" * (LANES[Lane.TRACES].max_payload_bytes // 3))
    assert OutboxSpanExporter(box).export(large) is SpanExportResult.SUCCESS
    assert stored.names(box) == ["a", "b", "c", "d"]
    assert box.status().lanes["traces"].pending == 2


def test_a_span_too_large_for_any_envelope_is_a_failure_and_the_others_are_stored(
    box: Outbox, spans: list[ReadableSpan], caplog: pytest.LogCaptureFixture
) -> None:
    [large] = ended("huge", text="x" * LANES[Lane.TRACES].max_payload_bytes)
    assert OutboxSpanExporter(box).export([spans[0], large, spans[1]]) is SpanExportResult.FAILURE
    assert stored.names(box) == ["a", "b"]
    assert "lost, huge has" in caplog.text
    assert "OTEL_SPAN_ATTRIBUTE_VALUE_LENGTH_LIMIT" in caplog.text


def test_a_metric_of_more_points_than_an_envelope_holds_is_told_in_parts(
    box: Outbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("outbox.otel.envelopes.Packer", lambda signal: Packer(signal, 3000))
    reader = PeriodicExportingMetricReader(OutboxMetricExporter(box), export_interval_millis=3_600_000)
    provider = MeterProvider([reader], SHOP)
    counter = provider.get_meter("shop").create_counter("orders", "1")
    for number in range(100):
        counter.add(number, {"customer": number})
    provider.shutdown()
    parts = list(stored.metrics(box))
    assert len(parts) > 2
    assert {part.name for part in parts} == {"orders"}
    assert sorted(point.as_int for part in parts for point in part.sum.data_points) == list(range(100))


@pytest.mark.parametrize("lane", ["traces", "metrics", "logs"])
def test_an_exporter_of_a_lane_that_is_off_succeeds_and_builds_nothing(
    open_box: OpenBox, lane: str, spans: list[ReadableSpan], monkeypatch: pytest.MonkeyPatch
) -> None:
    box = open_box(**{f"telemetry_{lane}": False})
    monkeypatch.setattr("outbox.otel.envelopes.Packer", None)  # to build a document would fail
    results = {
        "traces": lambda: OutboxSpanExporter(box).export(spans),
        "metrics": lambda: OutboxMetricExporter(box).export(_metrics()),
        "logs": lambda: OutboxLogExporter(box).export([_log()]),
    }
    assert results[lane]().name == "SUCCESS"
    assert stored.payloads(box, lane) == []  # type: ignore[arg-type]
    assert {other: results[other]().name for other in results if other != lane} == {
        other: "FAILURE" for other in results if other != lane
    }


def _metrics() -> Any:
    return made.metrics_data(SHOP, made.SCOPES[0], [made.sdk.Metric("m", "", "", made.sdk.Gauge([]))])


def _log() -> Any:
    return made.log_data(made.SCOPES[0], SHOP, body="a", timestamp=1, observed_timestamp=1)


def test_offline_nothing_of_telemetry_is_stored(open_box: OpenBox, spans: list[ReadableSpan]) -> None:
    box = open_box(offline=True)
    assert OutboxSpanExporter(box).export(spans) is SpanExportResult.SUCCESS
    assert OutboxMetricExporter(box).export(_metrics()) is MetricExportResult.SUCCESS
    assert box.status().unfinished == 0


def test_after_shutdown_an_export_fails_and_says_so(
    box: Outbox, spans: list[ReadableSpan], caplog: pytest.LogCaptureFixture
) -> None:
    exporter = OutboxSpanExporter(box)
    provider = TracerProvider(resource=SHOP)
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    provider.shutdown()
    assert exporter.export(spans) is SpanExportResult.FAILURE
    assert "2 items came after shutdown() and are lost" in caplog.text
