"""The limits that the store and the dispatcher decide by."""

from __future__ import annotations

import pytest

from outbox.core.lane import LANES, Lane
from outbox.core.policy import MAX_RETRY_AFTER_SECONDS, Policy


@pytest.mark.parametrize("lane", Lane)
def test_a_lane_cuts_its_batches_at_its_own_default_until_the_operator_says_otherwise(lane: Lane) -> None:
    assert Policy().max_batch_bytes(lane) == LANES[lane].max_batch_bytes
    assert Policy(batch_max_bytes=5000).max_batch_bytes(lane) == 5000


def test_attempts_are_unlimited_on_every_lane_that_has_no_limit() -> None:
    policy = Policy(attempts_limits={Lane.LOGS: 3, Lane.TRACES: None})
    assert [policy.attempts_limit(lane) for lane in Lane] == [None, None, None, 3]


def test_a_lease_is_counted_in_microseconds() -> None:
    assert Policy(lease_seconds=1.5).lease_us == 1_500_000


def test_nothing_waits_longer_than_a_minute_beyond_the_longest_wait_there_is() -> None:
    assert Policy().max_wait_us == (MAX_RETRY_AFTER_SECONDS + 60) * 1_000_000
    assert Policy(lease_seconds=5000).max_wait_us == 5_060_000_000
    assert Policy(backoff_max=6000.0).max_wait_us == 6_060_000_000
