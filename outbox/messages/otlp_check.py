"""The tables of ``otlp_schema`` as functions that check a document and build its canonical form.

A check takes a value and its depth. It returns a new value and does not change the old one. The path to a refused value
is built while the exception propagates, so that valid documents have no cost for it.
"""

from __future__ import annotations

import re
from functools import cache
from typing import Any

from outbox.messages.message import shown
from outbox.messages.otlp_scalars import (
    Check,
    Refused,
    base64_bytes,
    boolean,
    decimal,
    double,
    enum,
    expected,
    hex_id,
    integer,
    string,
)
from outbox.messages.otlp_schema import ENUMS, MESSAGES, MISPLACED, ONEOFS

MAX_DEPTH = 64
"""Limit of nested objects and arrays, counting the document. The limits of receivers are 100 (protobuf) or 128
(serde_json); a deeper document would be refused there and become a dead letter."""

_SCALARS: dict[str, Check] = {
    "string": string,
    "bool": boolean,
    "double": double,
    "bytes": base64_bytes,
    "uint32": integer(0, 2**32 - 1),
    "int32": integer(-(2**31), 2**31 - 1),
    "uint64": decimal(0, 2**64 - 1),
    "int64": decimal(-(2**63), 2**63 - 1),
}
_IDS: dict[str, Check] = {
    "trace id": hex_id(32, may_be_empty=False),
    "span id": hex_id(16, may_be_empty=False),
    "trace id or empty": hex_id(32, may_be_empty=True),
    "span id or empty": hex_id(16, may_be_empty=True),
}
_REQUIRED = ("trace id", "span id")
_SNAKE = re.compile(r"_([a-z0-9])")
_TOO_DEEP = f"is nested deeper than {MAX_DEPTH} levels"


@cache
def checks() -> dict[str, Check]:
    """The check of every kind, including the three documents ``metrics``, ``traces`` and ``logs``."""
    known = _SCALARS | _IDS
    known |= {name: enum(names) for name, names in ENUMS.items()}
    # Messages are recursive (an AnyValue contains AnyValues): create them all without fields, then add the fields.
    fields: dict[str, dict[str, Check]] = {name: {} for name in MESSAGES}
    known |= {name: _message(name, fields[name]) for name in MESSAGES}
    for name, kinds in MESSAGES.items():
        for field, kind in kinds.items():
            fields[name][field] = _array(known[kind[1:-1]]) if kind.startswith("[") else known[kind]
    return known


def _message(name: str, fields: dict[str, Check]) -> Check:
    oneof = ONEOFS.get(name, frozenset())
    required = [field for field, kind in MESSAGES[name].items() if kind in _REQUIRED]

    def check(value: Any, depth: int) -> dict[str, Any]:
        if not isinstance(value, dict):
            raise expected("an object", value)
        if depth > MAX_DEPTH:
            raise Refused(_TOO_DEEP)
        out = {}
        key: Any = None
        try:
            for key, item in value.items():
                if key not in fields:
                    raise _unknown(key, fields)
                if item is not None:  # proto3 JSON reads null as absent; OTLP/JSON writes no nulls
                    out[key] = fields[key](item, depth + 1)
        except Refused as refused:
            refused.steps.append(shown(key))
            raise
        if len(out) > 1 and len(oneof & out.keys()) > 1:
            first, second = [field for field in out if field in oneof][:2]
            raise Refused(f"is set beside {first}: only one of them can be", second)
        for field in required:
            if field not in out:
                raise Refused("is missing", field)
        return out

    return _lifting(check, fields, MISPLACED[name]) if name in MISPLACED else check


def _array(element: Check) -> Check:
    def check(value: Any, depth: int) -> list[Any]:
        if not isinstance(value, list | tuple):
            raise expected("an array", value)
        if depth > MAX_DEPTH:
            raise Refused(_TOO_DEEP)
        out = []
        try:
            for item in value:
                out.append(element(item, depth + 1))  # noqa: PERF401  (len(out) is the index of a refusal)
        except Refused as refused:
            refused.steps.append(f"[{len(out)}]")
            raise
        return out

    return check


def _unknown(key: object, fields: dict[str, Check]) -> Refused:
    camel = _SNAKE.sub(lambda match: match[1].upper(), str(key))
    return Refused(f"unknown field; OTLP/JSON writes {camel}" if camel in fields else "unknown field")


def _lifting(check: Check, fields: dict[str, Check], names: tuple[str, ...]) -> Check:
    """``check`` for a message whose fields ``names`` may wrongly be inside its data points."""

    def lifted(value: Any, depth: int) -> Any:
        points: Any = value.get("dataPoints") if isinstance(value, dict) else None
        if not _are_points(points):
            return check(value, depth)  # raises the right error
        for name in names:
            if any(name in point for point in points):
                value = {**value, **_lift(value, points, name, fields[name])}
                points = value["dataPoints"]
        return check(value, depth)

    return lifted


def _are_points(points: object) -> bool:
    return isinstance(points, list | tuple) and all(isinstance(point, dict) for point in points)


def _lift(value: dict[str, Any], points: list[dict[str, Any]], name: str, check: Check) -> dict[str, Any]:
    """The fields of the message with ``name`` moved up from its data points. Refused if the values disagree."""
    above = None if value.get(name) is None else _checked(check, value[name], name)
    agreed = above
    for index, point in enumerate(points):
        steps = (name, f"[{index}]", "dataPoints")
        found = None if point.get(name) is None else _checked(check, point[name], *steps)
        if found is None and above is None and any(other.get(name) is not None for other in points):
            raise Refused("is missing here but set in other data points: it belongs one level above", *steps)
        if found is not None and agreed is not None and found != agreed:
            raise Refused("contradicts the others: it belongs one level above, once for all", *steps)
        agreed = found if agreed is None else agreed
    stripped = [{key: item for key, item in point.items() if key != name} for point in points]
    return {"dataPoints": stripped} if agreed is None else {"dataPoints": stripped, name: agreed}


def _checked(check: Check, value: Any, *steps: str) -> Any:
    try:
        return check(value, 0)
    except Refused as refused:
        refused.steps.extend(steps)
        raise
