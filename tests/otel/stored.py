"""The contents of the tables, parsed as the official messages."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from sqlalchemy import text

from outbox import Outbox
from outbox.core.lane import Signal
from tests.otel.protobuf import parse


def payloads(box: Outbox, signal: Signal) -> list[str]:
    with box.engine.connect() as connection:
        return list(connection.execute(text(f"SELECT payload FROM outbox_{signal} ORDER BY seq")).scalars())


def spans(box: Outbox) -> Iterator[Any]:
    yield from _items(box, "traces", "resource_spans", "scope_spans", "spans")


def names(box: Outbox) -> list[str]:
    return [span.name for span in spans(box)]


def records(box: Outbox) -> Iterator[Any]:
    yield from _items(box, "logs", "resource_logs", "scope_logs", "log_records")


def metrics(box: Outbox) -> Iterator[Any]:
    yield from _items(box, "metrics", "resource_metrics", "scope_metrics", "metrics")


def _items(box: Outbox, signal: Signal, resources: str, scopes: str, items: str) -> Iterator[Any]:
    for payload in payloads(box, signal):
        for resource in getattr(parse(signal, payload), resources):
            for scope in getattr(resource, scopes):
                yield from getattr(scope, items)
