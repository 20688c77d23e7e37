"""Telemetry of the real SDK arrives unchanged at an independent collector, in few requests, despite faults."""

from __future__ import annotations

import signal
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from opentelemetry.exporter.otlp.proto.common._log_encoder import encode_logs
from opentelemetry.exporter.otlp.proto.common.metrics_encoder import encode_metrics
from opentelemetry.exporter.otlp.proto.common.trace_encoder import encode_spans
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import MetricExportResult, MetricsData, PeriodicExportingMetricReader
from opentelemetry.sdk.metrics.view import ExponentialBucketHistogramAggregation, View
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan, SpanProcessor, TracerProvider
from opentelemetry.trace import Link, SpanKind, Status, StatusCode, get_current_span

from outbox import BeaconTransport, Outbox, Settings, Worker
from outbox.core.lane import SIGNALS, Signal
from outbox.otel import OutboxLogExporter, OutboxMetricExporter, OutboxSpanProcessor
from tests.otel import made
from tests.otel.collector import Front, Sink, collecting
from tests.otel.conftest import OpenBox
from tests.otel.protobuf import flat, parse
from tests.otel.versions import needs_a_full_encoder
from tests.support import killable
from tests.support.waiting import wait_until

pytestmark = needs_a_full_encoder

SHOP = Resource({"service.name": "shop", "ports": (80, 443)}, "https://opentelemetry.io/schemas/1.20.0")
TRACES = 40
LEASE_SECONDS = 4
"""Of the sender that is killed: its successor takes over so soon."""


@pytest.fixture
def collector(tmp_path: Path) -> Iterator[tuple[Front, Sink]]:
    with collecting(tmp_path) as parts:
        yield parts


@dataclass
class Kept(SpanProcessor):
    """The telemetry that was given to the outbox, to be compared with what arrives."""

    spans: list[ReadableSpan] = field(default_factory=list)
    metrics: list[MetricsData] = field(default_factory=list)
    logs: list[Any] = field(default_factory=list)

    def on_end(self, span: ReadableSpan) -> None:
        self.spans.append(span)

    def expected(self) -> dict[Signal, list[Any]]:
        return {
            "traces": flat("traces", encode_spans(self.spans)),
            "metrics": flat("metrics", *map(encode_metrics, self.metrics)),
            "logs": flat("logs", encode_logs(self.logs)),
        }


def record(box: Outbox, kept: Kept) -> None:
    """Some telemetry of every kind of the SDK, committed in several envelopes per lane."""
    _trace(box, kept)
    _measure(box, kept)
    _log(box, kept)


def _trace(box: Outbox, kept: Kept) -> None:
    provider = TracerProvider(resource=SHOP, shutdown_on_exit=False)
    ours = OutboxSpanProcessor(box)
    for processor in (kept, ours):
        provider.add_span_processor(processor)
    tracer = provider.get_tracer("shop.orders", "1.2", "https://opentelemetry.io/schemas/1.21.0", {"a": 1})
    for number in range(TRACES):
        with tracer.start_as_current_span(f"order {number} für ☕", kind=SpanKind.SERVER) as order:
            order.set_attributes(
                {"text": 'a "b" \\ \n', "id": 2**62 + number, "ratio": 0.1, "ok": True, "many": [1, 2]}
            )
            order.add_event("paid", {"euro": 1e16})
            links = [Link(order.get_span_context(), {"why": "it is the same"})]
            with tracer.start_as_current_span("pay", links=links, kind=SpanKind.CLIENT) as pay:
                pay.set_status(Status(StatusCode.ERROR, "no money"))
        if number % 10 == 9:
            assert ours.force_flush()
    provider.shutdown()


def _measure(box: Outbox, kept: Kept) -> None:
    class Exporter(OutboxMetricExporter):
        def export(self, metrics_data: MetricsData, *arguments: Any, **options: Any) -> MetricExportResult:
            kept.metrics.append(metrics_data)
            return super().export(metrics_data, *arguments, **options)

    reader = PeriodicExportingMetricReader(Exporter(box), export_interval_millis=3_600_000)
    view = View(instrument_name="sizes", aggregation=ExponentialBucketHistogramAggregation())
    provider = MeterProvider([reader], SHOP, views=[view], shutdown_on_exit=False)
    meter = provider.get_meter("shop.orders", "1.2")
    orders, open_orders = meter.create_counter("orders", "1", "how many"), meter.create_up_down_counter("open")
    seconds, sizes = meter.create_histogram("seconds", "s"), meter.create_histogram("sizes", "By")
    temperature = meter.create_gauge("temperature")
    for number in range(5):
        orders.add(number, {"paid": number % 2 == 0})
        open_orders.add(-number)
        seconds.record(number / 3)
        sizes.record(10.0**number)
        temperature.set(20.5 + number)
        reader.collect()
    provider.shutdown()


def _log(box: Outbox, kept: Kept) -> None:
    exporter = OutboxLogExporter(box)
    for number in range(3):
        batch = [_record(f"order {number}"), _record({"order": number, "lines": ["tea", 2.5]})]
        kept.logs += batch
        assert exporter.export(batch).name == "SUCCESS"


def _record(body: Any) -> Any:
    context = get_current_span().get_span_context()
    return made.log_data(
        made.SCOPES[1],
        SHOP,
        timestamp=1_700_000_000_123_456_789,
        observed_timestamp=1_700_000_000_123_456_790,
        trace_id=context.trace_id or 0x71699B6FE85982C7C8995EA3D9C95DF2,
        span_id=0x3C191D03FA8BE065,
        severity_text="WARN",
        severity_number=made.SeverityNumber.WARN,
        body=body,
        attributes={"code.line": 12},
    )


def arrived(sink: Sink) -> dict[Signal, list[Any]]:
    return {name: flat(name, *sink.received(name)) for name in SIGNALS}


def bodies(front: Front) -> dict[Signal, list[Any]]:
    return {name: flat(name, *(parse(name, body) for body in front.passed_on[name])) for name in SIGNALS}


def until_all_arrived(sink: Sink, front: Front, expected: dict[Signal, Sequence[Any]]) -> None:
    def enough() -> bool:
        return all(len(items) >= len(expected[name]) for name, items in arrived(sink).items())

    wait_until(enough, 60, lambda: f"refused: {front.refused}; requests: {front.requests}")


@pytest.mark.parametrize("compression", ["none", "gzip"])
def test_a_collector_receives_what_the_sdk_made(
    open_box: OpenBox, collector: tuple[Front, Sink], compression: str
) -> None:
    front, sink = collector
    box = open_box(beacon_url=front.url, telemetry_compression=compression)
    kept = Kept()
    record(box, kept)
    stored = {name: box.status().lanes[name].pending for name in SIGNALS}
    assert min(stored.values()) >= 3
    expected = kept.expected()
    with BeaconTransport(box.settings) as transport, Worker(box, transport):
        until_all_arrived(sink, front, expected)
        wait_until(lambda: box.status().unfinished == 0)
    assert bodies(front) == expected
    assert arrived(sink) == expected
    assert front.refused == []
    assert front.requests == {"traces": 1, "metrics": 1, "logs": 1}
    assert compression in front.encodings


def test_a_killed_sender_and_its_successor_deliver_everything_once(
    open_box: OpenBox, collector: tuple[Front, Sink], tmp_path: Path
) -> None:
    front, sink = collector
    kept = Kept()
    box = open_box()
    record(box, kept)
    expected = kept.expected()
    settings = _of_a_worker(box.settings, front)
    short = {"lease_seconds": LEASE_SECONDS, "request_timeout": LEASE_SECONDS / 2}
    with (tmp_path / "out").open("wb") as out:
        front.hold.set()
        first = killable.start("work", out, **settings, **short)
        try:
            assert front.held.wait(60)
        finally:
            first.kill()
        assert first.wait(30) == -signal.SIGKILL
        front.hold.clear()
        second = killable.start("work", out, **settings)
        try:
            until_all_arrived(sink, front, expected)
            wait_until(lambda: box.status().unfinished == 0)
        finally:
            second.terminate()
            second.wait(30)
    assert bodies(front) == expected
    assert arrived(sink) == expected


def _of_a_worker(settings: Settings, front: Front) -> dict[str, Any]:
    return {
        "database_url": settings.database_url,
        "license_key": "test-license-key",
        "beacon_url": front.url,
    }
