"""The simulator's own endpoints, for tests and tools in another process.

    GET  /_simulator               url, control_url, faults, fired, counts
    POST /_simulator               change the faults named in the JSON body (null: back to the default)
    POST /_simulator/reset         clear the faults, the counts of fired faults and everything received
    POST /_simulator/revoke-tokens forget every token issued
    GET  /_simulator/public-key    PEM of the key that signs the tokens
    GET  /_simulator/ids           id -> how often it was accepted         ?lane=usage
    GET  /_simulator/duplicates    id -> its Idempotency-Keys, of ids that were accepted more than once
    GET  /_simulator/arrivals      id -> epoch seconds of its first arrival
    GET  /_simulator/bodies        the last requests, bodies in base64

They are served on beacon's port, and on that of ``control_url``, which stays open while beacon is down.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Mapping
from itertools import islice
from typing import Any

import msgspec

from outbox.core.lane import Lane
from outbox.errors import ConfigError
from outbox.simulator.endpoints import ELSEWHERE
from outbox.simulator.exchange import LANE_NAMES, Reply, Request, refusal
from outbox.simulator.faults import Faults
from outbox.simulator.received import Received
from outbox.simulator.shapes import BodyError, read_patch
from outbox.simulator.tokens import Mint

PREFIX = "/_simulator"
_CHUNK_IDS = 10_000


class Control:
    """The application of ``/_simulator``.

    ``describe`` returns the addresses, ``settled`` a future that is done when the value of ``down`` has taken effect.
    """

    def __init__(
        self,
        faults: Faults,
        received: Received,
        mint: Mint,
        *,
        describe: Callable[[], Mapping[str, str]],
        settled: Callable[[], asyncio.Future[None]],
    ) -> None:
        self._faults = faults
        self._received = received
        self._mint = mint
        self._describe = describe
        self._settled = settled
        self._readings: dict[str, Callable[[str], Mapping[str, Any]]] = {
            "ids": received.ids,
            "duplicates": received.duplicates,
            "arrivals": received.arrivals,
        }

    def __call__(self, request: Request) -> Reply:
        name = request.path.removeprefix(PREFIX).strip("/")
        match request.method, name:
            case "GET", "":
                return self._state()
            case "POST", "":
                return self._patch(request)
            case "POST", "reset":
                return self._reset()
            case "POST", "revoke-tokens":
                self._mint.revoke()
                return Reply(200)
            case "GET", "public-key":
                return Reply(200, self._mint.public_pem.encode(), "application/x-pem-file")
            case "GET", "ids" | "duplicates" | "arrivals" | "bodies":
                return self._reading(name, request.parameter("lane", Lane.USAGE))
        if request.path == ELSEWHERE:
            self._received.followed()
            return Reply(200)
        return refusal(404, "no such endpoint", path=request.path)

    def _state(self) -> Reply:
        state = {
            **self._describe(),
            "faults": self._faults.as_dict(),
            "fired": dict(self._faults.fired),
            "counts": self._received.counts(),
        }
        return Reply(200, msgspec.json.encode(state))

    def _patch(self, request: Request) -> Reply:
        try:
            self._faults.patch(read_patch(request.body))
        except (BodyError, ConfigError) as error:
            return refusal(400, str(error))
        reply = self._state()
        reply.wait = self._settled()
        return reply

    def _reset(self) -> Reply:
        self._faults.clear()
        self._received.clear()
        reply = self._state()
        reply.wait = self._settled()
        return reply

    def _reading(self, name: str, lane: str) -> Reply:
        if lane not in LANE_NAMES:
            return refusal(400, f"there is no lane {lane!r}", known=", ".join(LANE_NAMES))
        if name == "bodies":
            return Reply(200, msgspec.json.encode(self._received.bodies(lane)))
        return Reply(200, parts=_json_in_chunks(self._readings[name](lane)))


def _json_in_chunks(mapping: Mapping[str, Any]) -> Iterator[bytes]:
    """One JSON object in chunks, so that its whole text is never in memory at once."""
    items = iter(mapping.items())
    separator = b"{"
    while chunk := dict(islice(items, _CHUNK_IDS)):
        yield separator + msgspec.json.encode(chunk)[1:-1]
        separator = b","
    yield b"}" if mapping else b"{}"
