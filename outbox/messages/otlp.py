"""TelemetryEnvelope: metrics, traces or logs as one OTLP/JSON document."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Self
from uuid import UUID

from outbox.core.lane import LANES, SIGNALS, Lane, Signal
from outbox.errors import InvalidMessage
from outbox.messages.message import (
    JSON_TEXT,
    JsonText,
    Sealed,
    new_id,
    parse_json,
    to_json,
    to_uuid,
    type_name,
)
from outbox.messages.otlp_check import checks
from outbox.messages.otlp_scalars import Refused

_DOCUMENT = "(document)"
_SPACE = 4
"""Text of a document may be this many times longer than its compact form (indentation), not more."""


class TelemetryEnvelope(Sealed):
    """One OTLP/JSON document, checked against the OTLP schema and stored in canonical form.

    ``signal`` is ``metrics``, ``traces`` or ``logs``; ``document`` is the whole document, with exactly one key
    (``resourceMetrics``, ``resourceSpans``, ``resourceLogs``) and something in it, parsed or as UTF-8 text.
    ``id`` defaults to a fresh UUIDv7.

    Where the meaning is certain, loose JSON is made canonical: 64-bit integers become decimal text, names of
    enums their numbers, hex ids lower case; null fields go; ``aggregationTemporality`` and ``isMonotonic`` move
    from the data points, where the beacon document has them, to the metric. Nothing else is added, dropped
    or reordered: empty objects, arrays and texts stay.

    Everything else raises :class:`InvalidMessage` with the path, as in
    ``resourceSpans[0].scopeSpans[0].spans[0].kind``. That includes a field that OTLP does not have: a receiver
    may ignore it or refuse the body for it, and which one cannot be known here.

    ``strict_ids`` also refuses trace and span ids that are malformed; see ``otlp_check._lenient_id``.
    """

    __slots__ = ()

    def __init__(
        self,
        signal: Signal,
        document: dict[str, Any] | JsonText,
        id: UUID | str | None = None,
        *,
        strict_ids: bool = False,
    ) -> None:
        canonical = normalise(signal, document, strict_ids=strict_ids)
        lane = Lane(signal)
        payload = to_json(canonical)
        _check_size(len(payload), LANES[lane].max_payload_bytes)
        self._seal(to_uuid("id", new_id() if id is None else id), lane, payload)

    @classmethod
    def of_canonical(cls, signal: Signal, payload: str) -> Self:
        """The envelope of a payload that is in canonical form already; nothing of it is checked but its size.

        For writers of our own whose output is proved to be what ``normalise`` would make of it.
        """
        _check_size(len(payload), LANES[Lane(signal)].max_payload_bytes)
        envelope = cls.__new__(cls)
        envelope._seal(to_uuid("id", new_id()), Lane(signal), payload)
        return envelope

    @property
    def signal(self) -> Signal:
        return self.lane.value  # type: ignore[return-value]  # never Lane.USAGE

    def __reduce__(self) -> tuple[Callable[..., TelemetryEnvelope], tuple[Signal, str, UUID]]:
        return TelemetryEnvelope, (self.signal, self.payload, self.id)


def normalise(signal: Signal, document: dict[str, Any] | JsonText, *, strict_ids: bool = False) -> dict[str, Any]:
    """The canonical form of ``document`` as new objects; normalising it again changes nothing.

    Raises :class:`InvalidMessage` with the path to what is wrong.
    """
    if signal not in SIGNALS:
        raise InvalidMessage("signal", f"expected one of {', '.join(SIGNALS)}")
    spec = LANES[Lane(signal)]
    parsed = document
    if isinstance(document, JSON_TEXT):
        parsed = parse_json(document, _DOCUMENT, _SPACE * spec.max_payload_bytes)
    _check_root(parsed, spec.root_key)
    try:
        canonical: dict[str, Any] = checks(strict_ids=strict_ids)[signal](parsed, 1)
    except Refused as refused:
        raise InvalidMessage(_path(refused.steps), refused.reason) from None
    return canonical


def _check_root(document: object, root_key: str) -> None:
    if not isinstance(document, dict):
        raise InvalidMessage(_DOCUMENT, f"expected an object, got {type_name(document)}")
    for lane in (Lane(signal) for signal in SIGNALS):
        if LANES[lane].root_key != root_key and LANES[lane].root_key in document:
            raise InvalidMessage(LANES[lane].root_key, f"belongs in a document of {lane}; expected {root_key}")
    if document.get(root_key) in (None, [], ()):
        raise InvalidMessage(root_key, "is missing or empty: OTLP sends no empty documents")


def _check_size(size: int, limit: int) -> None:
    if size > limit:
        raise InvalidMessage(_DOCUMENT, f"is {size} bytes in compact form, more than {limit}: split it")


def _path(steps: list[str]) -> str:
    """``["kind", "[0]", "spans"]`` as ``spans[0].kind``."""
    return ".".join(reversed(steps)).replace(".[", "[")
