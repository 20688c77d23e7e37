"""The example service, which also prints what it committed: ``python -m tests.otel.shop PORT``, set by ``OUTBOX_*``.

listening        when it is about to serve
TRACE SPAN       a line for each span of an envelope, once the transaction that holds it is committed
"""

from __future__ import annotations

import json
import sys
from typing import Any

from examples.service import serve
from outbox import Outbox, TelemetryEnvelope
from outbox.producer import EnqueueResult
from tests.otel.personal import OF_THE_HOST
from tests.otel.written import spans_of


class Telling(Outbox):
    """Prints what is committed. Lines that a kill cuts off are of committed spans too, which may arrive."""

    def put(self, *messages: Any, timeout: float = 0) -> EnqueueResult:
        messages = (*map(_with_personal_data, messages), _log_record())
        result = super().put(*messages, timeout=timeout)
        for message in messages:
            if message.lane == "traces":
                told = (f"{span['traceId']} {span['spanId']}\n" for span in spans_of(json.loads(message.payload)))
                print("".join(told), end="", flush=True)
        return result


def _with_personal_data(message: Any) -> Any:
    """Like an application that puts the name of a customer into an attribute, a span name and a log record."""
    if message.lane != "traces":
        return message
    document = json.loads(message.payload)
    for span in spans_of(document):
        span["name"] += f" of {OF_THE_HOST['span name']}@example.com"
        span.setdefault("attributes", []).append(
            {"key": "user.email", "value": {"stringValue": f"{OF_THE_HOST['attribute']}@example.com"}}
        )
    return TelemetryEnvelope("traces", document, message.id)


def _log_record() -> TelemetryEnvelope:
    record = {"body": {"stringValue": f"wrote to {OF_THE_HOST['log']}@example.com"}}
    return TelemetryEnvelope("logs", {"resourceLogs": [{"scopeLogs": [{"logRecords": [record]}]}]})


if __name__ == "__main__":
    print("listening", flush=True)
    serve(Telling(), int(sys.argv[1]))
