"""Hypothesis strategies for OTLP documents, drawn from the schema of TelemetryEnvelope."""

from __future__ import annotations

import base64
from functools import cache
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

from outbox.core.lane import LANES, SIGNALS, Lane, Signal
from outbox.messages.otlp_schema import ENUMS, MESSAGES, ONEOFS

generous = settings(suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])

texts = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\x00"), max_size=20)
signals = st.sampled_from(SIGNALS)


def as_number_or_text(numbers: st.SearchStrategy[int]) -> st.SearchStrategy[int | str]:
    return numbers | numbers.map(str)


def hex_digits(count: int) -> st.SearchStrategy[str]:
    digits = st.text("0123456789abcdefABCDEF", min_size=count, max_size=count)
    return digits.map(lambda text: text if text.strip("0") else "1" * count)


SCALARS: dict[str, st.SearchStrategy[Any]] = {
    "string": texts,
    "bool": st.booleans(),
    "double": st.floats(allow_nan=False, allow_infinity=False) | st.sampled_from(["NaN", "Infinity", "-Infinity", 3]),
    "bytes": st.binary(max_size=12).map(lambda data: base64.b64encode(data).decode()),
    "uint32": as_number_or_text(st.integers(0, 2**32 - 1)),
    "int32": as_number_or_text(st.integers(-(2**31), 2**31 - 1)),
    "uint64": as_number_or_text(st.integers(0, 2**64 - 1)),
    "int64": as_number_or_text(st.integers(-(2**63), 2**63 - 1)),
    "trace id": hex_digits(32),
    "span id": hex_digits(16),
    "trace id or empty": hex_digits(32) | st.just(""),
    "span id or empty": hex_digits(16) | st.just(""),
}


ITEMS: dict[Signal, tuple[str, str]] = {
    "metrics": ("scopeMetrics", "metrics"),
    "traces": ("scopeSpans", "spans"),
    "logs": ("scopeLogs", "logRecords"),
}


@cache
def kind_of(kind: str) -> st.SearchStrategy[Any]:
    """Any value that a field of this kind accepts."""
    if kind.startswith("["):
        return st.lists(kind_of(kind[1:-1]), max_size=2)
    if kind in ENUMS:
        return st.sampled_from([*ENUMS[kind], *ENUMS[kind].values()])
    return SCALARS[kind] if kind in SCALARS else st.deferred(lambda: message(kind))


@cache
def message(name: str) -> st.SearchStrategy[dict[str, Any]]:
    kinds = MESSAGES[name]
    required = {field: kind_of(kind) for field, kind in kinds.items() if kind in ("trace id", "span id")}
    fields = {field: kind_of(kind) | st.none() for field, kind in kinds.items()}
    oneof = ONEOFS.get(name, frozenset())
    common = {field: value for field, value in fields.items() if field not in oneof and field not in required}
    variants = [st.fixed_dictionaries(required, optional=common)] + [
        st.fixed_dictionaries({**required, field: fields[field]}, optional=common) for field in sorted(oneof)
    ]
    return st.one_of(variants)


@st.composite
def documents(draw: st.DrawFn) -> tuple[Signal, dict[str, Any]]:
    signal = draw(signals)
    root = LANES[Lane(signal)].root_key
    element = MESSAGES[signal][root][1:-1]
    document = {root: draw(st.lists(message(element), min_size=1, max_size=2))}
    scopes, items = ITEMS[signal]
    if not any(scope.get(items) for each in document[root] for scope in each.get(scopes) or ()):
        kind = MESSAGES[MESSAGES[element][scopes][1:-1]][items][1:-1]
        document[root].append({scopes: [{items: [draw(message(kind))]}]})
    return signal, document
