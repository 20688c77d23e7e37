"""The HTTP endpoints of a worker for an orchestrator's probes and for Prometheus.

| path     | 200 when                                             |
|----------|------------------------------------------------------|
| /livez   | the process answers                                  |
| /readyz  | the database answers and its tables are up to date   |
| /metrics | as /readyz; gauges in the Prometheus text format     |
"""

from __future__ import annotations

import logging
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from outbox.core.entry import OutboxStatus
from outbox.core.health import LaneState
from outbox.errors import ConfigError, OutboxError

logger = logging.getLogger("outbox.health")

GAUGES = (
    *("pending", "in_flight", "waiting", "sent", "dead", "shed"),
    *("failed_attempts", "senders", "strays", "rejected", "shortfall"),
)
ASKING_SECONDS = 5
"""Timeout for reading a client's request. A slow client occupies a thread of the server, and delays nothing else."""

Look = Callable[[], OutboxStatus]


@contextmanager
def serving(host: str, port: int, look: Look) -> Iterator[int]:
    """Serve on ``port`` (0: any free one) during the block, which gets the port's number.

    Raises ``ConfigError`` if the port cannot be bound.
    """
    try:
        server = _Server((host, port), partial(_Handler, look))
    except OSError as error:
        raise ConfigError(f"--health-port: cannot listen on {host}:{port}: {error.strerror}") from error
    thread = threading.Thread(target=server.serve_forever, name="outbox-health", daemon=True)
    thread.start()
    try:
        yield server.server_address[1]
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _Server(ThreadingHTTPServer):
    def __init__(self, address: tuple[str, int], handler: Callable[..., BaseHTTPRequestHandler]) -> None:
        self.address_family = socket.AF_INET6 if ":" in address[0] else socket.AF_INET
        super().__init__(address, handler)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Log the error: the base class would print a traceback to stderr, between the lines of a JSON log."""
        if not isinstance(sys.exception(), OSError):  # an OSError: the client disconnected, or was too slow
            logger.exception("a request to --health-port failed")


class _Handler(BaseHTTPRequestHandler):
    timeout = ASKING_SECONDS

    def __init__(self, look: Look, *arguments: Any) -> None:
        self._look = look
        super().__init__(*arguments)

    def do_GET(self) -> None:
        match self.path.partition("?")[0]:
            case "/livez":
                self._answer(200, "ok\n")
            case "/readyz":
                self._answer_with(lambda _seen: "ok\n")
            case "/metrics":
                self._answer_with(metrics)
            case _:
                self._answer(404, "there are /livez, /readyz and /metrics\n")

    def _answer_with(self, text: Callable[[OutboxStatus], str]) -> None:
        try:
            seen = self._look()
        except OutboxError as error:
            self._answer(503, f"{error}\n")
        else:
            self._answer(200, text(seen))

    def _answer(self, status: int, text: str) -> None:
        body = text.encode()
        self.send_response(status)
        self.send_header("Content-Type", "text/plain; version=0.0.4; charset=utf-8")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *_: Any) -> None:
        """Requests are not logged: probes come every few seconds."""


def metrics(seen: OutboxStatus) -> str:
    """The Prometheus text format: a gauge for each count, such as ``outbox_pending{lane="usage"} 0``, the age in
    seconds of the oldest entry that is not delivered yet, and whether the lane is open (1 or 0)."""
    lines = []
    for name in GAUGES:
        lines.append(f"# TYPE outbox_{name} gauge")
        lines += [f'outbox_{name}{{lane="{lane}"}} {getattr(state, name)}' for lane, state in seen.lanes.items()]
    lines.append("# TYPE outbox_oldest_pending_seconds gauge")
    lines += [
        f'outbox_oldest_pending_seconds{{lane="{lane}"}} {state.oldest_pending_seconds or 0:.3f}'
        for lane, state in seen.lanes.items()
    ]
    lines.append("# TYPE outbox_open gauge")
    lines += [f'outbox_open{{lane="{lane}"}} {state.state == LaneState.OPEN:d}' for lane, state in seen.lanes.items()]
    return "\n".join(lines) + "\n"
