"""The traces that a beacon simulator received."""

from __future__ import annotations

import json
from collections import defaultdict
from typing import Any

from outbox.simulator import SimulatorClient

Span = dict[str, Any]


def traces_arrived(beacon_url: str) -> dict[str, list[Span]]:
    """The spans of each trace, by trace id. Requests with the same Idempotency-Key count once."""
    with SimulatorClient(beacon_url) as beacon:
        accepted = [body for body in beacon.bodies("traces") if body["status"] == 200]
    traces: dict[str, list[Span]] = defaultdict(list)
    for body in {each["headers"]["idempotency-key"]: each["body"] for each in accepted}.values():
        for resource in json.loads(body)["resourceSpans"]:
            for scope in resource["scopeSpans"]:
                for span in scope["spans"]:
                    traces[span["traceId"]].append(span)
    return dict(traces)
