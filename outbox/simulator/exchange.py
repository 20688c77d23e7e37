"""What passes between the protocol, which speaks HTTP, and the endpoints, which decide."""

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
"""The licence endpoint, named like a lane wherever lanes are named."""
LANE_NAMES: tuple[str, ...] = (VERIFY, *(lane.value for lane in LANES))


@dataclass(slots=True)
class Request:
    """One HTTP request, whole. Header names are lower-case."""

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
    """The same with a TCP reset."""
    HALF = "half"
    """Promise the whole body, send half of it, close."""
    DRIP = "drip"
    """One byte of the body at a time."""


@dataclass(slots=True)
class Reply:
    """An answer, and how to give it."""

    status: int
    body: bytes = b"{}"
    content_type: str = "application/json"
    headers: dict[str, str] = field(default_factory=dict)
    delivery: Delivery = Delivery.WHOLE
    delay_seconds: float = 0.0
    drip_seconds: float = 0.0
    parts: Iterable[bytes] | None = None
    """Sent chunked instead of ``body``."""
    wait: asyncio.Future[None] | None = None
    """The answer is given when this is done."""
    malformed: bool = False
    """The request's body broke its endpoint's shape."""
    done: Callable[[], None] | None = None
    """Called once, when the answer was given or its connection died."""


def refusal(status: int, error: str, **detail: str) -> Reply:
    """An error answer: ``{"error": ...}`` with whatever helps its reader."""
    return Reply(status, msgspec.json.encode({"error": error, **detail}))
