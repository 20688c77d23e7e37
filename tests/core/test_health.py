"""The health of a lane, without a database."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from outbox.core.health import DEAD_IN_A_ROW, FAILURES_TO_OPEN_BREAKER, Backoff, Health, LaneState, after, probing
from outbox.core.receipt import Receipt, Verdict

NOW = 1_000_000_000
HOUR = 3_600_000_000
BACKOFF = Backoff(1.0, 300.0, 1.0)
STOPPED = Health(LaneState.PAUSED, "rows are gone")


def receipt(verdict: Verdict, **fields: float) -> Receipt:
    return Receipt(verdict, counted=True, reason=f"beacon said {verdict}", **fields)  # type: ignore[arg-type]


def next_health(health: Health, verdict: Verdict, *, died: bool = False, **fields: float) -> Health:
    return after(health, receipt(verdict, **fields), died, NOW, BACKOFF)


def test_the_breaker_opens_at_the_last_failure_in_a_row() -> None:
    health = Health()
    for failures in range(1, FAILURES_TO_OPEN_BREAKER):
        health = next_health(health, Verdict.UNAVAILABLE)
        assert health == Health(failures=failures)
    health = next_health(health, Verdict.AMBIGUOUS)
    assert health == Health(LaneState.PAUSED, "beacon said ambiguous", NOW + 4_000_000, FAILURES_TO_OPEN_BREAKER)


@pytest.mark.parametrize("verdict", [Verdict.MISCONFIGURED, Verdict.UNAUTHORIZED])
def test_one_answer_that_needs_an_operator_pauses(verdict: Verdict) -> None:
    assert next_health(Health(), verdict) == Health(LaneState.PAUSED, f"beacon said {verdict}", NOW + 1_000_000, 1)


def test_retry_after_pauses_at_the_first_answer_for_as_long_as_it_says() -> None:
    paused = next_health(Health(), Verdict.UNAVAILABLE, retry_after_seconds=120.0)
    assert (paused.state, paused.next_probe_at) == (LaneState.PAUSED, NOW + 120_000_000)


def test_a_delivered_batch_forgets_every_failure() -> None:
    paused = Health(LaneState.PAUSED, "down", NOW, 7, 3)
    assert next_health(paused, Verdict.DELIVERED) == Health()


def test_an_interrupted_request_says_nothing_of_beacon() -> None:
    failing = Health(failures=2)
    assert next_health(failing, Verdict.INTERRUPTED) == failing


def test_deaths_in_a_row_pause_the_lane_and_a_halved_batch_is_no_death() -> None:
    health = Health()
    for _ in range(DEAD_IN_A_ROW - 1):
        health = next_health(health, Verdict.REFUSED, died=True)
        health = next_health(health, Verdict.REFUSED)
    assert health == Health(dead_streak=DEAD_IN_A_ROW - 1)
    health = next_health(health, Verdict.TOO_LARGE, died=True)
    assert health.state is LaneState.PAUSED
    assert "endpoint refuses everything: 8 entries in a row" in str(health.reason)


@given(st.sampled_from(Verdict), st.booleans())
def test_no_answer_opens_a_lane_that_is_off_or_stopped(verdict: Verdict, died: bool) -> None:
    for health in (Health(LaneState.OFF, "switched off"), STOPPED):
        assert next_health(health, verdict, died=died) == health


def test_a_lane_may_send_when_it_is_open_or_its_probe_is_due() -> None:
    paused = Health(LaneState.PAUSED, "down", NOW + 1, 3)
    assert Health().may_send(NOW, HOUR)
    assert not paused.may_send(NOW, HOUR)
    assert paused.may_send(NOW + 1, HOUR)
    assert not STOPPED.may_send(NOW + HOUR, HOUR)
    assert not Health(LaneState.OFF, "switched off").may_send(NOW, HOUR)


def test_a_probe_beyond_any_pause_is_due_because_the_clock_was_set_back() -> None:
    assert Health(LaneState.PAUSED, "down", NOW + HOUR + 1, 3).may_send(NOW, HOUR)


def test_a_probe_that_leaves_puts_the_next_one_off() -> None:
    paused = Health(LaneState.PAUSED, "down", NOW, 3)
    assert probing(paused, NOW, BACKOFF) == replace(paused, next_probe_at=NOW + 8_000_000)
    assert probing(Health(), NOW, BACKOFF) == Health()
