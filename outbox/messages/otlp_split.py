"""Split a telemetry document that is too large for one envelope."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from outbox.core.lane import LANES, Lane, Signal
from outbox.core.telemetry import leaves, part, place
from outbox.errors import InvalidMessage
from outbox.messages.message import JSON_TEXT, JsonText, parse_json, to_json
from outbox.messages.otlp_normalise import DOCUMENT, normalise


def split_document(
    signal: Signal, document: dict[str, Any] | JsonText, limit_bytes: int | None = None
) -> list[dict[str, Any]]:
    """``document`` as canonical documents of at most ``limit_bytes`` each, as compact JSON.

    ``limit_bytes`` None: the limit of an entry of the lane (``LANES[lane].max_payload_bytes``). The document is split
    between spans, log records or data points; each part repeats the resource, the scope and, for data points, the
    metric that they belong to. Nothing is lost, the order stays, and a document that fits is the only part.

    Raises :class:`InvalidMessage` where ``TelemetryEnvelope`` does, except for the size; and, with the path, if a
    single span, log record or data point exceeds the limit.
    """
    if isinstance(document, JSON_TEXT):
        document = parse_json(document, DOCUMENT)
    canonical = normalise(signal, document)
    lane = Lane(signal)
    limit = LANES[lane].max_payload_bytes if limit_bytes is None else limit_bytes
    return list(_fitting(lane, canonical, limit, 0, leaves(lane, canonical)))


def _fitting(lane: Lane, whole: dict[str, Any], limit: int, first: int, last: int) -> Iterator[dict[str, Any]]:
    """The leaves in ``range(first, last)``, split into equal parts, and those that do not fit split again."""
    document = part(lane, whole, first, last)
    size = len(to_json(document))
    count = last - first
    if size <= limit:
        yield document
    elif count == 1:
        raise InvalidMessage(place(lane, whole, first), f"is {size} bytes with all that it belongs to, over {limit}")
    else:
        parts = min(count, -(-size // max(1, limit)))
        for index in range(parts):
            start, end = first + count * index // parts, first + count * (index + 1) // parts
            yield from _fitting(lane, whole, limit, start, end)
