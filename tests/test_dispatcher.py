"""One tick of the dispatcher against a beacon on a real port."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from typing import Any

import pytest
from sqlalchemy import Engine, select

from outbox import (
    BeaconTransport,
    DatabaseUnavailable,
    Dispatcher,
    DispatchReport,
    Outbox,
    Settings,
    TelemetryEnvelope,
)
from outbox import dispatcher as dispatcher_module
from outbox.boottime import boottime
from outbox.core.concurrency import Concurrency
from outbox.core.health import FAILURES_TO_OPEN_BREAKER
from outbox.core.lane import Lane
from outbox.core.lifecycle import Status
from outbox.core.pace import Pace
from outbox.core.step import Settlement, Step
from outbox.simulator import Simulator
from outbox.store.schema import LANE
from tests.support import ledger
from tests.support.databases import Database
from tests.support.intervals import interval, intervals
from tests.support.processes import free_port
from tests.support.waiting import wait_until

New = Callable[..., tuple[Outbox, Dispatcher]]


@pytest.fixture
def new(database: Database, engine: Engine, beacon: Simulator) -> Iterator[New]:
    """A migrated outbox and its dispatcher, with retries that a test can wait for."""
    with ExitStack() as stack:

        def make(**settings: Any) -> tuple[Outbox, Dispatcher]:
            quick = {"beacon_url": beacon.url, "backoff_base": 0.01, "backoff_max": 0.05, **settings}
            box = Outbox(database.url, settings=Settings(license_key=beacon.license, **quick))
            stack.enter_context(box)
            box.migrate()
            stack.callback(ledger.check, engine)
            dispatcher = Dispatcher(box, stack.enter_context(BeaconTransport(box.settings)))
            stack.callback(dispatcher.close)
            return box, dispatcher

        yield make


def _version(engine: Engine) -> int:
    with engine.connect() as connection:
        found: int = connection.execute(select(LANE.c.version).where(LANE.c.lane == "usage")).scalar_one()
        return found


def keys(beacon: Simulator) -> list[str]:
    return [request.headers["idempotency-key"] for request in beacon.received.bodies("usage")]


def test_a_tick_tells_what_it_sent(new: New, beacon: Simulator) -> None:
    box, dispatcher = new()
    ids = box.put(*intervals(5))
    assert dispatcher.run_once() == DispatchReport(sent=5, batches=1)
    assert dispatcher.run_once() == DispatchReport()
    assert beacon.received.ids() == {str(id): 1 for id in ids}


def test_a_tick_that_reached_its_bound_says_that_there_is_more(new: New) -> None:
    box, dispatcher = new(max_senders=1, batch_max_rows=2)
    box.put(*intervals(5))
    reports = [dispatcher.run_once() for _ in range(3)]
    assert [(report.sent, report.more) for report in reports] == [(2, True), (2, True), (1, False)]


def test_what_beacon_did_not_take_of_a_delivered_batch_is_in_the_log(
    new: New, beacon: Simulator, caplog: pytest.LogCaptureFixture
) -> None:
    box, dispatcher = new()
    box.put(*intervals(2))
    assert dispatcher.run_lane(Lane.USAGE).sent == 2
    assert caplog.messages == []
    beacon.faults.inserted_count = "short"
    box.put(*intervals(2))
    assert dispatcher.run_lane(Lane.USAGE).sent == 2
    [told] = caplog.messages
    assert told.startswith("lane usage: batch ")
    assert told.endswith("beacon answered 200 (delivered, 1 of 2 rows not inserted)")
    assert box.status().lanes["usage"].shortfall == 1


def traces_of(count: int, name: str = "x" * 50) -> TelemetryEnvelope:
    trace = "71699b6fe85982c7c8995ea3d9c95df2"
    spans = [{"traceId": trace, "spanId": f"{n:016x}", "name": f"{n} {name}"} for n in range(1, count + 1)]
    return TelemetryEnvelope("traces", {"resourceSpans": [{"scopeSpans": [{"spans": spans}]}]})


def test_an_envelope_that_is_too_large_for_beacon_is_delivered_in_parts(new: New, beacon: Simulator) -> None:
    box, dispatcher = new()
    ids = box.put(traces_of(40), traces_of(2))
    beacon.faults.max_body_bytes = 2000
    wait_until(lambda: dispatcher.run_lane(Lane.TRACES).next_seconds is None and box.status().unfinished == 0)
    assert beacon.faults.fired["max_body_bytes"] >= 2
    counts = beacon.received.counts()["traces"]
    assert (counts["rows"], counts["unique"], counts["conflicting_keys"]) == (42, 42, 0)
    assert box.status().lanes["traces"].sent == len(ids)
    view = box.find(ids[0])
    assert view is not None
    assert view.receipt is not None
    assert "parts (delivered)" in view.receipt["reason"]


def test_an_envelope_whose_one_span_is_too_large_is_dead_and_says_which(new: New, beacon: Simulator) -> None:
    box, dispatcher = new(telemetry_max_value_length=4000)
    [id] = box.put(traces_of(1, "x" * 3000))
    beacon.faults.max_body_bytes = 2000
    wait_until(lambda: dispatcher.run_lane(Lane.TRACES).next_seconds is None and box.status().unfinished == 0)
    assert beacon.faults.fired["max_body_bytes"] >= 1
    view = box.find(id)
    assert view is not None
    assert (view.status, view.maybe_delivered) == (Status.DEAD, False)
    assert view.last_error is not None
    assert view.last_error.startswith("resourceSpans[0].scopeSpans[0].spans[0] alone is refused: ")


def test_a_lane_with_a_pace_sends_no_request_before_its_time_and_all_of_them(new: New, beacon: Simulator) -> None:
    box, dispatcher = new(max_senders=4, batch_max_rows=1)
    ids = box.put(*intervals(6))
    dispatcher.pace[Lane.USAGE] = Pace(rate=20.0, proven=20.0, refused=20.0)
    began = time.monotonic()
    assert dispatcher.run_lane(Lane.USAGE).sent == 6
    assert time.monotonic() - began >= 4 / 20  # one may make up for a late one
    assert beacon.received.ids() == {str(id): 1 for id in ids}


def test_a_request_whose_time_has_come_does_not_wait_for_the_answers_before_it(new: New, beacon: Simulator) -> None:
    box, dispatcher = new(max_senders=4, batch_max_rows=1)
    dispatcher.concurrency[Lane.USAGE] = Concurrency(limit=4.0, proven=4.0)
    dispatcher.pace[Lane.USAGE] = Pace(rate=20.0, proven=20.0, refused=20.0)
    beacon.faults.latency_ms = 60_000
    ids = box.put(*intervals(4))
    with ThreadPoolExecutor(1) as thread:
        flight = thread.submit(dispatcher.run_lane, Lane.USAGE)
        wait_until(lambda: beacon.received.counts()["usage"]["in_flight"] == 4)
        beacon.faults.down = True  # cuts the answers off, which nobody had
        flight.result(30)
    assert beacon.received.ids() == {str(id): 1 for id in ids}


def test_two_429s_with_deliveries_between_them_give_a_lane_a_pace_and_the_log_says_so(
    new: New, beacon: Simulator, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("outbox.core.pace.SOON_SECONDS", 3600)  # however slow the machine is
    box, dispatcher = new(max_senders=1, batch_max_rows=1, backoff_base=0.01)
    box.put(*intervals(6))
    beacon.fail(429)
    dispatcher.run_once()
    wait_until(lambda: dispatcher.run_once().sent)
    assert dispatcher.pace[Lane.USAGE].rate == math.inf
    beacon.fail(429)
    dispatcher.run_once()
    assert 0 < dispatcher.pace[Lane.USAGE].rate < math.inf
    assert "beacon limits requests" in caplog.text
    wait_until(lambda: dispatcher.run_once().sent)


def woken(dispatcher: Dispatcher) -> DispatchReport:
    """One tick of a worker that a commit has notified."""
    dispatcher.signals[Lane.USAGE].notify(entries=True)
    return dispatcher.run_lane(Lane.USAGE, notified=True)


def test_a_wake_in_an_outage_writes_nothing(new: New, beacon: Simulator, engine: Engine) -> None:
    box, dispatcher = new(backoff_base=60, backoff_max=60)
    box.put(interval())
    assert woken(dispatcher).sent == 1
    box.put(interval())
    assert woken(dispatcher).sent == 1
    beacon.faults.status, beacon.faults.retry_after = 503, "60"
    box.put(interval())
    woken(dispatcher)
    assert beacon.faults.fired["status"] == 1
    before = _version(engine)
    for _ in range(3):
        box.put(interval())
        woken(dispatcher)
    assert (_version(engine), beacon.faults.fired["status"]) == (before, 1)


def test_what_waits_for_a_retry_is_sent_though_there_is_something_new_at_every_look(
    new: New, beacon: Simulator
) -> None:
    box, dispatcher = new(max_senders=1, backoff_base=0.05, backoff_max=0.05)
    box.put(interval())
    dispatcher.run_once()
    beacon.fail(503)
    (late,) = box.put(interval())
    assert woken(dispatcher).failed == 1

    def another() -> bool:
        box.put(interval())
        assert woken(dispatcher).sent
        return str(late) in beacon.received.ids()

    wait_until(another)


def test_a_wake_without_anything_new_writes_nothing(new: New, beacon: Simulator, engine: Engine) -> None:
    box, dispatcher = new()
    box.put(interval())
    dispatcher.run_once()
    before = _version(engine)
    dispatcher.looked_at[Lane.USAGE] = float("inf")  # however slow the machine is, no look is due
    assert woken(dispatcher) == DispatchReport()
    assert _version(engine) == before


def test_a_receipt_outlives_a_database_that_fails_before_it_is_settled(
    new: New, beacon: Simulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    box, dispatcher = new()
    [id] = box.put(interval())
    step, failed = box.store.step, []

    def fails_once(lane: Lane, settlements: Sequence[Settlement], **how: bool) -> Step:
        if settlements and not failed:
            failed.append(lane)
            raise DatabaseUnavailable("the database is down")
        return step(lane, settlements, **how)

    monkeypatch.setattr(box.store, "step", fails_once)
    with pytest.raises(DatabaseUnavailable):
        dispatcher.run_once()
    assert failed
    assert dispatcher.run_once().sent == 1
    assert beacon.received.ids() == {str(id): 1}


def test_what_was_leased_before_the_host_was_suspended_for_as_long_as_a_lease_does_not_leave(
    new: New, beacon: Simulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    box, dispatcher = new(lease_seconds=60)
    box.put(interval())
    monkeypatch.setattr(dispatcher_module, "boottime", lambda: boottime() + 60)
    report = dispatcher.run_once()
    assert (report.sent, report.failed, beacon.received.counts()["usage"]["requests"]) == (0, 0, 0)
    monkeypatch.undo()
    assert dispatcher.run_once().sent == 1


def test_an_attempt_that_fails_is_counted_and_told_to_beacon(new: New, beacon: Simulator) -> None:
    box, dispatcher = new()
    (id,) = box.put(interval())
    beacon.fail(503)
    report = dispatcher.run_once()
    assert (report.sent, report.failed, report.dead) == (0, 1, 0)
    wait_until(lambda: dispatcher.run_once().sent)
    first, second = beacon.received.bodies("usage")
    rows = [json.loads(request.body)["trace_transactions"][0] for request in (first, second)]
    assert [row["num_failed_send_attempts"] for row in rows] == [0, 1]
    view = box.find(id)
    assert view is not None
    assert (view.status, view.num_failed_send_attempts) == ("sent", 1)


def test_an_outage_from_before_the_first_token_counts_for_each_batch_that_it_held_up(new: New) -> None:
    nowhere = f"http://127.0.0.1:{free_port()}"
    box, dispatcher = new(beacon_url=nowhere, batch_max_rows=1, max_senders=3, backoff_base=100, backoff_max=300)
    ids = box.put(*intervals(5))
    report = dispatcher.run_once()
    lane, views = box.status().lanes["usage"], [box.find(id) for id in ids]
    assert lane.state == "paused"
    assert str(lane.reason).startswith("verify: ")
    counted = sum(view.num_failed_send_attempts for view in views if view is not None)
    assert counted == lane.failed_attempts == report.failed == FAILURES_TO_OPEN_BREAKER
    again = dispatcher.run_once()
    assert (again.paused, again.failed) == (True, 0)


def test_an_outage_from_before_the_first_token_uses_up_the_attempts_of_telemetry_with_each_probe(new: New) -> None:
    box, dispatcher = new(beacon_url=f"http://127.0.0.1:{free_port()}", max_attempts=FAILURES_TO_OPEN_BREAKER + 3)
    (id,) = box.put(traces_of(1))
    wait_until(lambda: dispatcher.run_once().dead)
    view = box.find(id)
    assert view is not None
    assert (view.status, view.num_failed_send_attempts) == ("dead", FAILURES_TO_OPEN_BREAKER + 3)
    assert box.status().lanes["traces"].failed_attempts == FAILURES_TO_OPEN_BREAKER + 3


def test_a_refused_entry_dies_alone(new: New, beacon: Simulator) -> None:
    box, dispatcher = new()
    bad, *good = box.put(*intervals(8))
    beacon.faults.refuse_ids = {str(bad)}
    total = DispatchReport()

    def settled() -> bool:
        nonlocal total
        total += dispatcher.run_once()
        return total.sent + total.dead == 8

    wait_until(settled)
    assert (total.sent, total.dead) == (7, 1)
    assert beacon.received.ids() == {str(id): 1 for id in good}
    assert beacon.faults.fired["refuse_ids"]
    view = box.find(bad)
    assert view is not None
    assert view.status == "dead"


def test_a_lost_answer_is_asked_for_again_under_the_same_key(new: New, beacon: Simulator) -> None:
    box, dispatcher = new()
    ids = box.put(*intervals(3))
    beacon.faults.lose_answers = 1
    dispatcher.run_once()
    assert beacon.faults.fired["lose_answers"] == 1
    wait_until(lambda: box.status().lanes["usage"].sent == 3 or dispatcher.run_once().sent)
    later = box.put(*intervals(3))
    dispatcher.run_once()
    assert beacon.received.ids() == {str(id): 2 for id in ids} | {str(id): 1 for id in later}
    first, again, other = keys(beacon)
    assert first == again != other
    assert beacon.received.counts()["usage"]["conflicting_keys"] == 0


def test_a_refused_token_is_verified_again_once(new: New, beacon: Simulator) -> None:
    box, dispatcher = new()
    box.put(interval())
    dispatcher.run_once()
    beacon.revoke_tokens()
    (id,) = box.put(interval())
    report = dispatcher.run_once()
    counts = beacon.received.counts()
    assert report.sent == 1
    assert counts["usage"]["statuses"].get("401") == 1
    assert counts["verify"]["accepted"] == 2
    view = box.find(id)
    assert view is not None
    assert view.num_failed_send_attempts == 0


def test_a_refused_licence_pauses_the_lane_and_costs_no_attempt(new: New, beacon: Simulator) -> None:
    box, dispatcher = new()
    (id,) = box.put(interval())
    beacon.faults.refuse_license = True
    report = dispatcher.run_once()
    assert beacon.faults.fired["refuse_license"]
    assert (report.sent, report.failed, report.dead) == (0, 0, 0)
    assert box.status().lanes["usage"].state == "paused"
    beacon.faults.refuse_license = False
    wait_until(lambda: dispatcher.run_once().sent)
    assert beacon.received.attempts(str(id)) == 0
    assert box.status().lanes["usage"].state == "open"
