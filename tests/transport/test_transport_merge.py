"""Envelopes joined as text: each span keeps its resource, scope and order. Checked by parsing the result."""

from __future__ import annotations

import json
from collections import defaultdict
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from outbox.core.lane import LANES, SIGNALS, Lane
from outbox.core.telemetry import LEVELS
from outbox.transport.merge import merged
from tests.transport.support.batches import envelope

HOSTILE = ('"spans":[', '],"schemaUrl":"', "]}]}]}", '"scopeSpans":[', "\\", '"', '"spans":[]}', "é", "x")
few = st.sampled_from([{}, {"name": "a"}, {"name": "b"}, {"attributes": []}, {"attributes": [{"key": "spans"}]}])
schemas = st.sampled_from([None, None, "", "https://one", '",]}"spans":['])


@st.composite
def payloads(draw: st.DrawFn) -> tuple[Lane, list[str]]:
    """Canonical envelopes that share resources and scopes; fields in any order, empty blocks and hostile texts."""
    lane = Lane(draw(st.sampled_from(SIGNALS)))
    _, scopes, items = LEVELS[lane][:3]
    numbers = iter(range(1000))

    def block(name: str, array: str, inside: Any) -> dict[str, Any]:
        fields: dict[str, Any] = {}
        if draw(st.integers(0, 4)):
            fields[name] = draw(few)
        if draw(st.integers(0, 9)):
            fields[array] = [inside() for _ in range(draw(st.sampled_from([0, 1, 1, 1, 2])))]
        if (schema := draw(schemas)) is not None:
            fields["schemaUrl"] = schema
        return dict(draw(st.permutations(list(fields.items()))) if draw(st.booleans()) else fields)

    def item() -> dict[str, Any]:
        return {"number": next(numbers), "name": draw(st.sampled_from(HOSTILE))}

    def resource() -> dict[str, Any]:
        return block("resource", scopes, lambda: block("scope", items, item))

    count = draw(st.integers(1, 5))
    return lane, [envelope(lane, *(resource() for _ in range(draw(st.integers(1, 2))))) for _ in range(count)]


def items_by_scope(lane: Lane, documents: list[Any]) -> dict[str, list[Any]]:
    root, scopes, items = LEVELS[lane][:3]
    found: dict[str, list[Any]] = defaultdict(list)
    for document in documents:
        for resource in document[root]:
            for scope in resource.get(scopes, ()):
                above = [
                    resource.get("resource"),
                    resource.get("schemaUrl"),
                    scope.get("scope"),
                    scope.get("schemaUrl"),
                ]
                found[json.dumps(above, sort_keys=True)] += scope.get(items, ())
    return {above: held for above, held in found.items() if held}


@given(payloads())
def test_every_item_stays_in_its_scope_and_in_its_order(drawn: tuple[Lane, list[str]]) -> None:
    lane, lines = drawn
    body = merged(lane, "\n".join(lines))
    document = json.loads(body)
    assert document.keys() == {LANES[lane].root_key}
    assert items_by_scope(lane, [document]) == items_by_scope(lane, [json.loads(line) for line in lines])
    assert len(body) <= sum(map(len, lines)), "never longer than what is stored"
    assert merged(lane, "\n".join(lines)) == body


def of(*scopes: tuple[str, list[int]], resource: str = "r", **more: object) -> dict[str, object]:
    held = [{"scope": {"name": name}, "spans": [{"n": number} for number in numbers]} for name, numbers in scopes]
    return {"resource": {"name": resource}, "scopeSpans": held, **more}


def joined(*envelopes: list[dict[str, object]]) -> list[dict[str, object]]:
    document = json.loads(merged(Lane.TRACES, "\n".join(envelope(Lane.TRACES, *each) for each in envelopes)))
    resources: list[dict[str, object]] = document["resourceSpans"]
    return resources


def test_spans_of_one_scope_are_joined() -> None:
    assert joined([of(("s", [1, 2]))], [of(("s", [3]))], [of(("s", [4]))]) == [of(("s", [1, 2, 3, 4]))]


def test_scopes_of_one_resource_are_joined() -> None:
    one, other = [of(("a", [1]))], [of(("b", [2]))]
    assert joined(one, other, [of(("a", [3]))]) == [of(("a", [1, 3]), ("b", [2]))]
    assert joined([of(("a", [1]), ("b", [2]))], other) == [of(("a", [1]), ("b", [2]), ("b", [2]))]


def test_resources_between_each_other_are_gathered() -> None:
    here, there = [of(("s", [1]))], [of(("s", [2]), resource="q")]
    assert joined(here, there, here, there) == [of(("s", [1, 1])), of(("s", [2, 2]), resource="q")]


def test_nothing_is_joined_across_an_envelope_of_several_resources() -> None:
    one = [of(("s", [1]))]
    several = [of(("s", [2])), of(("s", [3]), resource="q")]
    assert joined(one, several, one) == [*one, *several, *one]


def test_a_schema_behind_the_array_is_part_of_what_must_be_equal() -> None:
    with_schema = [of(("s", [1]), schemaUrl="u")]
    assert joined(with_schema, with_schema) == [of(("s", [1, 1]), schemaUrl="u")]
    assert joined(with_schema, [of(("s", [2]), schemaUrl="v")]) == [*with_schema, of(("s", [2]), schemaUrl="v")]


@pytest.mark.parametrize("lane", [lane for lane in Lane if not LANES[lane].billing])
def test_a_single_envelope_is_left_as_it_is(lane: Lane) -> None:
    assert merged(lane, '{ "by": "hand" }') == '{ "by": "hand" }'


def test_lines_that_are_no_envelopes_are_not_made_into_a_document() -> None:
    by_hand = '{ "resourceSpans":[{}] }\n{"resourceSpans":[{}]}'
    assert merged(Lane.TRACES, by_hand) == by_hand
