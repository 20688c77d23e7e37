"""Values of the SDK in OTLP/JSON: attributes, resources, scopes, times and numbers.

OpenTelemetry's own encoders are not used: the one for JSON is a pre-release and takes several times longer, and the
output of the one for protobuf would have to be converted. ``tests/otel`` compares this code with both.
"""

from __future__ import annotations

import base64
import math
from collections.abc import Mapping, Sequence
from operator import index
from typing import Any

from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.util.instrumentation import InstrumentationScope

from outbox.messages.message import to_json

Json = dict[str, Any]

MAX_NESTING = 12
"""Limit of nested values; deeper ones become text. Each takes four of the 64 JSON levels that an envelope may have."""
_NOT_TEXT = "\ufffd"


def attributes(given: Mapping[str, Any] | None) -> list[Json]:
    if not given:
        return []
    return [{"key": text(key), "value": any_value(value)} for key, value in dict(given).items()]


def any_value(value: object, nesting: int = 0) -> Json:
    """An AnyValue. A value of a type that OTLP does not have, or an integer beyond 64 bits, becomes its text."""
    match value:
        case str():
            return {"stringValue": text(value)}
        case bool():
            return {"boolValue": value}
        case int():
            inside = -(2**63) <= value < 2**63
            return {"intValue": str(int(value))} if inside else {"stringValue": str(int(value))}
        case float():
            return {"doubleValue": double(value)}
        case None:
            return {}
        case bytes() | bytearray() | memoryview():
            return {"bytesValue": base64.b64encode(value).decode()}
        case Sequence() | Mapping() if nesting < MAX_NESTING:
            return _container(value, nesting + 1)
    return {"stringValue": str(value)}


def _container(value: Sequence[Any] | Mapping[Any, Any], nesting: int) -> Json:
    if isinstance(value, Mapping):
        pairs = [{"key": text(key), "value": any_value(each, nesting)} for key, each in value.items()]
        return {"kvlistValue": {"values": pairs}}
    return {"arrayValue": {"values": [any_value(each, nesting) for each in value]}}


def text(value: object) -> str:
    """``value`` as a plain str. The SDK does not check the types of names that a caller passes."""
    return value if type(value) is str else str.__str__(value) if isinstance(value, str) else str(value)


def double(value: float) -> float | str:
    if math.isfinite(value):
        return float(value)
    return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"


def number(value: float) -> Json:
    """The value of a data point or exemplar. An integer of up to 64 bits stays an integer."""
    if isinstance(value, int) and -(2**63) <= value < 2**63:
        return {"asInt": str(int(value))}
    return {"asDouble": double(float(value))}


def nanoseconds(value: Any) -> str:
    """A time as OTLP's fixed64 in decimal text. The SDK passes on any object that a caller gives as a time.

    A whole float is accepted as its integer: ``time.time() * 1e9`` is an easy mistake. Raises ValueError for a time out
    of range and TypeError for other types, since a receiver would refuse the whole envelope for either.
    """
    if type(value) is not int:
        value = int(value) if isinstance(value, float) and value.is_integer() else index(value)
    if not 0 <= value < 2**64:
        raise ValueError(f"{value} is no time: nanoseconds since 1970, from 0 to 2**64 - 1")
    return str(value)


def trace_id(value: int) -> str:
    return f"{value:032x}"


def span_id(value: int) -> str:
    return f"{value:016x}"


def resource_head(resource: Resource) -> tuple[str, str]:
    """The JSON text before and after the scopes of a resource, without the array's brackets."""
    head = to_text({"resource": {"attributes": attributes(resource.attributes)}})
    return head[:-1], _schema(resource.schema_url)


def scope_head(scope: InstrumentationScope | None) -> tuple[str, str]:
    """The JSON text before and after the items of a scope, without the array's brackets."""
    if scope is None:
        return '{"scope":{}', ""
    written: Json = {"name": text(scope.name)}
    if scope.version:
        written["version"] = text(scope.version)
    if scope.attributes:
        written["attributes"] = attributes(scope.attributes)
    return to_text({"scope": written})[:-1], _schema(scope.schema_url)


def _schema(url: str | None) -> str:
    return f',"schemaUrl":{to_text(url)}' if url else ""


def to_text(value: Any) -> str:
    """Compact JSON in ASCII. U+0000 and lone surrogates, which databases do not store reliably, become U+FFFD."""
    try:
        written = to_json(value)
    except UnicodeEncodeError:
        return to_json(_mended(value))
    return to_json(_mended(value)) if "\\u0000" in written else written


def _mended(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _mended(each) for key, each in value.items()}
    if isinstance(value, list):
        return [_mended(each) for each in value]
    if isinstance(value, str):
        return value.replace("\x00", _NOT_TEXT).encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return value
