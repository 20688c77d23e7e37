"""Batches and settings for tests of the transport."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from uuid import UUID

from outbox.boottime import boottime
from outbox.core.batch import Batch
from outbox.core.lane import LANES, Lane
from outbox.core.telemetry import LEVELS
from outbox.transport.beacon import BeaconTransport

MakeTransport = Callable[..., BeaconTransport]
"""The fixture ``transport_to``: a URL, and settings to change."""

BATCH_ID = UUID("019432a0-0000-7000-8000-000000000001")
LICENSE = 'lic-C4NARY/"key"-5f1e'
TOKEN = "tok-C4NARY.e30.signature-77ab"


@dataclass
class FakeSettings:
    """The attributes of ``outbox.settings.Settings`` that the transport reads."""

    beacon_url: str
    key: str | None = LICENSE
    request_timeout: float = 20.0
    allow_http: bool = False
    offline: bool = False
    token_header: str = "Authorization"
    token_public_key: str | None = None
    telemetry_compression: str = "none"
    usage_compression: str = "none"
    ca_file: Path | None = None
    client_cert_file: Path | None = None
    client_key_file: Path | None = None

    def license(self) -> str | None:
        return self.key


def row(number: int, **changes: object) -> str:
    fields = {"id": f"row-{number}", "trace_count": number, "status": "completed", "num_failed_send_attempts": 0}
    return json.dumps(fields | changes, separators=(",", ":"))


def envelope(lane: Lane, *elements: object) -> str:
    return json.dumps({LANES[lane].root_key: elements}, separators=(",", ":"))


def item(lane: Lane, number: int, **resource: object) -> str:
    """An envelope of one span, log record or data point, in a scope of its own."""
    _, scopes, items, *points = LEVELS[lane]
    one: dict[str, object] = {"name": f"item-{number}"}
    held = {"gauge": {points[0]: [one]}} if points else one
    return envelope(lane, {**resource, scopes: [{"scope": {"name": f"scope-{number}"}, items: [held]}]})


def batch_of(
    payloads: Sequence[str] | None = None,
    *,
    lane: Lane = Lane.USAGE,
    attempts: int = 0,
    lease_seconds: float = 600.0,
) -> Batch:
    if payloads is None:
        payloads = [row(1), row(2)] if lane is Lane.USAGE else [item(lane, 1), item(lane, 2)]
    return Batch(
        id=BATCH_ID,
        lane=lane,
        members=((1, len(payloads)),),
        rows=len(payloads),
        payload_bytes=sum(map(len, payloads)),
        attempts=attempts,
        lease_token=UUID(int=7),
        lease_deadline=boottime() + lease_seconds,
        ambiguous=False,
        lines="\n".join(payloads),
    )
