"""The simulator in another process: scripted over HTTP, stopped by signals, outlived by its journal."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import httpx
import pytest

from outbox.errors import ConfigError
from outbox.simulator import Simulator, SimulatorClient, read_journal
from tests.simulator.calling import Caller, telemetry, usage_row

LICENSE = "license-of-the-other-process"
SERVE = f"""
import resource
import sys
from pathlib import Path
from outbox.simulator import Faults, serve
journal = Path(sys.argv[2]) if len(sys.argv) > 2 else None
if len(sys.argv) > 3:  # the disk is full
    resource.setrlimit(resource.RLIMIT_FSIZE, [int(sys.argv[3])] * 2)
serve(port=int(sys.argv[1]), license={LICENSE!r}, faults=Faults(statuses=[503]), journal=journal)
"""


@pytest.fixture
def client(simulator: Simulator) -> Iterator[SimulatorClient]:
    with SimulatorClient(simulator.url) as client:
        yield client


@pytest.fixture
def start_process() -> Iterator[Callable[..., tuple[subprocess.Popen[str], str]]]:
    """Starts ``serve`` in a process; the process, and the URL it told."""
    with ExitStack() as stack:

        def start(*arguments: object) -> tuple[subprocess.Popen[str], str]:
            process = stack.enter_context(
                subprocess.Popen(
                    [sys.executable, "-c", SERVE, *map(str, arguments)],
                    stdout=subprocess.PIPE,
                    stderr=subprocess.PIPE,
                    text=True,
                )
            )
            stack.callback(process.kill)
            assert process.stderr is not None
            line = process.stderr.readline()
            assert line.startswith("beacon simulator on http://127.0.0.1:"), line + process.stderr.read()
            return process, line.split()[-1]

        yield start


def post_usage(url: str, *rows: dict[str, object], key: str = "k") -> httpx.Response:
    with httpx.Client(trust_env=False, timeout=60) as http:
        token = http.post(f"{url}/verify", json={"license": LICENSE}).json()["token"]
        return http.post(
            f"{url}/ingest-traces",
            json={"license": LICENSE, "trace_transactions": rows},
            headers={"Authorization": f"Bearer {token}", "Idempotency-Key": key},
        )


def test_the_state_tells_addresses_faults_and_counts(client: SimulatorClient, caller: Caller) -> None:
    caller.send("usage")
    state = client.get()
    assert state["url"] == caller.simulator.url
    assert state["control_url"] == caller.simulator.control_url
    assert state["counts"]["usage"]["unique"] == 1
    assert state["faults"]["status"] is None
    assert state["fired"] == {}
    assert caller.simulator.license not in json.dumps(state)


def test_a_patch_changes_the_named_faults_and_null_takes_them_back(client: SimulatorClient, caller: Caller) -> None:
    assert client.patch(status=503, refuse_ids={"b", "a"})["faults"]["refuse_ids"] == ["a", "b"]
    assert caller.send("usage").status_code == 503
    client.patch(status=None)
    assert caller.send("usage").status_code == 200
    assert client.get()["fired"] == {"status": 1}


def test_a_patch_that_makes_no_sense_is_refused_with_a_reason(simulator: Simulator) -> None:
    for body, told in (
        (b'{"latncy_ms": 5}', "latency_ms"),
        (b'{"status": "x"}', "status"),
        (b"{", "malformed|truncated"),
        (b"[]", "object"),
        (b'{"status": ' + b"[" * 200_000, "nested"),
        ('{"retry_after": "€"}'.encode(), "retry_after"),
        (b'{"retry_after": "1\\r\\nx: y"}', "retry_after"),
        (b'{"retry_after": "1\\n"}', "retry_after"),
        (b'{"rate_limit": 1e-320}', "rate_limit"),
    ):
        answer = httpx.post(simulator.control_url, content=body, trust_env=False, timeout=60)
        assert answer.status_code == 400
        assert any(word in answer.json()["error"] for word in told.split("|"))


def test_the_beacon_port_serves_the_control_endpoints_too(simulator: Simulator) -> None:
    origin = httpx.URL(simulator.url)
    answer = httpx.post(origin.copy_with(path="/_simulator"), json={"status": 500}, trust_env=False, timeout=60)
    assert answer.json()["faults"]["status"] == 500
    assert httpx.get(origin.copy_with(path="/_simulator/other"), trust_env=False, timeout=60).status_code == 404


def test_an_outage_is_started_and_ended_from_outside(client: SimulatorClient, caller: Caller) -> None:
    caller.send("usage")
    assert client.patch(down=True)["faults"]["down"] is True
    with pytest.raises(httpx.ConnectError):
        httpx.get(caller.simulator.url, trust_env=False)
    with SimulatorClient(caller.simulator.control_url) as found_while_down:
        found_while_down.patch(down=False)
    assert caller.send("usage").status_code == 200
    assert client.get()["fired"] == {"down": 1}


def test_an_outage_started_over_the_beacon_port_is_still_answered(simulator: Simulator) -> None:
    origin = httpx.URL(simulator.url)
    answer = httpx.post(origin.copy_with(path="/_simulator"), json={"down": True}, trust_env=False, timeout=60)
    assert answer.json()["faults"]["down"] is True
    with pytest.raises(httpx.ConnectError):
        httpx.get(simulator.url, trust_env=False)


def test_a_reset_forgets_faults_and_record_and_ends_an_outage(client: SimulatorClient, caller: Caller) -> None:
    caller.send("usage")
    client.patch(status=500, down=True)
    client.reset()
    assert caller.send("usage").status_code == 200
    state = client.get()
    assert (state["counts"]["usage"]["requests"], state["fired"]) == (1, {})


def test_what_was_received_is_read_from_outside(
    make_simulator: Callable[..., Simulator],
) -> None:
    simulator = make_simulator(record_bodies=9)
    with Caller(simulator) as caller, SimulatorClient(simulator.url) as client:
        assert client.ids() == {}
        row, other = usage_row(), usage_row()
        caller.usage(row, key="one")
        caller.usage(row, other, key="two")
        caller.post("traces", b'{"resourceSpans": []}', key="t")
        assert client.ids() == {row["id"]: 2, other["id"]: 1}
        assert client.duplicates() == {row["id"]: ["one", "two"]}
        assert client.arrivals() == simulator.received.arrivals("usage")
        assert client.ids("traces") == {"t": 1}
        (kept,) = client.bodies("traces")
        assert (kept["body"], kept["status"]) == (b'{"resourceSpans": []}', 200)


def test_many_ids_are_read_from_outside(client: SimulatorClient, caller: Caller) -> None:
    rows = [usage_row() for _ in range(25_000)]
    caller.usage(*rows)
    assert client.ids() == dict.fromkeys([row["id"] for row in rows], 1)


def test_an_unknown_lane_is_refused(client: SimulatorClient) -> None:
    with pytest.raises(httpx.HTTPStatusError, match="400"):
        client.ids("bills")


def test_tokens_are_revoked_from_outside(client: SimulatorClient, caller: Caller) -> None:
    caller.token()
    client.revoke_tokens()
    assert caller.post("traces", telemetry("traces")).status_code == 401


def test_nobody_at_the_address_is_a_transport_error(simulator: Simulator) -> None:
    simulator.close()
    with pytest.raises(httpx.ConnectError):
        SimulatorClient(simulator.url)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_served_simulator_ends_at_a_signal_with_its_counts(
    start_process: Callable[..., tuple[subprocess.Popen[str], str]], number: int
) -> None:
    process, url = start_process(0)
    assert [post_usage(url, usage_row()).status_code for _ in range(2)] == [503, 200]
    process.send_signal(number)
    out, _ = process.communicate(timeout=60)
    counts = json.loads(out)
    assert process.returncode == 0
    assert counts["usage"]["statuses"] == {"200": 1, "503": 1}
    assert counts["fired"] == {"statuses": 1}


def test_a_journal_that_cannot_be_kept_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=f"keep its journal in {tmp_path}: Is a directory; give another file"):
        Simulator(journal=tmp_path).start()


@pytest.mark.parametrize(
    "line",
    [
        b"not json",
        b"\xff\xfe",
        b"[" * 100_000,
        b'{"t": 1.0, "lane": "usage", "key": "a"}',
        b'{"t": 1.0, "lane": "bills", "key": "a", "ids": []}',
    ],
)
def test_a_journal_that_is_damaged_is_named_with_its_line_and_left_as_it_is(tmp_path: Path, line: bytes) -> None:
    journal = tmp_path / "journal.jsonl"
    held = b'{"t": 1.0, "lane": "usage", "key": "a", "ids": ["whole"]}\n' + line + b"\nno newline"
    journal.write_bytes(held)
    with pytest.raises(ConfigError, match=f"{journal}, line 2, is not of a simulator's journal: .* take the line out"):
        Simulator(journal=journal).start()
    assert journal.read_bytes() == held


def test_a_simulator_whose_port_is_taken_lets_go_of_what_it_had_opened(tmp_path: Path) -> None:
    with Simulator() as running:
        opened = set(os.listdir("/proc/self/fd"))
        with pytest.raises(ConfigError, match="choose another port"):
            Simulator(running.port, journal=tmp_path / "journal.jsonl").start()
        assert set(os.listdir("/proc/self/fd")) <= opened  # the collector may have closed another test's meanwhile


def test_a_row_that_the_journal_cannot_hold_is_not_accepted_and_the_simulator_ends_with_what_broke_it(
    start_process: Callable[..., tuple[subprocess.Popen[str], str]], tmp_path: Path
) -> None:
    journal = tmp_path / "journal.jsonl"
    process, url = start_process(0, journal, 300)
    assert [post_usage(url, usage_row(), key=key).status_code for key in "ab"] == [503, 200]
    with pytest.raises(httpx.RemoteProtocolError):
        post_usage(url, *[usage_row() for _ in range(10)])
    assert post_usage(url, usage_row(), key="c").status_code == 200
    with SimulatorClient(url) as client:
        counts = client.get()["counts"]["usage"]
        assert (counts["accepted"], counts["unique"]) == (2, 2)
    assert [line.key for line in read_journal(journal)] == ["b", "c"], "nothing is left of the line that did not fit"
    process.terminate()
    _, told = process.communicate(timeout=60)
    assert process.returncode == 1
    assert f"ConfigError: the simulator cannot keep its journal in {journal}: File too large" in told


def test_a_killed_simulator_leaves_a_journal_that_the_next_one_goes_on_with(
    start_process: Callable[..., tuple[subprocess.Popen[str], str]], tmp_path: Path
) -> None:
    journal = tmp_path / "journal.jsonl"
    row = usage_row()
    process, url = start_process(0, journal)
    assert [post_usage(url, row).status_code for _ in range(2)] == [503, 200]
    process.kill()
    process.wait(60)
    assert [line.ids for line in read_journal(journal)] == [[row["id"]]]
    _, url = start_process(httpx.URL(url).port, journal)
    assert post_usage(url, row).status_code == 503
    assert post_usage(url, row).json() == {"inserted_count": 0}
