"""The fixtures and ``drain``, as a test of an application uses them."""

from __future__ import annotations

import os
import re
from datetime import UTC, datetime

import httpx
import pytest
from sqlalchemy import create_engine
from sqlalchemy.orm import Session

from outbox import BeaconTransport, Outbox, Settings, TelemetryEnvelope, UsageInterval
from outbox.simulator import Simulator
from outbox.testing import FrozenClock, assert_enqueued, drain, refute_enqueued

TIME = datetime(2025, 1, 6, 10, tzinfo=UTC)


def usage() -> UsageInterval:
    return UsageInterval(
        tenant_id="3a1c2b6f-4430-4b92-8a5b-79b8b567bbc1",
        session_id="b26ae531-cdb3-42a5-8bcf-05355199fe27",
        organization_id="c5b5f53a-4716-4326-8967-d4f7f7799735",
        trace_count=5,
        start_insertion_time=TIME,
        end_insertion_time=TIME,
        start_interval_time=TIME,
        end_interval_time=TIME,
        transaction_type="type1",
    )


@pytest.mark.parametrize("turn", [1, 2])
def test_each_test_gets_a_fresh_beacon(beacon: Simulator, turn: int) -> None:
    assert beacon.received.counts()["connections"] == 0
    answer = httpx.post(f"{beacon.url}/verify", json={"license": beacon.license}, trust_env=False, timeout=60)
    assert answer.status_code == 200


def test_an_entry_goes_from_the_box_to_beacon(outbox_box: Outbox, beacon: Simulator) -> None:
    (id,) = outbox_box.put(usage())
    assert_enqueued(outbox_box, lane="usage", id=id, trace_count=5, end_interval_time=TIME, count=1)
    report = drain(outbox_box, beacon)
    assert (report.sent, report.dead, report.more) == (1, 0, False)
    assert beacon.received.ids("usage") == {str(id): 1}
    found = outbox_box.find(id)
    assert found is not None
    assert found.status == "sent"


def test_the_environment_of_this_machine_changes_nothing(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OUTBOX_OFFLINE", "true")
    monkeypatch.setenv("OUTBOX_BATCH_MAX_ROW", "a typing error")
    monkeypatch.setenv("BEACON_ENDPOINT", "http://nowhere.invalid")
    outbox_box: Outbox = request.getfixturevalue("outbox_box")
    outbox_box.put(usage())
    assert drain(outbox_box, request.getfixturevalue("beacon")).sent == 1
    assert os.environ["OUTBOX_OFFLINE"] == "true"


def test_telemetry_goes_to_its_lane(outbox_box: Outbox, beacon: Simulator) -> None:
    span = {
        "traceId": "71699b6fe85982c7c8995ea3d9c95df2",
        "spanId": "3c191d03fa8be0aa",
        "name": "get",
        "startTimeUnixNano": "1",
        "endTimeUnixNano": "2",
    }
    document = {"resourceSpans": [{"scopeSpans": [{"spans": [span]}]}]}
    outbox_box.put(TelemetryEnvelope(signal="traces", document=document))
    assert_enqueued(outbox_box, lane="traces", count=1)
    drain(outbox_box, beacon)
    assert beacon.received.counts()["traces"]["rows"] == 1


def test_draining_outlasts_an_outage_and_sums_what_happened(outbox_box: Outbox, beacon: Simulator) -> None:
    ids = [outbox_box.put(usage())[0] for _ in range(3)]
    beacon.fail(503)
    report = drain(outbox_box, beacon, timeout=60)
    assert beacon.faults.fired["statuses"] == 1
    assert (report.sent, report.failed) == (3, 3)
    assert beacon.received.ids("usage") == {str(id): 1 for id in ids}


def test_draining_in_vain_raises_a_timeout_error_with_the_status(outbox_box: Outbox, beacon: Simulator) -> None:
    beacon.faults.down = True
    outbox_box.put(usage())
    with pytest.raises(TimeoutError, match=r"not empty after 0\.1 s: OutboxStatus") as caught:
        drain(outbox_box, beacon, timeout=0.1)
    assert beacon.license not in str(caught.value)


def test_draining_goes_through_a_given_transport(outbox_box: Outbox, beacon: Simulator) -> None:
    outbox_box.put(usage())
    with BeaconTransport(Settings(beacon_url=beacon.url, license_key=beacon.license)) as transport:
        assert drain(outbox_box, transport).sent == 1


def test_draining_an_empty_box_reports_nothing(outbox_box: Outbox, beacon: Simulator) -> None:
    assert drain(outbox_box, beacon).sent == 0
    assert beacon.received.counts()["usage"]["requests"] == 0


def test_the_ledger_goes_by_the_frozen_clock(outbox_box: Outbox, beacon: Simulator, frozen_clock: FrozenClock) -> None:
    outbox_box.put(usage())
    beacon.fail(503)
    with pytest.raises(TimeoutError):
        drain(outbox_box, beacon, timeout=0.5)  # the batch backs off, and time stands still
    assert beacon.faults.fired["statuses"] == 1
    frozen_clock.advance(seconds=600)
    assert drain(outbox_box, beacon).sent == 1


def test_draining_in_vain_says_by_how_much_to_advance_the_clock_that_stood_still(
    outbox_box: Outbox, beacon: Simulator, frozen_clock: FrozenClock
) -> None:
    outbox_box.put(usage())
    beacon.fail(503)
    with pytest.raises(TimeoutError, match="stood still") as caught:
        drain(outbox_box, beacon, timeout=0.1)
    told = re.search(r"advance\(seconds=(\d+)\)", str(caught.value))
    assert told is not None
    frozen_clock.advance(seconds=int(told[1]))
    assert drain(outbox_box, beacon).sent == 1


def test_a_rolled_back_entry_is_refuted(outbox_box: Outbox) -> None:
    engine = create_engine(outbox_box.settings.database_url)
    with Session(engine) as session:
        outbox_box.enqueue(session, usage())
        assert_enqueued(session, count=1)
        refute_enqueued(outbox_box)
        session.rollback()
        refute_enqueued(session)
    engine.dispose()


def test_the_clock_stands_still_and_moves_both_ways(frozen_clock: FrozenClock) -> None:
    start = frozen_clock.now()
    assert frozen_clock.now() == start
    frozen_clock.advance(seconds=1.5)
    assert frozen_clock.now() == start + 1_500_000
    frozen_clock.advance(seconds=-2)
    assert frozen_clock.now() == start - 500_000
    assert FrozenClock(7).now() == 7
