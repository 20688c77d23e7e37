"""The values exchanged between the HTTP protocol and the endpoints: ``Request`` in, ``Reply`` out."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from enum import Enum
from urllib.parse import parse_qs

import msgspec

from outbox.core.lane import LANES

BASE_PATH = "/v1/beacon"
VERIFY = "verify"
"""The name of the licence endpoint; it is used like a lane's wherever lanes are named."""
LANE_NAMES: tuple[str, ...] = (VERIFY, *(lane.value for lane in LANES))


@dataclass(slots=True)
class Request:
    """One complete HTTP request. Header names are lower-case."""

    method: str
    path: str
    query: str
    headers: dict[bytes, bytes]
    body: bytes
    keep_alive: bool

    def header(self, name: bytes) -> str:
        return self.headers.get(name, b"").decode("latin-1")

    def parameter(self, name: str, default: str) -> str:
        return parse_qs(self.query).get(name, [default])[-1]


class Delivery(Enum):
    """How an answer is put on the wire."""

    WHOLE = "whole"
    LOST = "lost"
    """Close the connection instead of answering."""
    RESET = "reset"
    """Reset the connection (TCP RST) instead of answering."""
    HALF = "half"
    """Send the Content-Length of the whole body, then half of it, then close the connection."""
    DRIP = "drip"
    """Send the body one byte at a time."""


@dataclass(slots=True)
class Reply:
    """An answer and how it is delivered."""

    status: int
    body: bytes = b"{}"
    content_type: str = "application/json"
    headers: dict[str, str] = field(default_factory=dict)
    delivery: Delivery = Delivery.WHOLE
    delay_seconds: float = 0.0
    drip_seconds: float = 0.0
    parts: Iterable[bytes] | None = None
    """If set, these are sent with chunked transfer encoding instead of ``body``."""
    wait: asyncio.Future[None] | None = None
    """If set, the answer is sent when this future is done."""
    malformed: bool = False
    """Whether the body of the request had the wrong shape for its endpoint."""
    done: Callable[[], None] | None = None
    """Called once, when the answer was sent or the connection was lost."""


def refusal(status: int, error: str, **detail: str) -> Reply:
    """An error answer: ``{"error": ...}`` and the fields of ``detail``."""
    return Reply(status, msgspec.json.encode({"error": error, **detail}))
