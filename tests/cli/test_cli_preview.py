"""What preview shows is what leaves next, byte for byte, and it changes nothing."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from outbox import Outbox, Settings, TelemetryEnvelope
from outbox.core.lane import LANES, Lane
from outbox.simulator import Simulator
from tests.cli.command import EXAMPLES, Command
from tests.messages.documents import of_metric, of_record, of_span
from tests.messages.filtering import attribute
from tests.support.intervals import intervals


def fill(outbox: Command) -> None:
    """Seven entries of each lane, with what must not leave in those of telemetry."""
    pairs = [attribute("user.id", "zqcan"), attribute("endpoint", "/users/4711")]
    with Outbox(f"sqlite:///{outbox.directory}/outbox.db", settings=Settings()) as box:
        for number in range(7):
            box.put(
                *intervals(1),
                TelemetryEnvelope("traces", of_span(name=f"span {number}", attributes=pairs)),
                TelemetryEnvelope("metrics", of_metric(name="m", gauge={"dataPoints": [{"attributes": pairs}]})),
                TelemetryEnvelope("logs", of_record(attributes=pairs, body={"stringValue": "zqcan"})),
            )


def bodies(outbox: Command, *options: str) -> dict[str, list[str]]:
    done = outbox("preview", "--output", "jsonl", *options)
    assert done.code == 0, done.err
    shown: dict[str, list[str]] = {}
    for row in done.lines():
        assert row["bytes"] == len(row["body"])
        shown.setdefault(row["lane"], []).append(row["body"])
    return shown


@pytest.mark.parametrize("rows", ["2", "1000"])
def test_the_bodies_shown_are_those_that_arrive(outbox: Command, beacon: Simulator, rows: str) -> None:
    outbox.env["OUTBOX_BATCH_MAX_ROWS"] = rows
    fill(outbox)
    shown = bodies(outbox, "--requests", "10")
    assert bodies(outbox, "--requests", "10") == shown, "looking changes nothing"
    assert {lane: len(texts) for lane, texts in shown.items()} == dict.fromkeys(LANES, 4 if rows == "2" else 1)
    assert outbox("drain").code == 0
    for lane in Lane:
        arrived = [request.content.decode() for request in beacon.received.bodies(lane)]
        masked = [text.replace(json.dumps(beacon.license), '"***"') for text in arrived]
        assert sorted(masked) == sorted(shown[lane])
    assert "zqcan" not in json.dumps(shown)


def test_nothing_is_sent_leased_or_counted_by_looking(outbox: Command, beacon: Simulator) -> None:
    fill(outbox)
    before = outbox("status", "--output", "json").json()["lanes"]
    bodies(outbox)
    after = outbox("status", "--output", "json").json()["lanes"]
    for lanes in (before, after):
        for lane in lanes.values():
            del lane["oldest_pending_seconds"]
    assert before == after
    assert all(beacon.received.counts()[lane]["requests"] == 0 for lane in LANES)


def test_one_lane_and_so_many_requests_are_shown(outbox: Command) -> None:
    outbox.env["OUTBOX_BATCH_MAX_ROWS"] = "2"
    fill(outbox)
    assert {lane: len(texts) for lane, texts in bodies(outbox).items()} == dict.fromkeys(LANES, 1)
    assert {lane: len(texts) for lane, texts in bodies(outbox, "traces", "--requests", "3").items()} == {"traces": 3}


def test_the_licence_is_shown_nowhere(outbox: Command, beacon: Simulator) -> None:
    fill(outbox)
    for form in ("table", "json", "jsonl"):
        done = outbox("preview", "--output", form)
        assert beacon.license not in done.out + done.err
    assert '{"license":"***",' in bodies(outbox, "usage")["usage"][0]


def test_what_was_taken_out_is_told_by_key(outbox: Command) -> None:
    fill(outbox)
    told = outbox("preview", "traces").err
    assert "taken out before it was stored, 14 times: span:" in told
    assert "span:user.id" in told
    rows = outbox("preview", "traces", "--removed", "--output", "json").json()
    assert sorted(rows, key=str) == [
        {"lane": "traces", "place": "span", "key": "endpoint", "why": "value", "count": 7},
        {"lane": "traces", "place": "span", "key": "user.id", "why": "key", "count": 7},
    ]
    everywhere = outbox("preview", "--removed", "--output", "jsonl").lines()
    assert {row["lane"] for row in everywhere} == {"metrics", "traces", "logs"}


def test_a_lane_without_anything_to_send_says_why(outbox: Command, tmp_path: Path) -> None:
    assert outbox("enqueue", "usage", EXAMPLES / "usage.json").code == 0
    done = outbox("preview")
    assert "lane traces: nothing leaves now; it is open" in done.err
    assert "lane usage" not in done.err


def test_without_tables_it_says_how_to_make_them(unmigrated: Command) -> None:
    done = unmigrated("preview")
    assert (done.code, "outbox migrate" in done.err) == (6, True)
