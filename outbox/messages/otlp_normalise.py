"""Normalise a telemetry document: deviations with a certain meaning are converted, all others are refused."""

from __future__ import annotations

from typing import Any

from outbox.core.lane import LANES, SIGNALS, Lane, Signal
from outbox.core.telemetry import leaves
from outbox.errors import InvalidMessage
from outbox.messages.message import JSON_TEXT, JsonText, parse_json, type_name
from outbox.messages.otlp_check import checks
from outbox.messages.otlp_scalars import Refused

DOCUMENT = "(document)"
"""The path to the whole document."""

_ITEM = {Lane.METRICS: "metric", Lane.TRACES: "span", Lane.LOGS: "log record"}

_SPACE = 4
"""The text of a document may be this many times longer than its compact form, because of indentation."""


def normalise(signal: Signal, document: dict[str, Any] | JsonText) -> dict[str, Any]:
    """The canonical form of ``document``, in new objects. Idempotent.

    Raises :class:`InvalidMessage` with the path to the invalid value.
    """
    if signal not in SIGNALS:
        raise InvalidMessage("signal", f"expected one of {', '.join(SIGNALS)}")
    spec = LANES[Lane(signal)]
    parsed = document
    if isinstance(document, JSON_TEXT):
        parsed = parse_json(document, DOCUMENT, _SPACE * spec.max_payload_bytes)
    _check_root(parsed, spec.root_key)
    try:
        canonical: dict[str, Any] = checks()[signal](parsed, 1)
    except Refused as refused:
        raise InvalidMessage(_path(refused.steps), refused.reason) from None
    if not leaves(spec.lane, canonical):
        raise InvalidMessage(spec.root_key, f"holds no {_ITEM[spec.lane]}: OTLP sends no empty documents")
    return canonical


def _check_root(document: object, root_key: str) -> None:
    if not isinstance(document, dict):
        raise InvalidMessage(DOCUMENT, f"expected an object, got {type_name(document)}")
    for lane in (Lane(signal) for signal in SIGNALS):
        if LANES[lane].root_key != root_key and LANES[lane].root_key in document:
            raise InvalidMessage(LANES[lane].root_key, f"belongs in a document of {lane}; expected {root_key}")
    if document.get(root_key) in (None, [], ()):
        raise InvalidMessage(root_key, "is missing or empty: OTLP sends no empty documents")


def _path(steps: list[str]) -> str:
    """``["kind", "[0]", "spans"]`` as ``spans[0].kind``."""
    return ".".join(reversed(steps)).replace(".[", "[")
