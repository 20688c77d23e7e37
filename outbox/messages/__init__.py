"""Messages: what producers enqueue, checked and encoded before it touches the database.

    UsageInterval         lane usage; billing rows
    TelemetryEnvelope     lanes metrics, traces, logs; OTLP/JSON
    Message               what both are to the rest of the outbox: id, lane, payload

All that can be wrong with a message is an :class:`outbox.errors.InvalidMessage` here, at the producer, where
somebody can mend it. Later it would be a dead letter.
"""

from outbox.messages.message import Message
from outbox.messages.otlp import TelemetryEnvelope
from outbox.messages.otlp_normalise import normalise
from outbox.messages.otlp_split import split_document
from outbox.messages.usage import UsageFields, UsageInterval, usage_from_document

__all__ = [
    "Message",
    "TelemetryEnvelope",
    "UsageFields",
    "UsageInterval",
    "normalise",
    "split_document",
    "usage_from_document",
]
