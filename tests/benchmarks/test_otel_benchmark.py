"""The benchmark of spans counts what arrived before it believes a cost."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest
from opentelemetry.exporter.otlp.proto.common.trace_encoder import encode_spans

from benchmarks import otel, otel_sink
from benchmarks.figures import Run
from benchmarks.places import Places
from outbox import Outbox
from outbox.otel import OutboxSpanExporter
from tests.otel.spanning import ended


def test_the_sink_counts_the_spans_of_a_body() -> None:
    assert otel_sink.spans(encode_spans(ended("a", "b", "c")).SerializeToString()) == 3


def test_what_is_stored_is_counted_by_span(tmp_path: Path) -> None:
    with Outbox(f"sqlite:///{tmp_path / 'outbox.db'}") as box:
        box.migrate()
        OutboxSpanExporter(box).export(ended("a", "b"))
        OutboxSpanExporter(box).export(ended("c"))
        assert otel.stored(box) == 3


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
