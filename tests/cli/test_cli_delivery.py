"""enqueue, drain, status: from a file to beacon."""

from __future__ import annotations

import json
import threading
from pathlib import Path

import pytest

from outbox.simulator import Simulator
from tests.cli.command import EXAMPLES, Command, usage_line
from tests.messages.documents import example
from tests.support.waiting import wait_until

TWELVE = {
    *("id", "tenant_id", "session_id", "trace_count", "start_insertion_time", "end_insertion_time"),
    *("start_interval_time", "end_interval_time", "status", "num_failed_send_attempts", "transaction_type"),
    "organization_id",
}


def test_the_examples_of_the_document_travel(outbox: Command, beacon: Simulator, tmp_path: Path) -> None:
    traces = tmp_path / "traces.json"
    traces.write_text(example("traces"))
    files = {"usage": EXAMPLES / "usage.json", "metrics": EXAMPLES / "metrics.json", "traces": traces}
    for lane, file in files.items():
        done = outbox("enqueue", lane, file)
        assert done.code == 0, done.err
        [told] = done.lines()
        assert (told["committed"], told["duplicates"], len(told["ids"])) == (1, 0, 1)

    drained = outbox("drain", "--timeout", "60")
    assert (drained.code, drained.out) == (0, ""), drained.err

    lanes = outbox("status", "--output", "json").json()["lanes"]
    for lane in ("usage", "metrics", "traces"):
        assert lanes[lane]["sent"] == 1
        assert [lanes[lane][count] for count in ("pending", "in_flight", "waiting", "dead", "shed")] == [0] * 5
        assert beacon.received.unique(lane) == {"usage": 1, "metrics": 2, "traces": 2}[lane]

    [request] = beacon.received.bodies("usage")
    body = json.loads(request.body)
    assert body["license"] == beacon.license
    assert [set(row) for row in body["trace_transactions"]] == [TWELVE]
    for lane in ("metrics", "traces"):
        [request] = beacon.received.bodies(lane)
        assert json.loads(request.content).keys() == {"metrics": {"resourceMetrics"}, "traces": {"resourceSpans"}}[lane]


def test_a_telemetry_document_of_any_size_is_enqueued_as_several_envelopes(outbox: Command, beacon: Simulator) -> None:
    document = json.loads(example("traces"))
    [scope] = document["resourceSpans"][0]["scopeSpans"]
    scope["spans"] = [{**scope["spans"][0], "name": "x" * 1_000_000} for _ in range(6)]
    done = outbox("enqueue", "traces", stdin=json.dumps(document).encode())
    [told] = done.lines()
    assert told["committed"] == len(told["ids"]) == 2
    assert outbox("drain").code == 0
    assert beacon.received.unique("traces") == 6


def test_a_document_on_standard_input_is_enqueued(outbox: Command) -> None:
    done = outbox("enqueue", "usage", "-", stdin=(EXAMPLES / "usage.json").read_bytes())
    assert done.lines() == [{"committed": 1, "duplicates": 0, "ids": ["af28dfea-5358-463d-a2dc-37df1da72498"]}]


def test_the_same_row_twice_is_a_duplicate(outbox: Command) -> None:
    outbox("enqueue", "usage", EXAMPLES / "usage.json")
    [told] = outbox("enqueue", "usage", EXAMPLES / "usage.json").lines()
    assert (told["committed"], told["duplicates"]) == (1, 1)
    assert outbox("status", "--output", "json").json()["lanes"]["usage"]["pending"] == 1


def test_each_transaction_is_told_on_a_line_of_its_own(outbox: Command) -> None:
    done = outbox("enqueue", "usage", "--batch", "2", stdin=b"\n".join(usage_line() for _ in range(5)))
    assert [told["committed"] for told in done.lines()] == [2, 2, 1]
    assert len({id for told in done.lines() for id in told["ids"]}) == 5


def test_a_bad_line_keeps_nothing_of_its_transaction_and_all_before(outbox: Command) -> None:
    lines = usage_line() + usage_line() + usage_line() + usage_line(trace_count=-1) + usage_line()
    done = outbox("enqueue", "usage", "--batch", "2", stdin=lines)
    assert done.code == 1
    assert [told["committed"] for told in done.lines()] == [2]
    assert done.err.count("\n") == 1
    assert "standard input, line 4: trace_count" in done.err
    assert "go on from line 3" in done.err
    assert outbox("status", "--output", "json").json()["lanes"]["usage"]["pending"] == 2


@pytest.mark.parametrize(
    "first",
    [b"{oops}\n", b"not json\n", b'{"a": \xff}\n', b"[" * 100_000 + b"]\n"],
    ids=["braces", "words", "bytes", "deep"],
)
def test_a_first_line_that_is_no_json_is_told_by_its_number(outbox: Command, first: bytes) -> None:
    done = outbox("enqueue", "usage", stdin=first + usage_line())
    assert (done.code, done.out) == (1, "")
    assert "error: standard input, line 1: " in done.err
    assert outbox("status", "--output", "json").json()["lanes"]["usage"]["pending"] == 0


def test_a_document_that_breaks_off_is_an_error(outbox: Command) -> None:
    half = (EXAMPLES / "usage.json").read_bytes()[:200]
    done = outbox("enqueue", "usage", stdin=half)
    assert (done.code, done.out) == (1, "")
    assert "nothing was committed" in done.err


def test_a_file_that_is_not_there_is_said_in_one_line(outbox: Command, tmp_path: Path) -> None:
    done = outbox("enqueue", "usage", tmp_path / "nowhere.jsonl")
    assert done.code == 2
    assert done.err.startswith("error: cannot read ")
    assert "nowhere.jsonl: No such file or directory" in done.err


def test_a_commit_is_told_before_the_next_line_is_there(outbox: Command) -> None:
    process = outbox.start("enqueue", "usage", "--batch", "1")
    assert process.stdin is not None
    assert process.stdout is not None
    with process:
        process.stdin.write(usage_line() + usage_line())
        process.stdin.flush()
        told = json.loads(process.stdout.readline())
        assert told["committed"] == 1
        assert process.poll() is None
        process.stdin.close()
        assert json.loads(process.stdout.readline())["committed"] == 1
        assert process.wait(60) == 0


def test_a_lane_that_is_off_stores_nothing_and_says_so(outbox: Command) -> None:
    done = outbox.but(telemetry_metrics="false")("enqueue", "metrics", EXAMPLES / "metrics.json")
    [told] = done.lines()
    assert (done.code, told["committed"]) == (0, 0)
    assert "OUTBOX_TELEMETRY_METRICS" in done.err


def test_what_waits_in_a_lane_that_is_switched_off_is_shown_so_and_discarded_by_the_drain(
    outbox: Command, beacon: Simulator
) -> None:
    outbox("enqueue", "metrics", EXAMPLES / "metrics.json")
    off = outbox.but(telemetry_metrics="false")
    reason = "switched off by OUTBOX_TELEMETRY_METRICS"

    def told(by: Command) -> tuple[str, str | None, int, int]:
        lane = by("status", "--output", "json").json()["lanes"]["metrics"]
        return lane["state"], lane["reason"], lane["pending"], lane["shed"]

    assert told(off) == ("off", reason, 1, 0)
    assert f"lane metrics: nothing leaves now; it is off: {reason}" in off("preview", "metrics").err
    assert told(outbox) == ("open", None, 1, 0), "a command that only looks has changed nothing"
    drained = off("drain")
    assert (drained.code, drained.err) == (0, f"lane metrics: {reason}; 1 entries discarded\n")
    assert told(off) == told(outbox) == ("off", reason, 0, 1)
    assert "metrics" not in beacon.received.counts() or beacon.received.counts()["metrics"]["requests"] == 0
    assert outbox("drain").code == 0
    assert told(outbox) == ("open", None, 0, 1)


def test_offline_no_drain_discards_what_waits(outbox: Command) -> None:
    outbox("enqueue", "metrics", EXAMPLES / "metrics.json")
    offline = outbox.but(offline="true")
    assert offline("drain").code == 0
    lane = offline("status", "--output", "json").json()["lanes"]["metrics"]
    assert (lane["state"], lane["reason"], lane["pending"]) == ("off", "OUTBOX_OFFLINE is true", 1)


def test_an_outage_is_drained_through(outbox: Command, beacon: Simulator) -> None:
    outbox("enqueue", "usage", EXAMPLES / "usage.json")
    beacon.fail(503, lane="usage")
    done = outbox("drain", "--timeout", "60")
    assert done.code == 0, done.err
    assert beacon.faults.fired["statuses"] == 1
    assert beacon.received.unique("usage") == 1


def test_when_the_time_is_over_the_request_on_the_wire_is_the_last(
    outbox: Command, beacon: Simulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Timer(threading.Timer):
        """Its time is over once a request is on the wire."""

        def run(self) -> None:
            given.append(self.interval)
            wait_until(lambda: beacon.received.counts()["usage"]["in_flight"])
            self.function()

    given: list[float] = []
    monkeypatch.setattr("outbox.cli.dispatch.threading.Timer", Timer)
    for lane in ("usage", "metrics"):
        outbox("enqueue", lane, EXAMPLES / f"{lane}.json")
    beacon.faults.latency_ms = 5000
    patient = outbox.but(request_timeout="50", lease_seconds="300")
    done = patient("drain", "--timeout", "60")
    assert (done.code, done.err) == (3, "metrics: 1 remain (see: outbox status)\n")
    assert given == [60.0]
    assert beacon.received.unique("usage") == 1
    assert beacon.received.counts()["metrics"]["requests"] == 0
