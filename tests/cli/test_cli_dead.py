"""Dead letters: seen, counted, sent again, given up."""

from __future__ import annotations

import signal
from collections.abc import Callable
from uuid import uuid4

import pytest

from outbox.core.lane import Lane
from outbox.simulator import Simulator
from outbox.store import operate
from outbox.store.ledger import LockedLane
from outbox.store.store import Store
from tests.cli.command import ENTRY, EXAMPLES, Command, usage_line


def test_a_dead_entry_is_listed_and_shown(buried: Command) -> None:
    [letter] = buried("dead", "list", "--output", "json").json()
    assert (letter["id"], letter["lane"], letter["trace_count"]) == (ENTRY, "usage", 5)
    assert buried("dead", "show", ENTRY, "--output", "json").json()["status"] == "dead"
    assert buried("dead", "show", str(uuid4())).code == 3
    assert ENTRY in buried("dead", "list").out


def test_a_dry_run_counts_and_changes_nothing(buried: Command) -> None:
    report = buried("dead", "requeue", "--dry-run", "--output", "json").json()
    assert (report["changed"], report["before"]) == (0, report["after"])
    assert report["before"]["usage"] == {"entries": 1, "trace_count": 5}
    assert buried("status", "--output", "json").json()["lanes"]["usage"]["dead"] == 1


def test_what_is_requeued_is_sent(buried: Command, beacon: Simulator) -> None:
    report = buried("dead", "requeue", "--id", ENTRY, "--yes", "--output", "json").json()
    assert report["changed"] == 1
    assert report["before"]["usage"] == {"entries": 1, "trace_count": 5}
    assert report["after"]["usage"] == {"entries": 0, "trace_count": 0}
    assert buried("drain", "--timeout", "60").code == 0
    assert beacon.received.ids("usage") == {ENTRY: 1}


def test_what_a_lane_that_is_off_would_discard_stays_dead(outbox: Command, beacon: Simulator) -> None:
    outbox.but(max_attempts="1")("enqueue", "metrics", EXAMPLES / "metrics.json")
    beacon.faults.lanes, beacon.faults.status = {"metrics"}, 503
    outbox.but(max_attempts="1")("drain", "--timeout", "60")
    off = outbox.but(telemetry_metrics="false")
    for command, why in ((off, "OUTBOX_TELEMETRY_METRICS"), (outbox, "a worker or a drain")):
        done = command("dead", "requeue", "--output", "json")
        assert (done.code, done.json()["changed"], done.json()["after"]["metrics"]["entries"]) == (0, 0, 1)
        assert "warning: dead entries of metrics stay" in done.err
        assert why in done.err
        off("drain")
    beacon.faults.status = None
    assert outbox("drain").code == 0
    assert outbox("dead", "requeue", "--output", "json").json()["changed"] == 1
    assert outbox("drain", "--timeout", "60").code == 0
    assert outbox("status", "--output", "json").json()["lanes"]["metrics"]["sent"] == 1


def test_what_is_discarded_is_gone_from_the_list(buried: Command) -> None:
    done = buried("dead", "discard", "--lane", "usage")  # nobody at a terminal: nothing is asked
    assert done.code == 0, done.err
    assert "discard: 1 of 1 dead entries" in done.err
    assert buried("dead", "list", "--output", "json").json() == []
    assert buried("drain").code == 0


def test_a_selection_by_time_and_lane_holds(buried: Command) -> None:
    def listed(*selection: str) -> int:
        return len(buried("dead", "list", *selection, "--output", "jsonl").lines())

    assert listed("--since", "2025-01-06T10:00:00Z") == 1
    assert listed("--until", "2025-01-06T10:00:00Z") == 0
    assert listed("--lane", "metrics") == 0


def test_requeueing_an_id_that_is_not_dead_is_3(buried: Command) -> None:
    done = buried("dead", "requeue", "--id", str(uuid4()))
    assert (done.code, done.out) == (3, "")


def test_what_died_with_a_named_entry_is_left(outbox: Command, beacon: Simulator) -> None:
    impatient = outbox.but(max_attempts="1")
    [put] = impatient("enqueue", "usage", stdin=b"".join(usage_line() for _ in range(3))).lines()
    beacon.faults.lanes, beacon.faults.status = {"usage"}, 503
    assert impatient("drain", "--timeout", "60").code == 0
    named, kept = put["ids"][1], [put["ids"][0], put["ids"][2]]
    assert len(outbox("dead", "list", "--id", named, "--output", "jsonl").lines()) == 1
    report = outbox("dead", "discard", "--id", named, "--yes", "--output", "json").json()
    assert (report["changed"], report["before"]["usage"], report["after"]["usage"]) == (
        1,
        {"entries": 1, "trace_count": 5},
        {"entries": 0, "trace_count": 0},
    )
    assert [letter["id"] for letter in outbox("dead", "list", "--output", "jsonl").lines()] == kept
    assert outbox("dead", "show", kept[1], "--output", "json").json()["receipt"]["status"] == 503


@pytest.mark.parametrize("by", [signal.SIGINT, signal.SIGTERM], ids=lambda by: by.name)
@pytest.mark.parametrize("verb", ["requeue", "discard"])
def test_an_interrupted_change_tells_how_many_are_left(
    outbox: Command, beacon: Simulator, monkeypatch: pytest.MonkeyPatch, verb: str, by: signal.Signals
) -> None:
    alone = outbox.but(max_attempts="1", batch_max_rows="1")
    alone("enqueue", "usage", stdin=b"".join(usage_line() for _ in range(3)))
    beacon.faults.lanes, beacon.faults.status = {"usage"}, 503
    alone("drain", "--timeout", "60")
    monkeypatch.setattr(operate, "CHUNK", 1)
    once = Store._once

    def cut_short(store: Store, lane: Lane, move: Callable[[LockedLane], int]) -> int:
        moved = once(store, lane, move)
        try:
            signal.raise_signal(by)
        finally:
            signal.raise_signal(by)  # who is impatient sends it twice
        return moved

    monkeypatch.setattr(Store, "_once", cut_short)
    before = signal.signal(signal.SIGTERM, lambda *_: pytest.fail("SIGTERM would have ended it without a word"))
    try:
        done = alone("dead", verb)
    finally:
        signal.signal(signal.SIGTERM, before)
    assert done.code == 128 + by
    assert done.err == f"error: {verb}: interrupted; 2 of 3 dead entries are left: run it again for them\n"
    monkeypatch.setattr(Store, "_once", once)
    assert alone("dead", verb, "--output", "json").json()["changed"] == 2
