"""The benchmark of spans counts what arrived before it believes a cost."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest
from opentelemetry.exporter.otlp.proto.common.trace_encoder import encode_spans

from benchmarks import otel, otel_sink
from benchmarks.figures import Run
from benchmarks.places import Beacon, Places, outbox_in, settings
from outbox import Outbox
from outbox.otel import OutboxSpanExporter
from tests.otel.spanning import ended


def test_the_sink_counts_the_spans_of_a_body() -> None:
    assert otel_sink.spans(encode_spans(ended("a", "b", "c")).SerializeToString()) == 3


def test_what_arrived_is_what_beacon_says(tmp_path: Path) -> None:
    with Beacon() as beacon, outbox_in(f"sqlite:///{tmp_path / 'outbox.db'}", settings(beacon)) as box:
        OutboxSpanExporter(box).export(ended("a", "b"))
        OutboxSpanExporter(box).export(ended("c"))
        assert otel.arrived(beacon) == 0
        assert otel._sent(box) > 0
        assert otel.arrived(beacon) == 3


def test_spans_of_a_burst_that_beacon_refuses_are_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    """They are stored, and settled: as dead."""

    def application(how: str, to: str, _load: str, _spans: int) -> float:
        if how == "outbox":
            with Outbox(to, settings=settings()) as box:
                OutboxSpanExporter(box).export(ended("a", "b"))
        return 1.0

    class Refusing(Beacon):
        def __init__(self) -> None:
            super().__init__()
            self.control.patch(status=422)

    monkeypatch.setattr(otel, "_application", application)
    monkeypatch.setattr(otel, "Beacon", Refusing)
    monkeypatch.setattr(otel, "BURST", 2)
    run = Run("otel", "quick")
    with Places() as places:
        otel._burst(run, places, "sqlite")
    assert run.facts["lost"] == 2


def test_the_cost_with_the_worker_is_more_than_that_of_the_application(monkeypatch: pytest.MonkeyPatch) -> None:
    def application(how: str, to: str, _load: str, _spans: int) -> float:
        if how == "outbox":
            with Outbox(to, settings=settings()) as box:
                OutboxSpanExporter(box).export(ended(*"abc"))
        return 7.0

    @contextmanager
    def sink() -> Iterator[tuple[str, object]]:
        yield "http://127.0.0.1:1", lambda: 3

    monkeypatch.setattr(otel, "_application", application)
    monkeypatch.setattr(otel, "_sink", sink)
    monkeypatch.setattr(otel, "STEADY_QUICK", 3)
    monkeypatch.setattr(otel, "WARM", 0)
    run = Run("otel", "quick")
    with Places() as places:
        otel._cost(run, places, "sqlite")
    alone, both = run.figures
    assert (alone.key, both.key) == ("otel/sqlite/cost", "otel/sqlite/cost-with-worker")
    assert alone.ours == alone.base == both.base == [7.0, 7.0]
    assert min(both.ours) > 7.0


@pytest.fixture
def pretended(monkeypatch: pytest.MonkeyPatch) -> list[Sequence[object]]:
    """Applications that make no spans and cost nothing, against a sink that saw as many as it should."""
    calls: list[Sequence[object]] = []

    def application(*arguments: object) -> float:
        calls.append(arguments)
        return 1.0

    @contextmanager
    def sink() -> Iterator[tuple[str, object]]:
        yield "http://127.0.0.1:1", lambda: otel.STEADY_QUICK + otel.WARM

    monkeypatch.setattr(otel, "_application", application)
    monkeypatch.setattr(otel, "_sink", sink)
    return calls


def test_a_cost_of_spans_that_did_not_arrive_is_no_cost(pretended: list[Sequence[object]]) -> None:
    with Places() as places, pytest.raises(RuntimeError, match="0 arrived: their costs say nothing"):
        otel._cost(Run("otel", "quick"), places, "sqlite")
    assert pretended
