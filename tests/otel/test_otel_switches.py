"""``config.telemetry.*: false`` and OUTBOX_TELEMETRY_*: nothing is stored or sent; waiting entries are discarded."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest

from outbox import BeaconTransport, Outbox, Settings, TelemetryEnvelope, Worker
from outbox.core.lane import SIGNALS, Signal
from outbox.otel import OutboxSpanExporter, OutboxSpanProcessor
from outbox.simulator import Simulator
from tests.messages.documents import of_metric, of_record, of_span
from tests.otel import stored
from tests.otel.conftest import OpenBox
from tests.otel.spanning import ended
from tests.support.intervals import interval
from tests.support.waiting import wait_until

DOCUMENTS: dict[Signal, dict[str, Any]] = {
    "metrics": of_metric(gauge={"dataPoints": [{"asDouble": 1.5}]}),
    "traces": of_span(),
    "logs": of_record(severityNumber=9),
}


@pytest.mark.parametrize("signal", SIGNALS)
def test_a_worker_that_starts_with_a_lane_off_discards_what_waited_counted_and_told_once(
    open_box: OpenBox, beacon: Simulator, signal: Signal, caplog: pytest.LogCaptureFixture
) -> None:
    before = open_box()
    before.put(*(TelemetryEnvelope(each, DOCUMENTS[each]) for each in SIGNALS), interval())
    box = open_box(beacon_url=beacon.url, **{f"telemetry_{signal}": False})
    with BeaconTransport(_with_licence(box, beacon)) as transport, Worker(box, transport):
        wait_until(lambda: box.status().unfinished == 0)
    lanes = box.status().lanes
    off = lanes.pop(signal)
    assert (off.state, off.shed, off.sent) == ("off", 1, 0)
    assert off.reason == f"switched off by OUTBOX_TELEMETRY_{signal.upper()}"
    assert {name: (lane.shed, lane.sent) for name, lane in lanes.items()} == dict.fromkeys(lanes, (0, 1))
    told = [record for record in caplog.records if "entries discarded" in record.message]
    assert [record.message for record in told] == [f"lane {signal}: {off.reason}; 1 entries discarded"]


def test_what_a_producer_with_other_settings_still_writes_is_discarded_too(
    open_box: OpenBox, beacon: Simulator, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("outbox.worker.BOUNDS_SECONDS", 0.05)
    caplog.set_level(logging.INFO, "outbox.worker")
    producer = open_box()
    box = open_box(telemetry_traces=False)
    with BeaconTransport(_with_licence(box, beacon)) as transport, Worker(box, transport):
        OutboxSpanExporter(producer).export(ended("a"))
        wait_until(lambda: box.status().lanes["traces"].shed == 1)
    assert "1 entries discarded" in caplog.text
    assert beacon.received.unique("traces") == 0


@pytest.mark.parametrize(("telemetry", "names"), [("{traces: false}", []), ("{metrics: false}", ["a", "b"])])
def test_false_turns_a_lane_off_and_unset_does_not(
    open_box: OpenBox, tmp_path: Path, telemetry: str, names: list[str]
) -> None:
    config = tmp_path / "langsmith_config.yaml"
    config.write_text(f"config:\n  telemetry: {telemetry}\n")
    settings = Settings.load(config, database_url=open_box().settings.database_url)
    with Outbox(settings=settings) as box:
        processor = OutboxSpanProcessor(box)
        processor.on_end(ended("a")[0])
        processor.shutdown()
        OutboxSpanExporter(box).export(ended("b"))
        assert processor.dropped == 0
        assert stored.names(box) == names


def test_an_environment_variable_turns_a_lane_off(open_box: OpenBox, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OUTBOX_TELEMETRY_TRACES", "false")
    box = open_box()
    assert OutboxSpanExporter(box).export(ended("a")).name == "SUCCESS"
    assert stored.names(box) == []


def test_offline_usage_accumulates_and_telemetry_does_not(open_box: OpenBox) -> None:
    box = open_box(offline=True)
    processor = OutboxSpanProcessor(box)
    processor.on_end(ended("a")[0])
    processor.shutdown()
    box.put(interval())
    assert {name: lane.pending for name, lane in box.status().lanes.items()} == {
        "usage": 1,
        "metrics": 0,
        "traces": 0,
        "logs": 0,
    }


def _with_licence(box: Outbox, beacon: Simulator) -> Settings:
    return Settings(database_url=box.settings.database_url, beacon_url=beacon.url, license_key=beacon.license)
