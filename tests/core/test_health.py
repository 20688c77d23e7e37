"""The health of a lane, without a database."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from outbox.core.backoff import Backoff
from outbox.core.health import (
    DEAD_IN_A_ROW,
    DOUBLING,
    FAILURES_TO_OPEN_BREAKER,
    FIRST_ANSWERED,
    Health,
    LaneState,
    after,
    probing,
)
from outbox.core.receipt import Receipt, Verdict

NOW = 1_000_000_000
SECOND = 1_000_000
HOUR = 3600 * SECOND
BACKOFF = Backoff(1.0, 300.0, 1.0)
STOPPED = Health(LaneState.PAUSED, "rows are gone")


def receipt(verdict: Verdict, **fields: float | None) -> Receipt:
    answered = {"status": 503, **fields}
    return Receipt(verdict, counted=True, reason=f"beacon said {verdict}", **answered)  # type: ignore[arg-type]


def next_health(
    health: Health, verdict: Verdict, *, died: bool = False, probe: bool = True, **fields: float | None
) -> Health:
    return after(health, receipt(verdict, **fields), died=died, probe=probe, now=NOW, backoff=BACKOFF)


def test_the_breaker_opens_at_the_last_failure_in_a_row() -> None:
    health = Health()
    for failures in range(1, FAILURES_TO_OPEN_BREAKER):
        health = next_health(health, Verdict.UNAVAILABLE)
        assert health == Health(failures=failures)
    health = next_health(health, Verdict.AMBIGUOUS)
    assert health == Health(LaneState.PAUSED, "beacon said ambiguous", NOW + 1_000_000, FIRST_ANSWERED)
    for wait in (2, 4, 8):
        health = next_health(health, Verdict.UNAVAILABLE)
        assert health.next_probe_at == NOW + wait * SECOND


def test_while_beacon_is_not_reached_the_wait_begins_at_an_eighth_and_grows_by_a_seventh() -> None:
    health, waits = Health(failures=FAILURES_TO_OPEN_BREAKER - 1), []
    for _ in range(1 + 3 * DOUBLING):
        health = next_health(health, Verdict.UNAVAILABLE, status=None)
        assert health.next_probe_at is not None
        waits.append((health.next_probe_at - NOW) / SECOND)
    assert [round(wait, 3) for wait in waits[:3]] == [0.125, 0.144, 0.165]
    assert [waits[number * DOUBLING] for number in range(4)] == [0.125, 0.25, 0.5, 1.0]


def test_where_attempts_are_limited_the_wait_doubles_whether_beacon_is_reached_or_not() -> None:
    health, limited = Health(failures=FAILURES_TO_OPEN_BREAKER - 1), Backoff(1.0, 300.0, 1.0, attempts_limited=True)
    for wait in (1, 2, 4, 8):
        unreached = receipt(Verdict.UNAVAILABLE, status=None)
        health = after(health, unreached, died=False, probe=True, now=NOW, backoff=limited)
        assert health.next_probe_at == NOW + wait * SECOND


def test_an_answer_doubles_the_wait_that_unreached_probes_have_come_to_and_makes_it_a_base_at_least() -> None:
    for unreached, wait in ((1, 1.0), (FIRST_ANSWERED - DOUBLING - 1, 1.0), (FIRST_ANSWERED + DOUBLING, 4.0)):
        paused = Health(LaneState.PAUSED, "no connection", NOW, unreached)
        assert next_health(paused, Verdict.UNAVAILABLE).next_probe_at == NOW + wait * SECOND


def test_a_connection_that_fails_after_an_answer_prolongs_the_wait_by_a_seventh() -> None:
    answered = Health(LaneState.PAUSED, "beacon answered 503", NOW, FIRST_ANSWERED)
    unreached = next_health(answered, Verdict.UNAVAILABLE, status=None)
    assert unreached.next_probe_at == NOW + int(2 ** (1 / DOUBLING) * SECOND)


@pytest.mark.parametrize("verdict", [Verdict.MISCONFIGURED, Verdict.UNAUTHORIZED])
def test_one_answer_that_needs_an_operator_pauses(verdict: Verdict) -> None:
    paused = Health(LaneState.PAUSED, f"beacon said {verdict}", NOW + 1_000_000, FIRST_ANSWERED)
    assert next_health(Health(), verdict) == paused


@pytest.mark.parametrize("verdict", [Verdict.MISCONFIGURED, Verdict.UNAUTHORIZED, Verdict.AMBIGUOUS, Verdict.REFUSED])
def test_a_pause_begins_with_the_first_wait_whatever_failed_before_it(verdict: Verdict) -> None:
    failing = Health(failures=FAILURES_TO_OPEN_BREAKER - 1, dead_streak=DEAD_IN_A_ROW - 1)
    paused = next_health(failing, verdict, died=verdict is Verdict.REFUSED)
    assert (paused.state, paused.failures, paused.next_probe_at) == (LaneState.PAUSED, FIRST_ANSWERED, NOW + SECOND)


def test_retry_after_pauses_at_the_first_answer_for_as_long_as_it_says() -> None:
    paused = next_health(Health(), Verdict.UNAVAILABLE, retry_after_seconds=120.0)
    assert (paused.state, paused.next_probe_at) == (LaneState.PAUSED, NOW + 120_000_000)


@pytest.mark.parametrize(
    "verdict", [Verdict.UNAVAILABLE, Verdict.AMBIGUOUS, Verdict.MISCONFIGURED, Verdict.UNAUTHORIZED]
)
def test_a_pause_lasts_for_the_longer_of_backoff_and_retry_after(verdict: Verdict) -> None:
    paused = Health(LaneState.PAUSED, "down", NOW, FIRST_ANSWERED + 2 * DOUBLING)
    for retry_after, wait in ((None, 8.0), (0.0, 8.0), (7.0, 8.0), (9.0, 9.0)):
        assert next_health(paused, verdict, retry_after_seconds=retry_after).next_probe_at == NOW + wait * SECOND


def test_a_wait_under_a_second_is_kept_and_is_at_least_half_of_what_it_may_be() -> None:
    answer = receipt(Verdict.MISCONFIGURED)
    for draw, wait in ((0.0, 0.1), (0.5, 0.15), (1.0, 0.2)):
        paused = after(Health(), answer, died=False, probe=False, now=NOW, backoff=Backoff(0.2, 300.0, draw))
        assert paused.next_probe_at == NOW + int(wait * SECOND)


def test_a_delivered_batch_forgets_every_failure() -> None:
    paused = Health(LaneState.PAUSED, "down", NOW, 7, 3)
    assert next_health(paused, Verdict.DELIVERED) == Health()


def test_an_interrupted_request_says_nothing_of_beacon() -> None:
    failing = Health(failures=2)
    assert next_health(failing, Verdict.INTERRUPTED) == failing
    probed = Health(LaneState.PAUSED, "down", NOW + HOUR, 3)
    assert next_health(probed, Verdict.INTERRUPTED) == replace(probed, next_probe_at=NOW)


@given(st.sampled_from(Verdict), st.booleans())
def test_a_request_from_before_the_pause_neither_opens_the_lane_nor_prolongs_it(verdict: Verdict, died: bool) -> None:
    paused = Health(LaneState.PAUSED, "down", NOW + 5_000_000, 2, 3)
    assert next_health(paused, verdict, died=died, probe=False) == paused
    longer = next_health(paused, verdict, died=died, probe=False, retry_after_seconds=60.0)
    assert longer == replace(paused, next_probe_at=NOW + 60_000_000)
    assert next_health(paused, verdict, died=died, probe=False, retry_after_seconds=1.0) == paused


def test_a_probe_that_is_refused_finds_beacon_back() -> None:
    paused = Health(LaneState.PAUSED, "down", NOW, 7, 2)
    assert next_health(paused, Verdict.REFUSED) == Health(dead_streak=2)
    assert next_health(paused, Verdict.TOO_LARGE, died=True) == Health(dead_streak=3)


def test_an_endpoint_that_took_a_part_of_what_died_does_not_refuse_everything() -> None:
    health = Health(dead_streak=DEAD_IN_A_ROW - 1)
    assert next_health(health, Verdict.TOO_LARGE, died=True, taken_in_part=True) == Health()
    assert next_health(health, Verdict.TOO_LARGE, died=True).state is LaneState.PAUSED


def test_what_left_without_an_answer_may_have_reached_beacon() -> None:
    health = Health(failures=FAILURES_TO_OPEN_BREAKER - 1)
    assert next_health(health, Verdict.UNAVAILABLE, status=None, left=True).failures == FIRST_ANSWERED
    assert next_health(health, Verdict.UNAVAILABLE, status=None).failures == 1


def test_an_endpoint_that_refuses_everything_stays_paused_and_is_probed_with_fresh_entries_every_other_time() -> None:
    refusing = Health(LaneState.PAUSED, "endpoint refuses everything", NOW, FIRST_ANSWERED, DEAD_IN_A_ROW)
    assert not refusing.fresh_first, "what was refused is asked again first"
    seen = []
    for _ in range(4):
        refusing = next_health(refusing, Verdict.REFUSED)
        assert refusing.refusing
        seen.append(refusing.fresh_first)
    assert seen == [True, False, True, False]
    assert next_health(refusing, Verdict.DELIVERED) == Health()


def test_an_endpoint_that_accepts_a_request_from_before_the_pause_does_not_refuse_everything() -> None:
    refusing = Health(LaneState.PAUSED, "endpoint refuses everything", NOW + HOUR, FIRST_ANSWERED, DEAD_IN_A_ROW)
    assert next_health(refusing, Verdict.DELIVERED, probe=False) == Health()
    down = replace(refusing, dead_streak=DEAD_IN_A_ROW - 1)
    assert next_health(down, Verdict.DELIVERED, probe=False) == down
    stopped = replace(refusing, next_probe_at=None)
    assert next_health(stopped, Verdict.DELIVERED, probe=False) == stopped


def test_a_lane_knows_when_one_more_death_would_pause_it() -> None:
    health = Health()
    for _ in range(DEAD_IN_A_ROW - 1):
        assert not health.one_death_short
        health = next_health(health, Verdict.REFUSED, died=True)
    assert health.one_death_short


@pytest.mark.parametrize("verdict", [Verdict.UNAVAILABLE, Verdict.MISCONFIGURED])
def test_an_endpoint_that_refused_everything_and_went_away_is_still_not_trusted_to_kill(verdict: Verdict) -> None:
    refusing = Health(LaneState.PAUSED, "endpoint refuses everything", NOW, 1, DEAD_IN_A_ROW)
    assert next_health(refusing, verdict).refusing


def test_deaths_in_a_row_pause_the_lane_and_a_halved_batch_is_no_death() -> None:
    health = Health()
    for _ in range(DEAD_IN_A_ROW - 1):
        health = next_health(health, Verdict.REFUSED, died=True)
        health = next_health(health, Verdict.REFUSED)
    assert health == Health(dead_streak=DEAD_IN_A_ROW - 1)
    health = next_health(health, Verdict.TOO_LARGE, died=True)
    assert health.state is LaneState.PAUSED
    assert health.reason == "endpoint refuses everything: 8 entries in a row, last: beacon said too_large"
    assert health.refusing
    assert health.next_probe_at == NOW + SECOND


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
    assert not Health(LaneState.PAUSED, "down", NOW + HOUR, 3).may_send(NOW, HOUR), "the longest pause there is"


def test_a_probe_that_leaves_puts_the_next_one_off() -> None:
    paused = Health(LaneState.PAUSED, "down", NOW, 3)
    assert probing(paused, NOW, 60_000_000) == replace(paused, next_probe_at=NOW + 60_000_000)
    assert probing(Health(), NOW, 60_000_000) == Health()
