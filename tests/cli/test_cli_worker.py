"""The worker and the simulator as processes."""

from __future__ import annotations

import json
import re
import signal
import socket
import struct
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx

from outbox.cli.health import serving
from outbox.core.entry import OutboxStatus
from outbox.simulator import Simulator
from tests.cli.command import EXAMPLES, Command


@contextmanager
def running(command: Command, *arguments: str) -> Iterator[subprocess.Popen[bytes]]:
    """The process; killed if the test did not stop it."""
    with command.start(*arguments) as process:
        try:
            yield process
        finally:
            process.kill()


def read_until(process: subprocess.Popen[bytes], pattern: str) -> re.Match[str]:
    """The first line of stderr that matches; its end is an error."""
    assert process.stderr is not None
    seen = []
    for line in process.stderr:
        seen.append(line.decode())
        if match := re.search(pattern, seen[-1]):
            return match
    raise AssertionError(f"no {pattern!r} in {seen}")


def hang_up_early(url: str) -> None:
    """Asks, and is gone before the answer."""
    at = httpx.URL(url)
    with socket.create_connection((at.host, at.port or 0)) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        probe.sendall(b"GET /metrics HTTP/1.1\r\n\r\n")


def test_probes_may_come_by_ipv6() -> None:
    with serving("::1", 0, status_of_nothing) as port, httpx.Client(trust_env=False, timeout=60) as client:
        assert client.get(f"http://[::1]:{port}/livez").status_code == 200


def status_of_nothing() -> OutboxStatus:
    raise AssertionError("nobody asks for it")


def test_a_worker_sends_answers_probes_and_ends_at_sigterm(outbox: Command, beacon: Simulator) -> None:
    outbox("enqueue", "usage", EXAMPLES / "usage.json")
    arguments = ("worker", "--log-format", "json", "--health-port", "0", "--health-host", "127.0.0.1")
    with running(outbox, *arguments) as process, httpx.Client(trust_env=False, timeout=60) as client:
        line = read_until(process, "health on port")
        health = f"http://127.0.0.1:{json.loads(line.string)['message'].split()[-1]}"
        beacon.wait_for("usage", 1, timeout=60)
        assert client.get(f"{health}/livez").status_code == 200
        assert client.get(f"{health}/readyz").status_code == 200
        assert client.get(f"{health}/nothing").status_code == 404
        metrics = client.get(f"{health}/metrics").text
        hang_up_early(health)
        assert client.get(f"{health}/livez").status_code == 200
        for gauge in ("pending", "rejected", "shortfall"):
            assert f'outbox_{gauge}{{lane="usage"}} 0' in metrics
        process.send_signal(signal.SIGTERM)
        out, err = process.communicate(timeout=60)
    assert (process.returncode, out) == (0, b"")
    assert [json.loads(line) for line in err.splitlines()][-1]["message"] == "stopped"
    assert beacon.license.encode() not in err
    assert outbox("status", "--output", "json").json()["lanes"]["usage"]["sent"] == 1


def test_a_worker_that_may_not_send_says_so(outbox: Command) -> None:
    done = outbox.but(offline="true")("worker")
    assert done.code == 2
    assert "OUTBOX_OFFLINE" in done.err


def test_the_simulator_serves_and_counts(outbox: Command) -> None:
    outbox("enqueue", "usage", EXAMPLES / "usage.json")
    with running(outbox, "beacon", "--fail", "503") as process:
        url = read_until(process, r"beacon simulator on (\S+)")[1]
        assert outbox.but(beacon_url=url)("drain", "--timeout", "60").code == 0
        process.send_signal(signal.SIGINT)
        out, _ = process.communicate(timeout=60)
    counts = json.loads(out)
    assert process.returncode == 0
    assert counts["usage"]["unique"] == 1
    assert counts["fired"] == {"statuses": 1}


def test_what_other_libraries_warn_of_has_the_format_of_the_log(tmp_path: Path) -> None:
    code = (
        "import logging; from outbox.cli.logs import LogFormat, log_to_stderr; log_to_stderr(LogFormat.JSON);"
        "log = logging.getLogger('sqlalchemy.pool'); log.info('a request'); log.error('a connection broke')"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True)
    [line] = [json.loads(line) for line in done.stderr.splitlines()]
    assert (line["logger"], line["level"], line["message"]) == ("sqlalchemy.pool", "error", "a connection broke")
