"""Documents group items by resource and scope, and none is larger than an envelope may be."""

from __future__ import annotations

import json

from hypothesis import given
from hypothesis import strategies as st

from outbox.messages import TelemetryEnvelope
from outbox.otel.documents import Packer
from tests.otel.made import RESOURCES, SCOPES

LIMIT = 900

places = st.tuples(st.sampled_from(RESOURCES), st.sampled_from(SCOPES))
sizes = st.integers(0, 500)


def item(number: int, size: int) -> str:
    return f'{{"name":"{number}{"x" * size}"}}'


@given(st.lists(st.tuples(places, sizes), max_size=20), st.integers(1, 5))
def test_every_item_that_fits_is_in_one_document_and_no_document_is_too_large(
    given_items: list[tuple[tuple[object, object], int]], at_most: int
) -> None:
    packer = Packer("metrics", LIMIT, at_most)
    added = [
        packer.add(resource, scope, item(number, size))  # type: ignore[arg-type]
        for number, ((resource, scope), size) in enumerate(given_items)
    ]
    found: list[str] = []
    for text, items in packer.documents():
        assert len(text) <= LIMIT
        assert TelemetryEnvelope("metrics", text).payload == text
        held = [
            metric["name"].rstrip("x")
            for resource in json.loads(text)["resourceMetrics"]
            for scope in resource["scopeMetrics"]
            for metric in scope["metrics"]
        ]
        assert len(held) == items <= at_most
        found += held
    assert sorted(found, key=int) == [str(number) for number, fits in enumerate(added) if fits]


def test_a_resource_and_a_scope_are_written_once_for_all_their_items() -> None:
    packer = Packer("metrics")
    for number in range(6):
        packer.add(RESOURCES[number % 2], SCOPES[number % 2], item(number, 0))
    [(text, _)] = packer.documents()
    assert (text.count('"resource":'), text.count('"scope":')) == (2, 2)


def test_an_item_too_large_for_any_document_is_refused_before_it_is_stored() -> None:
    packer = Packer("metrics", LIMIT)
    assert not packer.add(RESOURCES[0], SCOPES[0], item(1, LIMIT))
    assert list(packer.documents()) == []
