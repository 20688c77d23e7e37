"""TelemetryEnvelope: metrics, traces or logs as one OTLP/JSON document."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Self
from uuid import UUID

from outbox.core.lane import LANES, Lane, Signal
from outbox.errors import InvalidMessage
from outbox.messages.message import AnyUUID, JsonText, Sealed, new_id, set_id, set_lane, set_payload, to_json, to_uuid
from outbox.messages.otlp_normalise import DOCUMENT, normalise
from outbox.messages.otlp_split import split_document
from outbox.messages.privacy_filter import Filter, Taken


class TelemetryEnvelope(Sealed):
    """One OTLP/JSON document, checked against the OTLP schema and stored in canonical form.

    ``signal`` is ``metrics``, ``traces`` or ``logs``; ``document`` is the whole document, with exactly one key
    (``resourceMetrics``, ``resourceSpans``, ``resourceLogs``) and not empty, parsed or as UTF-8 text.
    ``id`` defaults to a fresh UUIDv7.

    Deviations whose meaning is certain are converted to the canonical form: 64-bit integers become decimal text,
    names of enums their numbers, hex ids lower case; null fields are removed; ``aggregationTemporality`` and
    ``isMonotonic`` move from the data points, where the beacon document has them, to the metric. Nothing else is
    added, removed or reordered: empty objects, arrays and texts stay.

    Everything else raises :class:`InvalidMessage` with the path, as in
    ``resourceSpans[0].scopeSpans[0].spans[0].kind``: a field that OTLP does not have, since a receiver may ignore it
    or refuse the body for it; a malformed or missing id; a document without a span, metric or log record. For a
    document that is too large use :meth:`split`.
    """

    __slots__ = ("_left",)

    _left: tuple[Filter, str]
    """The last filter that was applied, and the payload that it returned."""

    def __init__(self, signal: Signal, document: dict[str, Any] | JsonText, id: AnyUUID | None = None) -> None:
        canonical = normalise(signal, document)
        self._hold(Lane(signal), canonical, new_id() if id is None else id)

    @classmethod
    def split(cls, signal: Signal, document: dict[str, Any] | JsonText) -> list[TelemetryEnvelope]:
        """A ``document`` of any size as one or more envelopes, in its order, each with a new id.

        Raises :class:`InvalidMessage` as the constructor does, except for the size of the whole. It is split by
        :func:`outbox.messages.split_document`.
        """
        envelopes = []
        for part in split_document(signal, document):
            envelope = cls.__new__(cls)
            envelope._hold(Lane(signal), part, new_id())
            envelopes.append(envelope)
        return envelopes

    def _hold(self, lane: Lane, canonical: dict[str, Any], id: AnyUUID) -> None:
        payload = to_json(canonical)
        _check_size(len(payload), LANES[lane].max_payload_bytes)
        self._seal(to_uuid("id", id), lane, payload)

    def _seal(self, id: UUID, lane: Lane, payload: str) -> None:
        set_id(self, id)
        set_lane(self, lane)
        set_payload(self, payload)

    @classmethod
    def of_canonical(cls, signal: Signal, payload: str) -> Self:
        """The envelope of a payload that is already in canonical form. Only its size is checked.

        For the outbox's own encoders, whose output is tested to equal that of ``normalise``.
        """
        _check_size(len(payload), LANES[Lane(signal)].max_payload_bytes)
        envelope = cls.__new__(cls)
        envelope._seal(to_uuid("id", new_id()), Lane(signal), payload)
        return envelope

    @property
    def signal(self) -> Signal:
        return self.lane.value  # type: ignore[return-value]  # never Lane.USAGE

    def left_by(self, filter: Filter) -> tuple[str, Taken]:
        """The filtered payload, and what the filter removed. The result is cached for a retried put."""
        known, text = getattr(self, "_left", (None, ""))
        if known is filter:
            return text, {}
        text, taken = filter.filtered(self.lane, self.payload)
        _set_left(self, (filter, text))
        return text, taken

    def __reduce__(self) -> tuple[Callable[..., TelemetryEnvelope], tuple[Signal, str, UUID]]:
        return TelemetryEnvelope, (self.signal, self.payload, self.id)


_set_left = TelemetryEnvelope.__dict__["_left"].__set__


def _check_size(size: int, limit: int) -> None:
    if size > limit:
        several = "make several envelopes of it by TelemetryEnvelope.split"
        raise InvalidMessage(DOCUMENT, f"is {size} bytes in compact form, more than {limit}: {several}")
