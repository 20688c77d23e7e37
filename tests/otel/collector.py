"""A third-party collector: rotel, a Rust program in a wheel, between a front and a sink.

    outbox ──JSON──▶ Front (verify; counts, holds back) ──▶ rotel ──protobuf──▶ Sink (what arrived)

OTLP/JSON writes 64-bit integers as text, and receivers accept numbers too. In data points this version of rotel accepts
only numbers (in exponential ones for times too, and only with every field present) and silently drops the others
(https://github.com/open-telemetry/opentelemetry-rust/issues/3527). So the Front rewrites them, as other receivers with
the same parser do, and also keeps each original body.
"""

from __future__ import annotations

import gzip
import http.client
import json
import subprocess
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from outbox.core.lane import LANES, SIGNALS, Lane, Signal
from tests.otel.protobuf import REQUESTS
from tests.support.processes import free_port
from tests.support.waiting import wait_until

BASE = "/v1/beacon"
START_TIMEOUT = 60.0


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, handler: Any) -> None:
        super().__init__(("127.0.0.1", 0), handler)
        threading.Thread(target=self.serve_forever, daemon=True).start()

    @property
    def port(self) -> int:
        return int(self.server_address[1])

    def close(self) -> None:
        self.shutdown()
        self.server_close()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def body(self) -> bytes:
        return self.rfile.read(int(self.headers["Content-Length"]))

    def answer(self, status: int, content_type: str, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Type", content_type)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *_: Any) -> None:
        """Log nothing."""


def _plain(body: bytes, headers: Any) -> bytes:
    return gzip.decompress(body) if headers.get("Content-Encoding") == "gzip" else body


_COUNTS = {"asInt", "count", "zeroCount", "bucketCounts"}
_NEVER_ABSENT = {"zeroThreshold": 0.0, "attributes": [], "exemplars": [], "flags": 0}
_TIMES = {"startTimeUnixNano", "timeUnixNano"}


def _with_numbers(value: Any, key: str = "", numbers: frozenset[str] = frozenset(_COUNTS)) -> Any:
    if isinstance(value, dict):
        if "scale" in value:  # of an exponential histogram
            value, numbers = _NEVER_ABSENT | value, numbers | _TIMES
        return {name: _with_numbers(each, name, numbers) for name, each in value.items()}
    if isinstance(value, list):
        return [_with_numbers(each, key, numbers) for each in value]
    return int(value) if key in numbers else value


class Sink:
    """Receives the output of rotel; ``requests`` are official messages."""

    def __init__(self) -> None:
        self.requests: dict[Signal, list[Any]] = {signal: [] for signal in SIGNALS}
        sink = self

        class Handler(_Handler):
            def do_POST(self) -> None:
                signal: Signal = self.path.rpartition("/")[2]  # type: ignore[assignment]
                sink.requests[signal].append(REQUESTS[signal].FromString(_plain(self.body(), self.headers)))
                self.answer(200, "application/x-protobuf", b"")

        self.server = _Server(Handler)

    def received(self, signal: Signal) -> list[Any]:
        return list(self.requests[signal])


class Front:
    """Adds the verify endpoint of beacon to a collector."""

    def __init__(self, collector: int) -> None:
        self.requests: Counter[str] = Counter()
        """Telemetry requests by lane."""
        self.encodings: Counter[str] = Counter()
        self.passed_on: dict[Signal, list[bytes]] = {signal: [] for signal in SIGNALS}
        """Bodies that were passed on to rotel, decompressed."""
        self.refused: list[str] = []
        """Rotel's answers to requests that it refused."""
        self.held = threading.Event()
        """Set when a request arrived while ``hold`` was set. That request is neither passed on nor answered."""
        self.hold = threading.Event()
        front = self

        class Handler(_Handler):
            def do_POST(self) -> None:
                body = self.body()
                if self.path == f"{BASE}/verify":
                    self.answer(200, "application/json", b'{"token":"a-token"}')
                    return
                front.requests[self.path.rpartition("/")[2]] += 1
                front.encodings[self.headers.get("Content-Encoding", "none")] += 1
                if front.hold.is_set():
                    front.held.set()
                    self.close_connection = True
                    self.rfile.read()  # until the other side is gone
                    return
                signal: Signal = self.path.rpartition("/")[2]  # type: ignore[assignment]
                front.passed_on[signal].append(_plain(body, self.headers))
                self.answer(*front.pass_on(self.path, body, self.headers))

        self.server = _Server(Handler)
        self._collector = collector

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server.port}{BASE}"

    def pass_on(self, path: str, body: bytes, headers: Any) -> tuple[int, str, bytes]:
        names = ["Content-Type", "Content-Encoding"]
        if path.endswith("/metrics"):
            body = json.dumps(_with_numbers(json.loads(_plain(body, headers)))).encode()
            names.remove("Content-Encoding")
        connection = http.client.HTTPConnection("127.0.0.1", self._collector, timeout=30)
        try:
            connection.request("POST", path, body, {name: headers[name] for name in names if name in headers})
            response = connection.getresponse()
            answer = response.read()
        finally:
            connection.close()
        if response.status != 200:
            self.refused.append(f"{path}: {response.status} {answer!r}")
        return response.status, response.headers.get("Content-Type", ""), answer


@contextmanager
def collecting(folder: Path) -> Iterator[tuple[Front, Sink]]:
    sink = Sink()
    port = free_port()
    with (folder / "rotel.log").open("wb") as log:
        process = subprocess.Popen(_command(port, sink.server.port), stdout=log, stderr=log, cwd=folder)
    front = Front(port)
    try:
        wait_until(lambda: _listens(port), START_TIMEOUT, lambda: (folder / "rotel.log").read_text()[-2000:])
        yield front, sink
    finally:
        process.terminate()
        process.wait(30)
        front.server.close()
        sink.server.close()


def _listens(port: int) -> bool:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
    try:
        connection.request("GET", "/")
        connection.getresponse().read()
    except OSError:
        return False
    finally:
        connection.close()
    return True


def _command(port: int, sink: int) -> list[str]:
    spec = find_spec("rotel")
    assert spec is not None
    assert spec.origin is not None
    paths = {signal: f"{BASE}{LANES[Lane(signal)].path}" for signal in SIGNALS}
    options = {
        "--otlp-http-endpoint": f"127.0.0.1:{port}",
        "--otlp-grpc-endpoint": f"127.0.0.1:{free_port()}",
        **{f"--otlp-receiver-{signal}-http-path": path for signal, path in paths.items()},
        "--exporter": "otlp",
        "--otlp-exporter-endpoint": f"http://127.0.0.1:{sink}",
        "--otlp-exporter-protocol": "http",
    }
    return [
        str(Path(spec.origin).with_name("rotel-agent")),
        "start",
        "--disable-batching",
        *(part for option in options.items() for part in option),
    ]
