"""A beacon that means harm or is broken: what it answers, and an outbox that must deal with it.

Builds on ``tests.transport.support.raw_server``; here are the answers that take more than one line.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import UUID

from outbox import BeaconTransport, Dispatcher, Outbox, Settings
from outbox.core.entry import EntryView, LaneStatus
from tests.cli.command import Command
from tests.support import ledger
from tests.support.waiting import wait_until
from tests.transport.support.raw_server import JSON, RawServer, Reply, answer, flood, head_of

TOKEN = "token.of.a-hostile-beacon"
PATHS = {"usage": "/ingest-traces", "traces": "/v1/traces", "metrics": "/v1/metrics"}
ATTEMPTS_TO_PAUSE = 3
"""Counted failures in a row after which a lane pauses."""

_ZEROS = bytes(1 << 24)


@dataclass(frozen=True)
class Victim:
    """An outbox on SQLite, its dispatcher, the command line of its operator, and the beacon it is at the mercy of."""

    beacon: RawServer
    box: Outbox
    dispatcher: Dispatcher
    outbox: Command

    def lane(self, name: str = "usage") -> LaneStatus:
        return self.box.status().lanes[name]

    def find(self, id: UUID) -> EntryView:
        view = self.box.find(id)
        assert view is not None
        return view

    def must_recover(self, ids: Sequence[UUID], lane: str = "usage", *, attempts: int = ATTEMPTS_TO_PAUSE) -> None:
        """None of ``ids`` is sent after so many attempts; once beacon is well all are, under the key they had."""
        assert (self.lane(lane).sent, self.lane(lane).dead) == (0, 0)
        for view in map(self.find, ids):
            assert view.status == "waiting"
            assert view.num_failed_send_attempts >= attempts
            assert view.maybe_delivered is bool(attempts)
        well(self.beacon)
        self.until(lambda: self.lane(lane).sent == len(ids))
        assert self.lane(lane).state == "open"
        assert len({seen.headers["idempotency-key"] for seen in self.beacon.posts(PATHS[lane])}) == 1

    def until(self, holds: Callable[[], Any], timeout: float = 30) -> None:
        """Dispatch until it holds."""

        def dispatched() -> Any:
            self.dispatcher.run_once()
            return holds()

        wait_until(dispatched, timeout, lambda: str(self.box.status()))

    def until_paused(self, lane: str = "usage") -> str:
        """Dispatch until the lane is paused; why, as ``outbox status`` tells it in both of its forms."""
        self.until(lambda: self.lane(lane).state == "paused")
        return self._told(lane)

    def until_refused(self, ids: Sequence[UUID], lane: str = "usage") -> str:
        """As ``until_paused``, when each of ``ids`` was under way often enough and its last answer was no answer.

        Where only a short deadline ends an answer, it may also end a request of which nothing was sent yet: the lane
        then pauses after fewer attempts of its rows than it counts failures.
        """

        def refused() -> bool:
            tried = all(self.find(id).num_failed_send_attempts >= ATTEMPTS_TO_PAUSE for id in ids)
            now = self.lane(lane)
            return tried and now.state == "paused" and "ambiguous" in str(now.reason)

        self.until(refused)
        return self._told(lane)

    def _told(self, lane: str) -> str:
        seen = self.outbox("status", "--output", "json").json()["lanes"][lane]
        assert seen["state"] == "paused"
        assert seen["reason"] in self.outbox("status").out
        reason: str = seen["reason"]
        return reason


@contextmanager
def victim_of(server: RawServer, folder: Path, **settings: Any) -> Iterator[Victim]:
    """An outbox whose beacon is ``server``, and which retries soon. Its ledger must hold at the end."""
    given = {
        "database_url": f"sqlite:///{folder}/outbox.db",
        "beacon_url": server.url,
        "license_key": "licence-of-the-victim",
        "request_timeout": 5.0,
        "backoff_base": 0.01,
        "backoff_max": 0.05,
        **settings,
    }
    with ExitStack() as stack:
        box = stack.enter_context(Outbox(settings=Settings(**given)))
        box.migrate()
        dispatcher = Dispatcher(box, stack.enter_context(BeaconTransport(box.settings)))
        stack.callback(dispatcher.close)
        yield Victim(server, box, dispatcher, Command(folder, **{name: str(value) for name, value in given.items()}))
        ledger.check(box.engine)


def well(server: RawServer, rows: int = 2) -> None:
    """An honest beacon that takes ``rows`` usage rows a request."""
    server.on("/verify", verified(TOKEN))
    server.on("/ingest-traces", inserted(rows))
    for path in ("/v1/metrics", "/v1/traces", "/v1/logs"):
        server.on(path, answer(200, b"{}"))


@contextmanager
def serving_well() -> Iterator[RawServer]:
    """A server that answers as an honest beacon does until a test changes an answer."""
    with RawServer() as server:
        well(server)
        yield server


def verified(token: object) -> Reply:
    return answer(200, json.dumps({"token": token}).encode())


def inserted(count: object) -> Reply:
    return answer(200, json.dumps({"inserted_count": count}).encode())


def ok(body: bytes, *, length: int | None = None, **headers: str) -> bytes:
    """A whole 200 on the wire. ``Content_Encoding="gzip"`` is a header."""
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return head_of(200, JSON | named, len(body) if length is None else length) + body


def twice(body: bytes) -> Reply:
    """Two whole answers to one request, in one segment."""

    def reply(connection: Any) -> None:
        connection.sock.sendall(ok(body) + ok(body))
        connection.fire("answered twice")

    return reply


def noted(name: str, raw: bytes) -> Reply:
    """Sends ``raw``, notes ``name`` and closes: after most of what is sent here, nothing more can be said."""

    def reply(connection: Any) -> None:
        connection.sock.sendall(raw)
        connection.fire(name)
        connection.sock.close()

    return reply


def gzip_bomb() -> Reply:
    """A JSON string of zeros without end: 16 MiB for every 16 KiB on the wire."""
    packer = zlib.compressobj(9, wbits=zlib.MAX_WBITS | 16)
    start = packer.compress(b'{"inserted_count":2,"x":"') + packer.flush(zlib.Z_FULL_FLUSH)
    block = packer.compress(_ZEROS) + packer.flush(zlib.Z_FULL_FLUSH)  # stands alone, so it may be repeated
    return flood(head_of(200, JSON | {"Content-Encoding": "gzip"}, 1 << 40) + start, block)


def endless_body() -> Reply:
    return flood(head_of(200, JSON, 1 << 40) + b'{"inserted_count":2,"x":"', b"x" * 65536)


def endless_chunks() -> Reply:
    return flood(head_of(200, JSON | {"Transfer-Encoding": "chunked"}), b"1\r\n \r\n" * 4096)


def endless_chunk_extension() -> Reply:
    return flood(head_of(200, JSON | {"Transfer-Encoding": "chunked"}) + b"1;", b"x" * 4096)


def endless_trailers() -> Reply:
    body = b'14\r\n{"inserted_count":2}\r\n0\r\n'
    return flood(head_of(200, JSON | {"Transfer-Encoding": "chunked"}) + body, b"X-Trailer: x\r\n" * 256)


def endless_headers() -> Reply:
    return flood(b"HTTP/1.1 200 OK\r\n", b"X-Header: x\r\n" * 256)


def endless_header() -> Reply:
    return flood(b"HTTP/1.1 200 OK\r\nX-Header: ", b"x" * 4096)


def endless_interim_answers() -> Reply:
    return flood(b"", b"HTTP/1.1 100 Continue\r\n\r\n" * 64)


FLOODS = {
    "gzip bomb": gzip_bomb,
    "endless body": endless_body,
    "endless chunks": endless_chunks,
    "endless chunk extension": endless_chunk_extension,
    "endless trailers": endless_trailers,
    "endless headers": endless_headers,
    "endless header": endless_header,
    "endless interim answers": endless_interim_answers,
}
"""Answers that never end; each notes ``client hung up in the flood``."""
