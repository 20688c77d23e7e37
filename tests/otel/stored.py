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
    for payload in payloads(box, "traces"):
        for resource in parse("traces", payload).resource_spans:
            for scope in resource.scope_spans:
                yield from scope.spans


def names(box: Outbox) -> list[str]:
    return [span.name for span in spans(box)]


def records(box: Outbox) -> Iterator[Any]:
    for payload in payloads(box, "logs"):
        for resource in parse("logs", payload).resource_logs:
            for scope in resource.scope_logs:
                yield from scope.log_records


def metrics(box: Outbox) -> Iterator[Any]:
    for payload in payloads(box, "metrics"):
        for resource in parse("metrics", payload).resource_metrics:
            for scope in resource.scope_metrics:
                yield from scope.metrics
