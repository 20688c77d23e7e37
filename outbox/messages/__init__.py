"""Messages: what producers enqueue, checked and encoded before it touches the database.

    UsageInterval         lane usage; billing rows
    TelemetryEnvelope     lanes metrics, traces, logs; OTLP/JSON
    Message               what both are to the rest of the outbox: id, lane, payload

Everything that can be wrong with a message raises :class:`outbox.errors.InvalidMessage` here, in the producer, where
it can be corrected. Later it would be a dead letter.

message           what every message has; compact JSON in ASCII
usage             UsageInterval: its fields, and the checks on them
otlp              TelemetryEnvelope: one OTLP/JSON document
otlp_schema       the messages of OTLP as tables: field name -> kind
otlp_scalars      how the scalars of OTLP/JSON are read
otlp_check        the tables as functions that check a document
otlp_normalise    a document in canonical form
otlp_split        a document that is too large for one envelope, as several
privacy_defaults  the attributes that telemetry may carry by default
privacy           PrivacyPolicy: what may leave in telemetry
privacy_values    what in a text may identify a person or give away a secret
privacy_filter    a document as a privacy policy leaves it
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
