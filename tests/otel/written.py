"""The telemetry in an outbox, read back from its documents."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterator
from typing import Any

from sqlalchemy import text

from outbox import Outbox

Json = dict[str, Any]


def documents(box: Outbox, lane: str) -> list[Json]:
    with box.engine.connect() as connection:
        rows = connection.execute(text(f"SELECT payload FROM outbox_{lane} ORDER BY seq")).scalars()
        return [json.loads(row) for row in rows]


def spans(box: Outbox) -> list[Json]:
    """The items in the order in which they were stored, with ``attributes`` as a plain dict."""
    return [_plain(span) for document in documents(box, "traces") for span in spans_of(document)]


def spans_of(document: Json) -> Iterator[Json]:
    for resource in document["resourceSpans"]:
        for scope in resource["scopeSpans"]:
            yield from scope["spans"]


def resources(box: Outbox, lane: str) -> list[Json]:
    key = {"traces": "resourceSpans", "metrics": "resourceMetrics"}[lane]
    return [_attributes(each["resource"]) for document in documents(box, lane) for each in document[key]]


def points(box: Outbox) -> dict[str, list[Json]]:
    """The data points of the last document of metrics, by the name of the metric; ``attributes`` as a plain dict."""
    found: dict[str, list[Json]] = defaultdict(list)
    for resource in documents(box, "metrics")[-1]["resourceMetrics"]:
        for scope in resource["scopeMetrics"]:
            for metric in scope["metrics"]:
                found[metric["name"]] += [_plain(point) for point in metric["histogram"]["dataPoints"]]
    return dict(found)


def _plain(item: Json) -> Json:
    return item | {"attributes": _attributes(item)}


def _attributes(item: Json) -> Json:
    return {each["key"]: _value(each["value"]) for each in item.get("attributes", ())}


def _value(value: Json) -> Any:
    [(kind, plain)] = value.items()
    return int(plain) if kind == "intValue" else plain
