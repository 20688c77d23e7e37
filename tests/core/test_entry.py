"""The read-only views of the outbox: times, derived facts of a lane, and sums over lanes."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta, timezone

import pytest
from hypothesis import given
from hypothesis import strategies as st

from outbox.core.entry import LaneStatus, LicenseStatus, OutboxStatus, SchemaStatus, micros, moment

zones = st.timezones() | st.integers(-23, 23).map(lambda hours: timezone(timedelta(hours=hours)))
moments = st.datetimes(datetime(1900, 1, 1), datetime(2900, 1, 1), timezones=zones, allow_imaginary=False)


def lane_with(**counts: int) -> LaneStatus:
    nothing = dict.fromkeys(("pending", "in_flight", "waiting", "sent", "dead", "shed"), 0)
    return LaneStatus(
        state="open",
        reason=None,
        oldest_pending_seconds=None,
        failed_attempts=0,
        senders=0,
        strays=0,
        next_probe_seconds=None,
        **(nothing | counts),
    )


@given(moments)
def test_a_moment_survives_the_database_to_the_microsecond_in_any_time_zone(when: datetime) -> None:
    assert moment(micros(when)) == when.astimezone(UTC)


def test_a_column_counts_microseconds_since_the_epoch_and_is_read_in_utc() -> None:
    when = moment(1_500_000)
    assert when == datetime(1970, 1, 1, 0, 0, 1, 500_000, tzinfo=UTC)
    assert when.tzinfo is UTC
    assert micros(datetime(1970, 1, 1, 1, tzinfo=timezone(timedelta(hours=1)))) == 0


def test_no_column_is_no_moment() -> None:
    assert moment(None) is None


def test_a_time_without_a_zone_is_refused_by_name() -> None:
    with pytest.raises(ValueError, match=r"^2025-01-06T12:00:00 has no time zone$"):
        micros(datetime(2025, 1, 6, 12))


def test_unfinished_is_what_waits_or_is_on_its_way_and_nothing_that_has_ended() -> None:
    busy = lane_with(pending=1, in_flight=20, waiting=300, sent=4000, dead=50_000, shed=600_000)
    assert busy.unfinished == 321


def test_a_lane_is_stopped_when_it_is_paused_and_no_probe_will_open_it() -> None:
    states = [("paused", None), ("paused", 1.0), ("open", None), ("off", None)]
    lanes = [replace(lane_with(), state=state, next_probe_seconds=probe) for state, probe in states]
    assert [lane.stopped for lane in lanes] == [True, False, False, False]


def test_why_is_the_state_with_its_reason_if_there_is_one() -> None:
    assert lane_with().why == "open"
    assert replace(lane_with(), state="paused", reason="no licence").why == "paused: no licence"


def test_the_unfinished_of_an_outbox_are_those_of_all_its_lanes() -> None:
    lanes = {"usage": lane_with(pending=1, dead=7), "logs": lane_with(waiting=20)}
    status = OutboxStatus(lanes, LicenseStatus(present=True, offline=False), SchemaStatus(None, "0001"))
    assert status.unfinished == 21
