"""The tree of a telemetry document: its leaves, numbered, and parts of it."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from outbox.core.lane import SIGNALS, Lane
from outbox.core.telemetry import Document, leaves, part, place

LEVELS = {
    Lane.METRICS: ("resourceMetrics", "scopeMetrics", "metrics"),
    Lane.TRACES: ("resourceSpans", "scopeSpans", "spans"),
    Lane.LOGS: ("resourceLogs", "scopeLogs", "logRecords"),
}
KINDS = ("gauge", "sum", "histogram", "exponentialHistogram", "summary")


@st.composite
def documents(draw: st.DrawFn) -> tuple[Lane, Document]:
    """A document in which every block has a unique name, including empty blocks and blocks without a list."""
    lane = Lane(draw(st.sampled_from(SIGNALS)))
    names = iter(range(10_000))

    def block(levels: tuple[str, ...], least: int = 0) -> Document:
        made: Document = {"before": next(names)}
        if levels:
            count = draw(st.integers(least, 3))
            if count or draw(st.booleans()):
                made[levels[0]] = [block(levels[1:]) for _ in range(count)]
        elif lane is Lane.METRICS and draw(st.booleans()):
            points = [{"point": next(names)} for _ in range(draw(st.integers(0, 3)))]
            made[draw(st.sampled_from(KINDS))] = {"before": next(names), "dataPoints": points, "after": next(names)}
        made["after"] = next(names)
        return made

    return lane, block(LEVELS[lane], least=1)


def joined(one: Any, other: Any) -> Any:
    """Two adjacent parts joined into one document. A block in both of them, recognised by its name, was split."""
    if isinstance(one, list):
        if one and other and one[-1].get("before") == other[0].get("before") is not None:
            return [*one[:-1], joined(one[-1], other[0]), *other[1:]]
        return one + other
    if isinstance(one, dict):
        assert list(one) == list(other)
        return {key: joined(one[key], other[key]) for key in one}
    assert one == other
    return one


@given(documents(), st.data())
def test_parts_joined_are_the_document(drawn: tuple[Lane, Document], data: st.DataObject) -> None:
    lane, document = drawn
    count = leaves(lane, document)
    assume(count)
    cuts = sorted({0, count} | data.draw(st.sets(st.integers(0, count), max_size=5)))
    parts = [part(lane, document, first, last) for first, last in pairwise(cuts)]
    assert [leaves(lane, each) for each in parts] == [last - first for first, last in pairwise(cuts)]
    whole, *rest = parts
    for each in rest:
        whole = joined(whole, each)
    assert whole == document


@given(documents(), st.data())
def test_the_place_of_a_leaf_leads_to_the_part_that_is_it(drawn: tuple[Lane, Document], data: st.DataObject) -> None:
    lane, document = drawn
    count = leaves(lane, document)
    assume(count)
    leaf = data.draw(st.integers(0, count - 1))
    here: Any = document
    for step in place(lane, document, leaf).replace("]", "").replace("[", ".").split("."):
        here = here[int(step)] if step.isdigit() else here[step]
    alone: Any = part(lane, document, leaf, leaf + 1)
    for step in place(lane, alone, 0).replace("]", "").replace("[", ".").split("."):
        alone = alone[int(step)] if step.isdigit() else alone[step]
    assert here == alone


def test_places_read_as_paths() -> None:
    spans = [{"name": "a"}, {"name": "b"}]
    document = {"resourceSpans": [{}, {"scopeSpans": [{"spans": spans[:1]}, {"spans": spans}]}]}
    places = [place(Lane.TRACES, document, leaf) for leaf in range(3)]
    assert places == [f"resourceSpans[1].scopeSpans[{i}].spans[{j}]" for i, j in ((0, 0), (1, 0), (1, 1))]
    metric = {"name": "m", "sum": {"dataPoints": [{}, {}]}}
    metrics = {"resourceMetrics": [{"scopeMetrics": [{"metrics": [{"name": "none"}, metric]}]}]}
    above = "resourceMetrics[0].scopeMetrics[0].metrics"
    assert [place(Lane.METRICS, metrics, leaf) for leaf in range(3)] == [
        f"{above}[0]",
        f"{above}[1].sum.dataPoints[0]",
        f"{above}[1].sum.dataPoints[1]",
    ]
    with pytest.raises(IndexError, match="no such leaf"):
        place(Lane.METRICS, metrics, 3)


def test_what_holds_no_leaf_goes_with_the_leaf_before_it() -> None:
    span: Document = {"scopeSpans": [{"spans": [{}]}, {"scope": {}}]}
    document: Document = {"resourceSpans": [{"schemaUrl": "a"}, span, {"schemaUrl": "b"}, {}, span, {}]}
    assert leaves(Lane.TRACES, document) == 2
    assert part(Lane.TRACES, document, 0, 1) == {"resourceSpans": [{"schemaUrl": "a"}, span, {"schemaUrl": "b"}, {}]}
    assert part(Lane.TRACES, document, 1, 2) == {"resourceSpans": [span, {}]}
    assert part(Lane.TRACES, document, 0, 2) == document


def test_a_document_without_a_span_metric_or_record_has_no_leaf() -> None:
    for lane, (resources, scopes, items) in LEVELS.items():
        for empty in ({}, {scopes: []}, {scopes: [{}]}, {scopes: [{items: []}]}):
            assert leaves(lane, {resources: [empty, {}]}) == 0
            assert leaves(lane, {resources: [empty, {scopes: [{}, {items: [{}]}]}]}) == 1
